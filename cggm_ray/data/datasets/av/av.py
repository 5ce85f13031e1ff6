"""Sets of sound and pictures: CREMA-D, Kinetics-Sounds, VGGSound and AVE, and UCF-101 as pictures and optical flow.

`layouts` says which clips there are; `decoding` turns their media into spectrograms and pictures.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cggm_ray.core.errors import DataError, listed, one_line
from cggm_ray.core.kinds import FRAMES, IMAGE, SEQUENCE
from cggm_ray.core.optional import check_installed
from cggm_ray.data.dataset import DATASETS, SPLITS, Dataset
from cggm_ray.data.datasets.av.augment import ClipSplit
from cggm_ray.data.datasets.av.decoding import SilentError, decoded, problem, reason_of, sample_shape
from cggm_ray.data.datasets.av.demonstration import write_demonstration
from cggm_ray.data.datasets.av.frozen import EncodeClips, context_of, frozen_again, frozen_states, model_files
from cggm_ray.data.datasets.av.layouts import AUDIO, OPTICAL, RGB, VISION, Clip, modalities_of, read_clips
from cggm_ray.data.datasets.av.media import FOLDERS, Media, Medium
from cggm_ray.data.datasets.av.options import MODELS, NOT_IN_SHARDS, AvOptions
from cggm_ray.data.datasets.av.splitting import divide
from cggm_ray.data.datasets.av.stages import MEDIUM, DecodeClips, packed, refusal, unpacked
from cggm_ray.data.loading.split import Split, about_columns
from cggm_ray.data.shards.chunks import chunks
from cggm_ray.data.shards.reading import open_shard
from cggm_ray.data.shards.shards import (
    IDENTITY,
    INDEX,
    LABELLED,
    PREDICT,
    PRESENT,
    STEPS,
    TARGET,
    Manifest,
    RawShard,
    Shard,
    Source,
    Stage,
    TensorSpec,
)
from cggm_ray.data.shards.sources import describe_sources, file_version
from cggm_ray.storage.places import as_path, is_local
from cggm_ray.tasks import Classification, Task


@DATASETS.register("av")
class Av(Dataset):
    """Clips with sound and pictures, or pictures and optical flow; the classes are those of the training data."""

    name = "av"
    converter = 1
    network = "composed"
    Options = AvOptions

    _modalities: tuple[str, ...] = ()

    @property
    def options(self) -> AvOptions:
        """The configuration's section of this dataset."""
        assert isinstance(self.settings.options, AvOptions)
        return self.settings.options

    def shard_options(self) -> dict[str, Any]:
        """Returns the options that change a sample or a split, and the modalities, because only those are decoded."""
        names = self.settings.data.modalities
        plain = {key: value for key, value in vars(self.options).items() if key not in NOT_IN_SHARDS}
        models = {name: getattr(self.options, name) is not None for name in MODELS}
        return plain | models | {"modalities": None if names is None else sorted(names)}

    def locate(self, path: Path) -> list[Path]:
        """Returns the lists below a folder, or the folder's media where there is none, and the files of frozen encoders."""
        return [*self._found(path, labelled=True), *model_files(self.options)]

    def locate_new(self, path: Path) -> list[Path]:
        """Returns the lists below a folder, or its media; no label is needed."""
        return self._found(path, labelled=False)

    def describe(self, sources: list[Path]) -> tuple[Source, ...]:
        """Returns the checksums of the lists; media are described by path, size and time or version."""
        lists = [path for path in sources if path not in self._files]
        total, digest = 0, hashlib.sha256()
        for clip in self._clips:
            for medium in clip.media.values():
                if medium is None:
                    continue
                for place in medium.paths:
                    path = as_path(place)
                    try:
                        size, version = (
                            file_version(path) if medium.form not in FOLDERS else _folder_version(path, medium)
                        )
                    except OSError:
                        size, version = 0, "missing"
                    total += size
                    digest.update(f"{place.removeprefix(str(self._root))}\0{size}\0{version}\n".encode())
        media = Source(path=str(self._root), bytes=total, sha256=digest.hexdigest())
        return (*describe_sources(lists, self.settings.shard_root), media)

    def read(self, sources: list[Path]) -> Iterator[RawShard]:
        """Yields the places of the media of every clip, after looking at the beginning of each file."""
        self._context = context_of(self.settings, self.options, self._root)
        self._frozen = frozen_states(self._modalities, self.options, self._context)
        self._classes = sorted({clip.label for clip in self._clips if clip.label is not None})
        kept, lines = self._usable(self._clips, self.options.skip_bad)
        splits, how = divide(kept, self.options)
        for split in SPLITS:
            if not splits[split]:
                raise DataError(f"{self._root}: split {split} has no clip, {how}; expected at least one")
        known = {clip.label for clip in splits["train"]}
        for split in SPLITS[1:]:
            other = next((clip for clip in splits[split] if clip.label not in known), None)
            if other is not None:
                raise DataError(
                    f"{self._root}: split {split}, clip {other.name}: class {other.label} has no clip in train; found "
                    f"{listed(sorted(map(str, known)), 10)}"
                )
        self._lines = [
            f"data: {self._root}, layout {self._layout}, {len(kept)} clips with {' and '.join(self._modalities)}",
            f"target: classification, {len(self._classes)} classes: {listed(self._classes, 10)}",
            *(f"{name}: frozen {one['architecture']} of {one['model']}" for name, one in self._frozen.items()),
            *lines,
            f"clips: {', '.join(f'{split} {len(part)}' for split, part in splits.items())}; {how}",
        ]
        for split in SPLITS:
            yield from self._shards(split, splits[split], labelled=True)

    def read_new(self, sources: list[Path], trained: Manifest, split: str | None) -> Iterator[RawShard]:
        """Yields all clips, or those of a split, with or without labels."""
        self._context = context_of(self.settings, self.options, self._root)
        self._frozen = frozen_again(trained.notes["frozen"], self._context)
        self._classes = list(trained.notes["classes"])
        self._modalities = tuple(trained.modalities)
        clips = [clip for clip in self._clips if split in (None, clip.split)]
        if not clips:
            there = sorted({str(clip.split) for clip in self._clips})
            raise DataError(f"{self._root}: found clips of {listed(there)}; expected some of the split {split}")
        for clip in clips:
            if clip.label is not None and clip.label not in self._classes:
                raise DataError(
                    f"{self._root}: clip {clip.name}: class {clip.label} is not one of training; found "
                    f"{listed(self._classes, 10)}"
                )
        kept, self._lines = self._usable(clips, self.options.skip_bad)
        yield from self._shards(PREDICT, kept, labelled=False)

    def _shards(self, split: str, clips: Sequence[Clip], labelled: bool) -> Iterator[RawShard]:
        number_of = {label: number for number, label in enumerate(self._classes)}
        sample_bytes = sum(spec.bytes for name, spec in self._specs().items() if name != TARGET)
        for number, rows in chunks(len(clips), sample_bytes):
            part = clips[rows]
            columns = {
                INDEX: pa.array(np.arange(rows.start, rows.stop)),
                IDENTITY: pa.array([clip.name for clip in part]),
                TARGET: pa.array(np.array([number_of.get(str(clip.label), 0) for clip in part], np.int64)),
            }
            if not labelled:
                columns[LABELLED] = pa.array([clip.label is not None for clip in part])
            for name in self._modalities:
                columns[MEDIUM + name] = pa.array([packed(clip.media[name]) for clip in part], pa.string())
            yield RawShard(split=split, number=number, table=pa.table(columns))

    def stages(self) -> tuple[Stage, ...]:
        """Returns the decoding of clips, in tasks, and their encoding where the frozen encoders are held."""
        decode = DecodeClips(options=self.options, modalities=self._modalities, frozen=self._frozen)
        first = Stage(make=functools.partial(_itself, decode))
        if not self._frozen:
            return (first,)
        make = functools.partial(EncodeClips, self._frozen, self._modalities, self._context)
        return first, Stage(make=make, pooled=True)

    def notes(self) -> dict[str, Any]:
        """Returns the classes, and lines about the set."""
        return {"classes": self._classes, "taken": self._lines, "layout": self._layout, "frozen": self._frozen}

    def specs(self, first: RawShard) -> Mapping[str, TensorSpec]:
        """Returns the shapes of spectrograms and pictures, which follow from the options; of states those of the first clip."""
        return super().specs(first) if self._frozen else self._specs()

    def _specs(self) -> dict[str, TensorSpec]:
        specs = {
            name: TensorSpec(shape=sample_shape(name, self.options), dtype="float16" if name == AUDIO else "uint8")
            for name in self._modalities
        }
        return specs | {TARGET: TensorSpec(shape=(), dtype="int64")}

    def inspect(self, folder: Path, raw: Sequence[RawShard], shards: Sequence[Shard]) -> dict[str, Any]:
        """Returns how many clips turned out to be silent or broken when they were decoded; raises DataError for too many."""
        silent: Counter[str] = Counter()
        bad = list(self._bad)
        for part, shard in zip(raw, shards, strict=True):
            with open_shard(folder / shard.file) as file:
                stored = file.schema_arrow.names
                flags = file.read(about_columns(stored, self._modalities))
            for name in self._modalities:
                column = (PRESENT if PRESENT + name in stored else STEPS) + name
                there = flags.column(column).to_pylist()
                cells = part.table.column(MEDIUM + name).to_pylist()
                for cell, found in zip(cells, there, strict=True):
                    if cell is not None and not found:
                        line = self._why(name, unpacked(cell))
                        silent[name] += line is None
                        bad += [] if line is None else [line]
        if len(bad) > self.options.skip_bad:
            raise refusal(bad, self.options.skip_bad)
        lines = [f"missing: {line}" for line in bad[len(self._bad) :]]
        lines += [
            f"{name}: silent in {number} clips, which lack it" for name, number in sorted(silent.items()) if number
        ]
        for line in lines:
            print(one_line(line), flush=True)
        return {"taken": [*self._lines, *lines]}

    def _why(self, modality: str, medium: Medium) -> str | None:
        """Returns why a medium could not be decoded, or None where it has no sound."""
        try:
            decoded(modality, medium, self.options)
        # Whatever a damaged file raised in its task it raises here.
        except Exception as error:
            return (
                None
                if isinstance(error, SilentError)
                else f"{medium.paths[0]}: {modality} cannot be decoded: {reason_of(error)}"
            )
        return f"{medium.paths[0]}: {modality} could not be decoded before, and can be now"

    def task(self, manifest: Manifest) -> Task:
        """Returns cross-entropy over the classes."""
        return Classification(len(manifest.notes["classes"]))

    def takes(self, modality: str, trained: tuple[int, ...], found: tuple[int, ...]) -> bool:
        """Returns whether the shapes are equal."""
        return trained == found

    def kinds(self, manifest: Manifest, modalities: tuple[str, ...]) -> dict[str, str]:
        """Returns an image for a spectrogram, frames for pictures and flow, and a sequence for states of a frozen encoder."""
        frozen = manifest.notes["frozen"]
        return {name: SEQUENCE if name in frozen else IMAGE if name == AUDIO else FRAMES for name in modalities}

    def open_split(
        self, folder: Path, manifest: Manifest, split: str, modalities: tuple[str, ...], device: torch.device
    ) -> Split:
        """Opens clips; pictures are cropped anew in every epoch of training."""
        inner = super().open_split(folder, manifest, split, modalities, device)
        seen = [name for name in (VISION, RGB) if name in modalities and name not in manifest.notes["frozen"]]
        pictures = tuple(seen) if split == "train" and self.options.crop else ()
        masks = getattr(inner, "masks", {})
        whole = tuple(name for name, mask in masks.items() if bool(mask.all()))
        return ClipSplit(inner, pictures, whole, self.settings.seed)

    def demonstration(self, folder: Path, seed: int) -> Path:
        """Writes `av-<layout>-<seed>`: a modality that is easy, and a hard one that says more."""
        check_installed("soundfile", "PIL", "av", extra=self.name, purpose=self.name)
        return write_demonstration(folder, self.options.demonstration, seed)

    def _found(self, path: Path, labelled: bool) -> list[Path]:
        check_installed("soundfile", "PIL", "av", "scipy", extra=self.name, purpose=self.name)
        if not path.is_dir():
            raise DataError(f"data_path: {path} is a file; expected the folder that holds lists and media")
        given = self.options.media_path
        more = None if given is None else as_path(given).expanduser().absolute()
        if more is not None and not more.is_dir():
            raise DataError(f"media_path: {more} is no folder; expected the one below which media lie")
        self._root = path
        media = Media(path, more)
        self._layout, self._clips = read_clips(media, self.options.layout, self.options.list_number, labelled)
        every = modalities_of(self._layout)
        wanted = self.settings.data.modalities
        self._modalities = every if wanted is None else tuple(name for name in every if name in wanted)
        self._files = {as_path(place) for medium in media.all for place in medium.paths}
        lists = [place for places in media.lists.values() for place in places]
        # Without a list the names of the media are the list; the first one stands for them.
        return lists or [path for path in sorted(self._files) if path.is_file()][:1] or sorted(self._files)[:1]

    def _usable(self, clips: Sequence[Clip], allowed: int) -> tuple[list[Clip], list[str]]:
        """Returns the clips that have at least one modality, without media that cannot be read, and lines about the others."""
        wanted = self._modalities
        for name in wanted:
            if not any(clip.media.get(name) for clip in clips):
                raise DataError(
                    f"{self._root}: none of the {len(clips)} clips has {name}, such as {clips[0].name}; expected "
                    f"{EXPECTED[name]} below the folder (--media_path names another one), or --modalities without it"
                )
        every = {clip.media[name] for clip in clips for name in wanted if clip.media.get(name)}
        with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
            wrong = dict(zip(every, pool.map(lambda one: None if one is None else problem(one), every), strict=True))
        self._bad: list[str] = []
        kept, mute, empty = [], 0, []
        for clip in clips:
            media: dict[str, Medium | None] = {}
            for name in wanted:
                medium = clip.media.get(name)
                found = None if medium is None else wrong[medium]
                if medium is None:
                    self._bad.append(f"clip {listed([clip.name])}: no {name} below {self._root}")
                elif found:
                    self._bad.append(f"{medium.paths[0]}: {name} cannot be read: {found}")
                elif found == "" and name == AUDIO:
                    mute += 1
                else:
                    media[name] = medium
                media.setdefault(name, None)
            if any(media.values()):
                kept.append(Clip(name=clip.name, label=clip.label, split=clip.split, source=clip.source, media=media))
            else:
                empty.append(clip.name)
        if len(self._bad) > allowed:
            raise refusal(self._bad, allowed)
        lines = [f"missing: {line}" for line in self._bad]
        lines += [f"audio: {mute} videos have no sound, and their clips lack it"] if mute else []
        lines += [f"left out: {len(empty)} clips without any medium: {listed(empty, 5)}"] if empty else []
        for line in self._bad:
            print(f"missing: {one_line(line)}", file=sys.stderr)
        for name in wanted:
            if not any(clip.media[name] for clip in kept):
                raise DataError(
                    f"{self._root}: none of the {len(clips)} clips has {name} that can be read; expected {EXPECTED[name]}, or "
                    "--modalities without it"
                )
        return kept, lines


def _itself(decode: DecodeClips) -> DecodeClips:
    """Returns the stage, in the process that runs it."""
    return decode


def _folder_version(path: Path, medium: Medium) -> tuple[int, str]:
    """Returns the number of files in a folder, and its time of change; a store knows no time of a folder."""
    return medium.files, file_version(path)[1] if is_local(path) else ""


EXPECTED = {
    AUDIO: "files such as <clip>.wav, or videos with sound",
    VISION: "folders <clip> of pictures, or videos",
    RGB: "folders <clip> of pictures, or videos",
    OPTICAL: "folders <clip> with flow_x_*.jpg and flow_y_*.jpg, or u/<clip> and v/<clip>",
}
"""Where a modality may lie, for messages."""
