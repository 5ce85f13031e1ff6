"""Columns of audio files: log-mel spectrograms, or the states of a frozen encoder."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from cggm_ray.core.errors import DataError
from cggm_ray.core.kinds import SEQUENCE
from cggm_ray.core.optional import require
from cggm_ray.data.datasets.table.kinds import COLUMN_KINDS, Context, Encoded, State
from cggm_ray.data.datasets.table.media import Content, MediaKind, decoded, problems
from cggm_ray.data.datasets.table.pretrained import AudioEncoder, model_again, model_state
from cggm_ray.data.formats.untrusted import check_size

RATE = 16_000
"""Samples in a second, to which all files are brought."""
WINDOW, HOP, BANDS = 400, 320, 64
"""Samples of a window and between two windows, and mel bands of a spectrogram: one step is 20 ms."""
RATES = (1_000, 400_000)
MOST_CHANNELS = 64
LOUDEST = 2**31
"""Largest magnitude of a sample: that of 32 bits which nobody has divided. The power of larger ones leaves float32."""
BLOCK = 2**16
"""Samples of all channels that are decoded together."""


class Audio(MediaKind):
    """Audio files below the folder of the table, or whole files in the cells; what is longer than `audio_seconds` is cut."""

    order = 11
    what = "audio file"
    suffixes = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif")
    marks = re.compile(rb"RIFF....WAVE|fLaC|OggS|ID3|\xff[\xfb\xf3\xf2]|FORM....AIF", re.DOTALL)
    package, extra = "soundfile", "media"

    def look(self, found: Sequence[Content | None], context: Context) -> list[str | None]:
        """Decodes every file once."""
        return problems(found, lambda source: waveform(source, context.options.audio_seconds))

    def fit(self, name: str, cells: pa.Array, context: Context) -> State:
        """Returns the length, or the encoder."""
        if cells.null_count == len(cells):
            raise DataError(
                f"column {name}: has no audio in the training split; leave it out with --column {name}=drop"
            )
        seconds = {"seconds": context.options.audio_seconds}
        if context.options.audio_model is None:
            return seconds
        return seconds | model_state("audio_model", context.options.audio_model, context)

    def encode(self, cells: pa.Array, state: State) -> Encoded:
        """Returns log-mel spectrograms [N, T, bands] with the steps of each; zeros behind its end."""
        longest = 1 + math.ceil(state["seconds"] * RATE) // HOP
        values, steps = np.zeros((len(cells), longest, BANDS), np.float32), np.zeros(len(cells), np.int64)
        for row, wave in enumerate(self._waves(cells, state)):
            if wave is not None:
                bands = log_mel(wave)[:longest]
                values[row, : len(bands)], steps[row] = bands, len(bands)
        return Encoded(values=values, steps=steps)

    def about(self, state: State) -> str:
        """Returns the encoder, or that it is a spectrogram."""
        if self.pooled(state):
            return f"frozen {state['architecture']} of {state['model']}, up to {state['seconds']:g} s"
        return f"log-mel spectrogram of up to {state['seconds']:g} s, no pretrained encoder (--audio_model)"

    def prepare(self, cells: pa.Array, state: State) -> pa.Array:
        """Returns waveforms, lists of several lengths."""
        return pa.array(self._waves(cells, state), pa.list_(pa.float32()))

    def load(self, state: State, context: Context) -> Callable[[pa.Array], Encoded]:
        """Loads feature extractor and model."""
        return AudioEncoder(state, context, RATE)

    def again(self, state: State, context: Context) -> State:
        """Finds the encoder again and checks that it is the same."""
        return model_again("audio_model", state, context) if self.pooled(state) else state

    def input_kind(self, state: State, shape: tuple[int, ...]) -> str:
        """Returns a sequence."""
        return SEQUENCE

    def _waves(self, cells: pa.Array, state: State) -> list[np.ndarray | None]:
        read: Callable[[Path | io.BytesIO], np.ndarray] = lambda source: waveform(source, state["seconds"])  # noqa: E731
        return [None if one is None else decoded(one, self.what, read) for one in cells.to_pylist()]


def waveform(source: Path | io.BytesIO, seconds: float, rate: int = RATE) -> np.ndarray:
    """Returns the beginning of an audio file, the mean of its channels, float32 [samples].

    Args:
        source: of the file.
        seconds: that are read.
        rate: samples in a second of the result.

    Raises:
        ValueError: there is no sample, rate or number of channels cannot be, or it unfolds to too much.
        RuntimeError: what soundfile raises for a file that it cannot read.
    """
    library = require("soundfile", extra="media", purpose="table")
    held = source.getbuffer().nbytes if isinstance(source, io.BytesIO) else source.stat().st_size
    signal = require("scipy.signal", extra="table", purpose="table")
    with library.SoundFile(source if isinstance(source, io.BytesIO) else str(source)) as file:
        check_sound(file.samplerate, file.channels)
        found, most = int(file.samplerate), math.ceil(seconds * file.samplerate)
        # A small file can hold hours of silence in many channels, so these are never in memory together.
        try:
            check_size(4 * min(most, file.frames), held, "one channel", "--audio_seconds reads less of it")
        except DataError as error:
            # Whoever called knows the file.
            raise ValueError(str(error)) from None
        parts = file.blocks(BLOCK, frames=min(most, file.frames), dtype="float32", always_2d=True)
        # What is not finite, or becomes so, is refused below.
        with np.errstate(over="ignore", invalid="ignore"):
            means = [part.mean(1) for part in parts]
    wave = np.concatenate(means) if means else np.zeros(0, np.float32)
    shared = math.gcd(found, rate)
    with np.errstate(over="ignore", invalid="ignore"):
        made = wave if found == rate else signal.resample_poly(wave, rate // shared, found // shared)
        made = np.asarray(made[: math.ceil(seconds * rate)], np.float32)
    # A number that is not finite is beyond any bound too.
    if not len(wave) or not (np.abs(wave) <= LOUDEST).all() or not (np.abs(made) <= LOUDEST).all():
        raise ValueError(f"found no samples, or some that are not finite or beyond {LOUDEST:,}; expected at least one")
    return made


def check_sound(rate: int, channels: int) -> None:
    """Raises a ValueError for a rate or a number of channels that no recording has; memory would follow from them."""
    if not RATES[0] <= rate <= RATES[1] or channels > MOST_CHANNELS:
        raise ValueError(
            f"found {channels} channels of {rate} samples a second; expected at most {MOST_CHANNELS} of {RATES[0]:,} to "
            f"{RATES[1]:,}"
        )


def log_mel(wave: np.ndarray) -> np.ndarray:
    """Returns the log-mel spectrogram [T, bands] of samples at `RATE`, with T = 1 + samples // hop."""
    audio = require("transformers.audio_utils", extra="table", purpose="table")
    filters = audio.mel_filter_bank(
        num_frequency_bins=WINDOW // 2 + 1,
        num_mel_filters=BANDS,
        min_frequency=0.0,
        max_frequency=RATE / 2,
        sampling_rate=RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    found = audio.spectrogram(
        np.pad(wave, (0, max(0, WINDOW - len(wave)))),
        audio.window_function(WINDOW, "hann"),
        frame_length=WINDOW,
        hop_length=HOP,
        power=2.0,
        mel_filters=filters,
        log_mel="log10",
    )
    return np.asarray(found.T, np.float32)


COLUMN_KINDS.register("audio")(Audio())
