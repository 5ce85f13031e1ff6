"""UPMC-Food-101 (Wang et al. 2015): the dish from a photo and the text of its page.

Lists of the samples of train, test and maybe validation (JSON, JSON lines or CSV), with the images beside them.
Frozen ViT and BERT make the features, once (`cached`) or, for images, in every epoch anew (`online`).
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cggm_ray.core.errors import DataError, one_line
from cggm_ray.core.kinds import SEQUENCE
from cggm_ray.core.optional import check_installed
from cggm_ray.data.dataset import DATASETS, SPLITS, Dataset
from cggm_ray.data.datasets.food101.augment import image_remarks, inspect_image
from cggm_ray.data.datasets.food101.encoders import (
    STORED,
    EncoderInfo,
    ImageFeatures,
    check_same,
    checksums,
    find_again,
    find_bert,
    find_vit,
    load_tokenizer,
)
from cggm_ray.data.datasets.food101.food101_demo import write_demonstration
from cggm_ray.data.datasets.food101.food101_options import Food101Options
from cggm_ray.data.datasets.food101.food101_records import (
    Listed,
    Record,
    check_labels,
    read_lists,
    shared_images,
    stratified,
)
from cggm_ray.data.datasets.food101.image_text import (
    IMAGE,
    PATH,
    TEXT,
    VIEWS,
    DecodeImages,
    EncodeShard,
    Encoding,
    OnlineSplit,
)
from cggm_ray.data.datasets.food101.lists import find_lists, find_new_lists
from cggm_ray.data.loading.split import Split
from cggm_ray.data.shards.chunks import chunks
from cggm_ray.data.shards.shards import (
    IDENTITY,
    INDEX,
    LABELLED,
    PREDICT,
    TARGET,
    Manifest,
    RawShard,
    Source,
    Stage,
    TensorSpec,
)
from cggm_ray.data.shards.sources import describe_sources, file_version
from cggm_ray.tasks import Classification, Task

SHOWN = 20


@DATASETS.register("food101")
class Food101(Dataset):
    """Food-101: 101 dishes from image and text; the classes are those of the training data."""

    name = "food101"
    converter = 2
    network = "sequence"
    kind = SEQUENCE
    Options = Food101Options

    _new = False
    """Whether the data is only predicted."""

    @property
    def options(self) -> Food101Options:
        """The configuration's section of this dataset."""
        assert isinstance(self.settings.options, Food101Options)
        return self.settings.options

    @property
    def online(self) -> bool:
        """Whether images are encoded during training."""
        return self.options.image_features == "online"

    def shard_options(self) -> dict[str, Any]:
        """Returns the options that change a feature or a split."""
        names = (
            "image_features",
            "views",
            "text_length",
            "text_padding",
            "valid_share",
            "data_seed",
            "image_bits",
            "exif_orientation",
            "extract_precision",
        )
        return {name: getattr(self.options, name) for name in names}

    def locate(self, path: Path) -> list[Path]:
        """Returns the lists of a folder, and the files of both encoders."""
        check_installed("PIL", "transformers", extra=self.name, purpose=self.name)
        self._root = path if path.is_dir() else path.parent
        self._lists = find_lists(self._root)
        self._vit, self._bert = self._encoders({flag: self._beside(flag) for flag in ("vit", "bert")})
        return [*self._lists.files.values(), *self._vit.files, *self._bert.files]

    def locate_new(self, path: Path) -> list[Path]:
        """Returns the lists only, because the encoders are those of the run."""
        check_installed("PIL", "transformers", extra=self.name, purpose=self.name)
        self._root = path if path.is_dir() else path.parent
        self._lists, self._new = find_new_lists(path), True
        return list(self._lists.files.values())

    def describe(self, sources: list[Path]) -> tuple[Source, ...]:
        """Returns checksums of lists and encoders; the many images are described by name, size and time or version."""
        files = describe_sources(sources, self.settings.shard_root)
        self._listed = read_lists(self._lists, self._root, labelled=not self._new)
        if not self._new:
            check_labels(self._listed)
        self._say(*(f"{split}: {found}" for split, found in self._listed.items()))
        self._say(*(f"not read: {path}" for path in self._lists.unread))
        total, digest = 0, hashlib.sha256()
        for found in self._listed.values():
            for record in found.records:
                try:
                    if record.file is None:
                        raise FileNotFoundError
                    size, version = file_version(record.file)
                    total += size
                    digest.update(f"{record.image}\0{size}\0{version}\n".encode())
                except OSError:
                    digest.update(f"{record.image}\0missing\n".encode())
        return (*files, Source(path=str(self._root), bytes=total, sha256=digest.hexdigest()))

    def read(self, sources: list[Path]) -> Iterator[RawShard]:
        """Yields names and texts, after decoding every image once so that the extraction does not fail half way."""
        load_tokenizer(self._bert)
        splits, self._skipped, self._remarks = self._readable(self._listed, self.options.skip_bad)
        if "valid" not in splits:
            share, seed = self.options.valid_share, self.options.data_seed
            rest, valid = stratified(splits["train"], share, seed)
            splits = {"train": rest, "valid": valid, "test": splits["test"]}
            self._remarks.append(
                f"valid: no list; {len(valid)} records drawn from train, {len(rest)} stay there (valid_share {share}, "
                f"data_seed {seed})"
            )
        self._remarks += shared_images(splits)
        self._say(*self._remarks)
        self._classes = check_labels(self._listed)
        views = 0 if self.online else self.options.views
        for split in SPLITS:
            yield from self._shards(split, splits[split], views if split == "train" else 0)

    def read_new(self, sources: list[Path], trained: Manifest, split: str | None) -> Iterator[RawShard]:
        """Yields all records, or those of one list; every image must be readable, so that no prediction is missing."""
        if split is not None and split not in self._listed:
            raise DataError(
                f"{self._root}: found lists of {', '.join(self._listed)}; expected one of the split {split}"
            )
        listed = {part: found for part, found in self._listed.items() if split in (None, part)}
        self._classes = check_labels(listed, trained.notes["classes"])
        given = {flag: find_again(flag, trained.notes[flag], self._beside(flag)) for flag in ("vit", "bert")}
        self._vit, self._bert = self._encoders(given)
        check_same((self._vit, self._bert), trained.notes["encoders"], self.settings.shard_root)
        load_tokenizer(self._bert)
        splits, self._skipped, self._remarks = self._readable(listed, 0)
        self._say(*self._remarks)
        yield from self._shards(PREDICT, [record for records in splits.values() for record in records], 0)

    def _shards(self, split: str, records: list[Record], views: int) -> Iterator[RawShard]:
        number_of = {label: number for number, label in enumerate(self._classes)}
        sample_bytes = self._sample_bytes(max(1, 0 if self.online else self.options.views))
        labelled = all(record.label is not None for record in records)
        for number, rows in chunks(len(records), sample_bytes):
            part = records[rows]
            columns = {
                INDEX: pa.array(np.arange(rows.start, rows.stop)),
                IDENTITY: pa.array([record.id for record in part]),
                TARGET: pa.array(np.array([number_of.get(str(record.label), 0) for record in part], dtype=np.int64)),
                TEXT: pa.array([record.text for record in part]),
                PATH: pa.array([str(record.file) for record in part]),
                VIEWS: pa.array([views] * len(part)),
            }
            if not labelled:
                columns[LABELLED] = pa.array([record.label is not None for record in part])
            yield RawShard(split=split, number=number, table=pa.table(columns))

    def stages(self) -> tuple[Stage, ...]:
        """Returns the stages: decode and augment in tasks, encode in the processes that hold the models."""
        options = self.options
        encoding = Encoding(
            vit=None if self.online else self._vit,
            bert=self._bert,
            text_length=options.text_length,
            text_padding=options.text_padding,
            precision=options.extract_precision,
            batch=options.extract_batch,
            no_cuda=self.settings.no_cuda,
        )
        decode = functools.partial(
            DecodeImages,
            size=self._vit.size("image_size"),
            seed=options.data_seed,
            bits=options.image_bits,
            upright=options.exif_orientation,
        )
        return Stage(make=decode), Stage(make=functools.partial(EncodeShard, encoding), pooled=True)

    def notes(self) -> dict[str, Any]:
        """Returns class names, left-out images, remarks about the data, widths of the features, and the encoders."""
        return {
            "classes": self._classes,
            "skipped": self._skipped,
            "remarks": self._remarks,
            "widths": {IMAGE: self._vit.size("hidden_size"), TEXT: self._bert.size("hidden_size")},
            "vit": self._vit.reference,
            "bert": self._bert.reference,
            "encoders": checksums((self._vit, self._bert), self.settings.shard_root),
        }

    def specs(self, first: RawShard) -> dict[str, TensorSpec]:
        """Returns the specifications of the features, from the sizes of the encoders, or of the pixels."""
        stored = STORED[self.options.extract_precision]
        size, length = self._vit.size("image_size"), self.options.text_length
        features = TensorSpec(shape=(self._steps, self._vit.size("hidden_size")), dtype=stored)
        return {
            IMAGE: TensorSpec(shape=(size, size, 3), dtype="uint8") if self.online else features,
            TEXT: TensorSpec(shape=(length, self._bert.size("hidden_size")), dtype=stored),
            TARGET: TensorSpec(shape=(), dtype="int64"),
        }

    def accept(self, folder: Path, manifest: Manifest) -> None:
        """Raises a DataError if more images were left out than this run allows; repeats the remarks about the set."""
        self._allow(manifest.notes["skipped"], self.options.skip_bad)
        self._say(*manifest.notes["remarks"])

    def demonstration(self, folder: Path, seed: int) -> Path:
        """Writes `food101-<seed>`: JSON files, small JPEGs, a small random ViT and BERT with its vocabulary."""
        check_installed("PIL", "transformers", extra=self.name, purpose=self.name)
        path = folder / f"food101-{seed}"
        if not path.exists():
            write_demonstration(path, seed)
        return path

    def task(self, manifest: Manifest) -> Task:
        """Returns cross-entropy over the classes of the data."""
        return Classification(len(manifest.notes["classes"]))

    def shapes(self, manifest: Manifest, modalities: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of the features, even if the shards hold pixels."""
        return {name: (*manifest.modalities[name].shape[:1], manifest.notes["widths"][name]) for name in modalities}

    def open_split(
        self, folder: Path, manifest: Manifest, split: str, modalities: tuple[str, ...], device: torch.device
    ) -> Split:
        """Opens the features; online, pixels that become features when they are needed."""
        if not self.online or IMAGE not in modalities:
            return super().open_split(folder, manifest, split, modalities, device)
        pixels = super().open_split(folder, manifest, split, modalities, torch.device("cpu"))
        return OnlineSplit(pixels, self._image_encoder(manifest, device), split == "train", self.settings.seed)

    def _image_encoder(self, manifest: Manifest, device: torch.device) -> ImageFeatures:
        """Loads one ViT for all splits."""
        if not hasattr(self, "_image_features"):
            info = find_vit(self.options.vit or manifest.notes["vit"])
            self._image_features = ImageFeatures(
                info, self.options.extract_precision, self.options.extract_batch, device
            )
        return self._image_features

    def _beside(self, flag: str) -> str | None:
        """Returns the folder of an encoder beside the lists or in the data folder, or None."""
        folders = (folder / flag for folder in (self._lists.folder, self._root))
        return next((str(folder) for folder in folders if folder.is_dir()), None)

    def _encoders(self, defaults: Mapping[str, str | None]) -> tuple[EncoderInfo, EncoderInfo]:
        """Returns the encoders of the options, or the defaults."""

        def value(flag: str) -> str:
            found = getattr(self.options, flag) or defaults[flag]
            if found is None:
                raise DataError(
                    f"{flag}: expected a local folder or a hub name; {self._root} has no folder {flag} either"
                )
            return str(found)

        return find_vit(value("vit")), find_bert(value("bert"), self.options.text_length)

    @property
    def _steps(self) -> int:
        """Returns the number of steps: patches of an image, and the class token."""
        return (self._vit.size("image_size") // self._vit.size("patch_size")) ** 2 + 1

    def _sample_bytes(self, views: int) -> int:
        """Returns the bytes of a sample: the larger of features and pixels."""
        size, width, steps = self._vit.size("image_size"), self._vit.size("hidden_size"), self._steps
        item = np.dtype(STORED[self.options.extract_precision]).itemsize
        text = self.options.text_length * self._bert.size("hidden_size") * item
        return max(steps * width * item, size * size * 3) * views + text

    def _readable(
        self, splits: dict[str, Listed], allowed: int
    ) -> tuple[dict[str, list[Record]], dict[str, str], list[str]]:
        """Returns the records with readable images, the other images with the reason, and remarks about the images."""
        size, bits = self._vit.size("image_size"), self.options.image_bits
        files = {record.image: record.file for found in splits.values() for record in found.records}
        names = sorted(files)
        with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
            inspected = list(pool.map(lambda name: inspect_image(files[name], size, bits), names))
        bad = {name: image.problem for name, image in zip(names, inspected, strict=True) if image.problem is not None}
        self._allow(bad, allowed)
        kept = {split: [r for r in found.records if r.image not in bad] for split, found in splits.items()}
        for split, records in kept.items():
            if not records:
                raise DataError(f"{splits[split].path}: no image of {split} can be read")
        return kept, bad, image_remarks(inspected, self.options.exif_orientation)

    def _say(self, *lines: str) -> None:
        """Prints a summary of the data before training starts."""
        for line in lines:
            print(f"{self.name}: {one_line(line)}", flush=True)

    def _allow(self, bad: dict[str, str], allowed: int) -> None:
        """Prints the unreadable images; raises DataError if there are more than the options allow."""
        if not bad:
            return
        lines = [f"{name}: {reason}" for name, reason in bad.items()]
        if len(bad) <= allowed:
            print("\n".join(f"left out (skip_bad {allowed}): {line}" for line in lines), file=sys.stderr)
            return
        shown = "; ".join(lines[:SHOWN])
        if len(lines) > SHOWN:
            path = self.settings.shard_root / "food101-unreadable.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(lines) + "\n")
            shown += f"; and {len(lines) - SHOWN} more, all in {path}"
        raise DataError(f"{self._root}: {len(bad)} images cannot be read, skip_bad allows {allowed}: {shown}")
