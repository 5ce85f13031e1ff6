"""Small generated sets in every layout: one modality is easy, the other one is hard and says more.

A clip of class k has a tone or a scene whose pitch or hue is that of class k in `TELLS` of the clips, and of another class in
the rest: a network learns it in a few steps, and cannot do better with it alone. A faint disc shows k in all clips, by the
direction in which its colour (or, of flow, its motion) differs from that of what is behind it, which itself is random. So no
pixel alone tells anything, and an encoder learns it late. Crops and turns leave the class as it is.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from cggm_ray.core.optional import require
from cggm_ray.core.seeding import derive_seed
from cggm_ray.storage.files import whole_folder

TELLS = 0.7
"""Share of the clips whose easy modality shows their class."""
RATE, SECONDS, SIDE, FRAMES = 16_000, 1.0, 64, 12
EMOTIONS = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")
SOUNDS = ("clapping", "playing_drums", "singing", "tap_dancing")
ACTIONS = ("Archery", "Bowling", "Diving", "Fencing")
CONTRAST = 40.0
"""Difference of the disc from what is behind it, in levels of 255."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A clip that is to be written.

    Attributes:
        label: number of its class.
        shown: class that the easy modality shows.
        rng: of its contents.
    """

    label: int
    shown: int
    rng: np.random.Generator


def write_demonstration(folder: Path, layout: str, seed: int) -> Path:
    """Writes the set of a layout unless it is there; the same samples for the same seed.

    Args:
        folder: that gets it, as `av-<layout>-<seed>`.
        layout: one of `options.DEMONSTRATIONS`.
        seed: of the generator.

    Returns:
        The folder of the set.
    """
    path = folder / f"av-{layout.replace('_', '-')}-{seed}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(derive_seed(seed, "demonstration"))
        with whole_folder(path) as partial:
            _WRITERS[layout](partial, rng)
    return path


def examples(count: int, classes: int, rng: np.random.Generator) -> list[Example]:
    """Returns clips whose classes come equally often, in random order."""
    labels = rng.permutation(np.arange(count) % classes)
    shown = np.where(rng.random(count) < TELLS, labels, (labels + rng.integers(1, classes, count)) % classes)
    return [Example(label=int(k), shown=int(s), rng=r) for k, s, r in zip(labels, shown, rng.spawn(count), strict=True)]


def tone(example: Example, classes: int) -> np.ndarray:
    """Returns a tone under noise, float32 [samples]."""
    time = np.arange(int(RATE * SECONDS)) / RATE
    pitch = 300 * 10 ** (example.shown / classes) * example.rng.uniform(0.97, 1.03)
    return (0.3 * np.sin(2 * np.pi * pitch * time) + example.rng.normal(0, 0.05, len(time))).astype(np.float32)


def discs(example: Example, classes: int, count: int, channels: int) -> np.ndarray:
    """Returns pictures of a faint disc that moves, uint8 [count, H, W, channels]; two channels are flow."""
    rng, angle = example.rng, 2 * np.pi * example.label / classes
    plane = np.eye(2) if channels == 2 else np.array([[1, -1, 0], [1, 1, -2]]) / np.sqrt([[2], [6]])
    behind = rng.uniform(90, 165, channels)
    apart = CONTRAST * np.array([np.cos(angle), np.sin(angle)]) @ plane
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    centre, speed = rng.uniform(0.35, 0.65, 2), rng.uniform(-0.15, 0.15, 2)
    radius = rng.uniform(0.18, 0.28)
    made = []
    for moment in np.linspace(0, 1, count):
        inside = (x - centre[0] - moment * speed[0]) ** 2 + (y - centre[1] - moment * speed[1]) ** 2 < radius**2
        noise = rng.normal(0, 20, (SIDE, SIDE, channels))
        made.append(np.clip(behind + inside[..., None] * apart + noise, 0, 255))
    return np.array(made).astype(np.uint8)


def scenes(example: Example, classes: int, count: int) -> np.ndarray:
    """Returns pictures whose hue is that of the class that is shown, uint8 [count, H, W, 3]."""
    angle = 2 * np.pi * example.shown / classes + 2 * np.pi * np.arange(3) / 3
    noise = example.rng.normal(0, 25, (count, SIDE, SIDE, 3))
    return np.clip(128 + 60 * np.cos(angle) + noise, 0, 255).astype(np.uint8)


def write_pictures(folder: Path, pictures: np.ndarray, name: str = "{:05d}.jpg") -> None:
    """Writes pictures, [N, H, W, 3] or grey [N, H, W], as files of a folder."""
    image = require("PIL.Image", extra="av", purpose="av")
    folder.mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(pictures, start=1):
        image.fromarray(pixels).save(folder / name.format(number), quality=95, subsampling=0)


def write_sound(path: Path, wave: np.ndarray) -> None:
    """Writes a WAV file of 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    require("soundfile", extra="av", purpose="av").write(path, wave, RATE)


def write_video(path: Path, pictures: np.ndarray, wave: np.ndarray | None) -> None:
    """Writes a video with or without sound, in the format of its suffix."""
    av = require("av", extra="av", purpose="av")
    path.parent.mkdir(parents=True, exist_ok=True)
    form = {".flv": ("flv", "aac"), ".avi": ("mpeg4", "mp3")}.get(path.suffix, ("mpeg4", "aac"))
    with av.open(str(path), "w") as container:
        picture: Any = container.add_stream(form[0], rate=len(pictures), options={"qscale": "2"})
        picture.width = picture.height = SIDE
        picture.pix_fmt, picture.bit_rate = "yuv420p", 2_000_000
        sound: Any = None if wave is None else container.add_stream(form[1], rate=RATE, layout="mono")
        for pixels in pictures:
            container.mux(picture.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(picture.encode())
        if wave is not None:
            frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
            frame.sample_rate = RATE
            for made in (frame, None):
                container.mux(sound.encode(made))


def write_rows(path: Path, rows: Sequence[Sequence[object]]) -> None:
    """Writes the rows of a CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def _emotions(count: int, rng: np.random.Generator) -> list[tuple[str, Example]]:
    """Returns the names of CREMA-D for clips of twelve speakers."""
    return [
        (f"{1001 + number % 12}_{_code(number // 12)}_{EMOTIONS[one.label]}_XX", one)
        for number, one in enumerate(examples(count, len(EMOTIONS), rng))
    ]


def _code(number: int) -> str:
    """Returns three letters for a number, as the codes of sentences in CREMA-D are."""
    return "".join(chr(ord("A") + number // 26**power % 26) for power in (2, 1, 0))


def _cremad_lists(folder: Path, clips: Sequence[tuple[str, Example]]) -> None:
    """Three in four clips are train, and the others test, as in the lists of OGM-GE without validation."""
    for split, chosen in (("train", lambda n: n % 4 != 3), ("test", lambda n: n % 4 == 3)):
        rows = [(name, EMOTIONS[one.label]) for n, (name, one) in enumerate(clips) if chosen(n)]
        write_rows(folder / f"{split}.csv", rows)


def _cremad(folder: Path, rng: np.random.Generator) -> None:
    clips = _emotions(480, rng)
    for name, one in clips:
        write_sound(folder / "AudioWAV" / f"{name}.wav", tone(one, len(EMOTIONS)))
        write_pictures(folder / "Image-01-FPS" / name, discs(one, len(EMOTIONS), 2, 3))
    _cremad_lists(folder, clips)


def _cremad_videos(folder: Path, rng: np.random.Generator) -> None:
    clips = _emotions(192, rng)
    for name, one in clips:
        write_sound(folder / "AudioWAV" / f"{name}.wav", tone(one, len(EMOTIONS)))
        write_video(folder / "VideoFlash" / f"{name}.flv", discs(one, len(EMOTIONS), FRAMES, 3), None)
    _cremad_lists(folder, clips)


def _youtube(count: int, rng: np.random.Generator) -> list[tuple[str, int, Example]]:
    """Returns ids and starts of parts of videos; each video has two."""
    made = examples(count, len(SOUNDS), rng)
    return [(f"vid-{number // 2:07d}", 10 * (number % 2), one) for number, one in enumerate(made)]


def _write_both(path: Path, one: Example, classes: int) -> None:
    write_video(path, discs(one, classes, FRAMES, 3), tone(one, classes))


def _kinetics(folder: Path, rng: np.random.Generator) -> None:
    rows: list[tuple[object, ...]] = [("label", "youtube_id", "time_start", "time_end", "split")]
    for number, (name, start, one) in enumerate(_youtube(160, rng)):
        split, label = ("train", "train", "train", "val", "test")[number // 2 % 5], SOUNDS[one.label]
        path = folder / split / label / f"{name}_{start:06d}_{start + 10:06d}.mp4"
        _write_both(path, one, len(SOUNDS))
        rows.append((label, name, start, start + 10, split))
    write_rows(folder / "kinetics_sounds.csv", rows)


def _vggsound(folder: Path, rng: np.random.Generator) -> None:
    rows = []
    for number, (name, start, one) in enumerate(_youtube(160, rng)):
        _write_both(folder / "video" / f"{name}_{start:06d}.mp4", one, len(SOUNDS))
        rows.append((name, start, SOUNDS[one.label].replace("_", " "), "test" if number // 2 % 4 == 3 else "train"))
    write_rows(folder / "vggsound.csv", rows)


def _ave(folder: Path, rng: np.random.Generator) -> None:
    head, lines = "Category&VideoID&Quality&StartTime&EndTime", dict[str, list[str]]()
    for number, one in enumerate(examples(160, len(SOUNDS), rng)):
        name = f"vid-{number:07d}"
        _write_both(folder / "AVE" / f"{name}.mp4", one, len(SOUNDS))
        split = ("train", "train", "train", "val", "test")[number % 5]
        lines.setdefault(split, []).append(f"{SOUNDS[one.label].replace('_', ' ')}&{name}&good&0&10")
    (folder / "Annotations.txt").write_text("\n".join([head, *chain(*lines.values())]) + "\n")
    for split, some in lines.items():
        (folder / f"{split}Set.txt").write_text("\n".join(some) + "\n")


def _ucf101(folder: Path, rng: np.random.Generator) -> None:
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for number, one in enumerate(examples(160, len(ACTIONS), rng)):
        label, group = ACTIONS[one.label], number % 20 + 1
        name = f"v_{label}_g{group:02d}_c{number // 20 + 1:02d}"
        write_video(folder / "UCF-101" / label / f"{name}.avi", scenes(one, len(ACTIONS), FRAMES), None)
        motion = discs(one, len(ACTIONS), FRAMES, 2)
        for channel, side in enumerate("uv"):
            write_pictures(folder / "flow" / side / name, motion[..., channel], "frame{:06d}.jpg")
        split = "test" if group > 15 else "train"
        lines[split].append(f"{label}/{name}.avi" + (f" {one.label + 1}" if split == "train" else ""))
    lists = folder / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("".join(f"{n} {name}\n" for n, name in enumerate(ACTIONS, start=1)))
    for split, some in lines.items():
        (lists / f"{split}list01.txt").write_text("\n".join(some) + "\n")


def _folders(folder: Path, rng: np.random.Generator) -> None:
    for number, (name, start, one) in enumerate(_youtube(160, rng)):
        split = ("train", "train", "train", "val", "test")[number // 2 % 5]
        _write_both(folder / split / SOUNDS[one.label] / f"{name}_{start:06d}.mp4", one, len(SOUNDS))


_WRITERS = {
    "cremad": _cremad,
    "cremad_videos": _cremad_videos,
    "kinetics": _kinetics,
    "vggsound": _vggsound,
    "ave": _ave,
    "ucf101": _ucf101,
    "folders": _folders,
}
