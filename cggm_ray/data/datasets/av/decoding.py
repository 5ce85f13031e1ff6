"""Decodes media of clips: sound to spectrograms, pictures, and optical flow, one clip after the other."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import torch

from cggm_ray.core.errors import CggmError
from cggm_ray.core.optional import require
from cggm_ray.data.datasets.av.layouts import AUDIO, OPTICAL
from cggm_ray.data.datasets.av.media import ACROSS, DOWN, FLOW, PICTURES, SOUND, VIDEO, Medium
from cggm_ray.data.datasets.av.options import AvOptions
from cggm_ray.data.datasets.food101.augment import resized
from cggm_ray.data.datasets.food101.lists import IMAGE_SUFFIXES
from cggm_ray.data.datasets.table.audio import check_sound, waveform
from cggm_ray.data.datasets.table.images import colours
from cggm_ray.data.datasets.table.video import frames, opened_video
from cggm_ray.storage.places import as_path, is_local

SILENCE = 1e-4
"""Largest amplitude of a sound that counts as silence; full scale is 1."""
FLOOR = 1e-7
"""Added to magnitudes before their logarithm (OGM-GE)."""


class SilentError(Exception):
    """A clip has no sound: it lacks the modality, and nothing is broken."""


def middles(total: int, number: int) -> np.ndarray:
    """Returns the places of the middles of parts of equal length, int64 [number]."""
    return ((np.arange(number) + 0.5) * total / number).astype(np.int64)


def sample_shape(modality: str, options: AvOptions) -> tuple[int, ...]:
    """Returns the shape of a sample of a modality that no frozen encoder sees."""
    if modality == AUDIO:
        return options.audio_window // 2 + 1, 1 + options.samples // options.audio_hop
    channels = 2 * options.flow_stack if modality == OPTICAL else 3
    return options.frames, channels, options.image_size, options.image_size


def decoded(modality: str, medium: Medium, options: AvOptions) -> np.ndarray:
    """Returns a sample: a spectrogram, float16, or pictures or flow, uint8; of the shape that `sample_shape` says.

    Raises:
        SilentError: there is no sound.
        Exception: what the libraries raise for a file that they cannot read.
    """
    if modality == AUDIO:
        return spectrogram(sound(medium, options.audio_seconds, options.audio_rate), options)
    if modality == OPTICAL:
        return flow(medium, options)
    return np.stack(pictures(medium, options.frames, options.image_size)).transpose(0, 3, 1, 2)


def problem(medium: Medium) -> str | None:
    """Returns why a medium cannot be read, from its beginning; None where it can. Without sound it is an empty text.

    Files of a store are not fetched for it.
    """
    path = as_path(medium.paths[0])
    if medium.form in (PICTURES, FLOW) or not is_local(path):
        return None
    try:
        if path.stat().st_size == 0:
            return "the file is empty"
        if medium.form == SOUND:
            library = require("soundfile", extra="av", purpose="av")
            return None if library.info(str(path)).frames else "found no samples; expected at least one"
        with opened_video(path) as container:
            if container.streams.video:
                next(container.decode(container.streams.video[0]))
            return None if container.streams.audio else ""
    except CggmError:
        raise
    # A damaged file can raise nearly anything from the code of its format.
    except Exception as error:
        return reason_of(error)


def reason_of(error: BaseException) -> str:
    """Returns the message of an error, or its kind."""
    return str(error).strip() or type(error).__name__


def sound(medium: Medium, seconds: float, rate: int) -> np.ndarray:
    """Returns the sound of a file or a video, the mean of its channels, float32 [samples] at a rate.

    Raises:
        SilentError: the video has no sound, or all of it is silent.
        Exception: what the libraries raise for a file that they cannot read.
    """
    source = _source(medium.paths[0])
    wave = waveform(source, seconds, rate) if medium.form == SOUND else _sound_of_video(source, seconds, rate)
    if not len(wave) or np.abs(wave).max() < SILENCE:
        raise SilentError
    return wave


def spectrogram(wave: np.ndarray, options: AvOptions) -> np.ndarray:
    """Returns the logarithm of the magnitudes of a sound that is repeated to its full length, float16 [frequencies, T]."""
    whole = np.resize(wave, options.samples).clip(-1, 1)
    window = torch.hann_window(options.audio_window)
    found = torch.stft(
        torch.from_numpy(whole),
        options.audio_window,
        options.audio_hop,
        window=window,
        pad_mode="constant",
        return_complex=True,
    )
    return (found.abs() + FLOOR).log().numpy().astype(np.float16)


def pictures(medium: Medium, number: int, size: int | None) -> list[np.ndarray]:
    """Returns pictures of a clip, each uint8 [H, W, 3].

    Args:
        medium: a video, or a folder of pictures in the order of their numbers.
        number: of pictures.
        size: of the square that each becomes; None for its own.
    """
    if medium.form == VIDEO:
        return list(frames(_source(medium.paths[0]), number, size, middles))
    files = image_files(medium.paths[0], but=(ACROSS, DOWN))
    places = middles(len(files), number)
    if size is None:
        return [colours(_source(files[place])) for place in places]
    return [resized(_source(files[place]), size, upright=True) for place in places]


def flow(medium: Medium, options: AvOptions) -> np.ndarray:
    """Returns optical flow, uint8 [frames, 2 * flow_stack, H, W]: fields across and down by turns."""
    if len(medium.paths) == 2:
        sides = [image_files(folder) for folder in medium.paths]
    else:
        sides = [image_files(medium.paths[0], start=(side,)) for side in (ACROSS, DOWN)]
    if len(sides[0]) != len(sides[1]):
        raise ValueError(f"found {len(sides[0])} fields across and {len(sides[1])} down; expected as many")
    size, stack = options.image_size, options.flow_stack
    made = []
    for middle in middles(len(sides[0]), options.frames):
        start = max(0, min(middle - stack // 2, len(sides[0]) - stack))
        places = np.minimum(start + np.arange(stack), len(sides[0]) - 1)
        fields = [resized(_source(side[place]), size)[..., 0] for place in places for side in sides]
        made.append(np.stack(fields))
    return np.stack(made)


def image_files(folder: str, start: tuple[str, ...] = (), but: tuple[str, ...] = ()) -> list[str]:
    """Returns the pictures of a folder in the order of the numbers in their names; at least one.

    Args:
        folder: that holds them.
        start: beginnings of the names that are meant; none for all.
        but: beginnings of the names that are not.
    """
    names = [path.name for path in as_path(folder).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
    names = [name for name in names if name.startswith(start or "") and not name.startswith((".", *but))]
    if not names:
        raise ValueError("found no picture in the folder; expected at least one")
    return [f"{folder}/{name}" for name in sorted(names, key=_natural)]


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _source(path: str) -> Path | io.BytesIO:
    found = as_path(path)
    return found if is_local(found) else io.BytesIO(found.read_bytes())


def _sound_of_video(source: Path | io.BytesIO, seconds: float, rate: int) -> np.ndarray:
    av = require("av", extra="av", purpose="av")
    parts: list[np.ndarray] = []
    most, found = int(seconds * rate), 0
    with opened_video(source) as container:
        if not container.streams.audio:
            raise SilentError
        resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
        for frame in container.decode(container.streams.audio[0]):
            check_sound(frame.sample_rate, frame.layout.nb_channels)
            for made in resampler.resample(frame):
                parts.append(made.to_ndarray()[0])
                found += len(parts[-1])
            if found >= most:
                break
    wave = np.concatenate(parts)[:most] if parts else np.zeros(0, np.float32)
    if not np.isfinite(wave).all():
        raise ValueError("found samples that are not finite")
    return wave.astype(np.float32)
