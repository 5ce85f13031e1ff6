"""UPMC-Food-101 (Wang et al. 2015): the dish from a photo and the text of its page.

`train.json`, `test.json` and, if there is one, `dev.json`: lists of {id, text_tokens, img_path, label}; images beside them.
Frozen ViT and BERT make the features, once (`cached`) or, for images, in every epoch anew (`online`).
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cggm_ray.config.fields import option
from cggm_ray.core.errors import DataError, UsageError
from cggm_ray.data.dataset import DATASETS, SPLITS, Dataset
from cggm_ray.data.datasets.food101.augment import image_problem, require_pillow
from cggm_ray.data.datasets.food101.encoders import (
    EXTRACT_PRECISIONS,
    STORED,
    EncoderInfo,
    ImageFeatures,
    find_bert,
    find_vit,
    load_tokenizer,
)
from cggm_ray.data.datasets.food101.food101_demo import write_demonstration
from cggm_ray.data.datasets.food101.food101_records import FILES, Record, check_labels, read_records, stratified
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
from cggm_ray.data.loading.split import Split
from cggm_ray.data.settings import DatasetOptions
from cggm_ray.data.shards.shards import (
    IDENTITY,
    INDEX,
    SHARD_BYTES,
    TARGET,
    Manifest,
    RawShard,
    Source,
    Stage,
    TensorSpec,
    describe_sources,
)
from cggm_ray.tasks import Classification, Task

IMAGE_FEATURES = ("cached", "online")
PADDINGS = ("released", "zero")
SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Food101Options(DatasetOptions):
    """Encoders and features of Food-101."""

    vit: str | None = option(
        None, "ViT, a local folder or a hub name; default the folder vit beside train.json", resume=True, path=True
    )
    bert: str | None = option(
        None,
        "BERT with its tokenizer, a local folder or a hub name; default the folder bert beside train.json",
        resume=True,
        path=True,
    )
    image_features: str = option(
        "cached", "cached: extracted once; online: a fresh augmentation in every epoch, encoded while training"
    )
    views: int = option(1, "augmented views of a training image to cache; one is drawn in every epoch")
    text_length: int = option(50, "pieces of a text, with both ends")
    text_padding: str = option("released", "padding of a text: released (what BERT makes of it) or zero")
    valid_share: float = option(0.1, "part of train that becomes the validation set where dev.json is missing")
    data_seed: int = option(0, "seed of the validation part and of cached views; seed does not touch them")
    skip_bad: int = option(0, "unreadable images to leave out at most", resume=True)
    extract_precision: str = option(
        "fp32", "precision of ViT and BERT: fp32, bf16, fp16; half precision is stored as fp16"
    )
    extract_batch: int = option(32, "samples that ViT or BERT encode at once", resume=True)

    def __post_init__(self) -> None:
        choices = {
            "image_features": IMAGE_FEATURES,
            "text_padding": PADDINGS,
            "extract_precision": tuple(EXTRACT_PRECISIONS),
        }
        for name, names in choices.items():
            if getattr(self, name) not in names:
                raise UsageError(f"{name}: unknown {getattr(self, name)!r}; available: {', '.join(names)}")
        for name, least in {"views": 1, "text_length": 2, "data_seed": 0, "skip_bad": 0, "extract_batch": 1}.items():
            if getattr(self, name) < least:
                raise UsageError(f"{name}: found {getattr(self, name)}; expected a whole number of at least {least}")
        if not 0 < self.valid_share < 1:
            raise UsageError(f"valid_share: found {self.valid_share}; expected a number between 0 and 1")
        if self.image_features == "online" and self.views > 1:
            raise UsageError(
                f"views: {self.views} views are for image_features cached; online makes one in every epoch"
            )


@DATASETS.register("food101")
class Food101(Dataset):
    """Food-101: 101 dishes from image and text; the classes are those of the training data."""

    name = "food101"
    converter = 1
    network = "sequence"
    Options = Food101Options

    @property
    def options(self) -> Food101Options:
        """Those of the configuration."""
        assert isinstance(self.settings.options, Food101Options)
        return self.settings.options

    @property
    def online(self) -> bool:
        """Whether images are encoded while training."""
        return self.options.image_features == "online"

    def shard_options(self) -> dict[str, Any]:
        """Everything that changes a feature or a split."""
        names = (
            "image_features",
            "views",
            "text_length",
            "text_padding",
            "valid_share",
            "data_seed",
            "extract_precision",
        )
        return {name: getattr(self.options, name) for name in names}

    def locate(self, path: Path) -> list[Path]:
        """The JSON files of a folder, and the files of both encoders."""
        require_pillow()
        self._root = path if path.is_dir() else path.parent
        for split in ("train", "test"):
            if not (self._root / FILES[split]).is_file():
                raise DataError(
                    f"{self._root}: {FILES[split]} is missing; expected train.json, test.json and maybe dev.json"
                )
        self._vit, self._bert = self._encoders(self._root)
        jsons = [self._root / file for file in FILES.values() if (self._root / file).is_file()]
        return [*jsons, *self._vit.files, *self._bert.files]

    def describe(self, sources: list[Path]) -> tuple[Source, ...]:
        """Checksums of JSON files and encoders; images by name, size and time of change, since they are many."""
        files = describe_sources(sources, self.settings.shard_root)
        self._records = {split: read_records(path) for split, path in zip(self._splits(sources), sources, strict=False)}
        check_labels(self._records, self._root)
        total, digest = 0, hashlib.sha256()
        for records in self._records.values():
            for record in records:
                try:
                    stat = (self._root / record.image).stat()
                    total += stat.st_size
                    digest.update(f"{record.image}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
                except OSError:
                    digest.update(f"{record.image}\0missing\n".encode())
        return (*files, Source(path=str(self._root), bytes=total, sha256=digest.hexdigest()))

    def read(self, sources: list[Path]) -> Iterator[RawShard]:
        """Names and texts; every image was decoded once by now, so the extraction does not stop half way."""
        load_tokenizer(self._bert)
        splits, self._skipped = self._readable(self._records)
        if "valid" not in splits:
            rest, valid = stratified(splits["train"], self.options.valid_share, self.options.data_seed)
            splits = {"train": rest, "valid": valid, "test": splits["test"]}
        self._classes = check_labels(splits, self._root)
        number_of = {label: number for number, label in enumerate(self._classes)}
        views = 0 if self.online else self.options.views
        for split in SPLITS:
            step = max(1, SHARD_BYTES // self._sample_bytes(max(1, views)))
            records = splits[split]
            for number, start in enumerate(range(0, len(records), step)):
                part = records[start : start + step]
                columns = {
                    INDEX: pa.array(np.arange(start, start + len(part))),
                    IDENTITY: pa.array([record.id for record in part]),
                    TARGET: pa.array(np.array([number_of[record.label] for record in part], dtype=np.int64)),
                    TEXT: pa.array([record.text for record in part]),
                    PATH: pa.array([str(self._root / record.image) for record in part]),
                    VIEWS: pa.array([views if split == "train" else 0] * len(part)),
                }
                yield RawShard(split=split, number=number, table=pa.table(columns))

    def stages(self) -> tuple[Stage, ...]:
        """Decode and augment in tasks, encode where the models are."""
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
        decode = functools.partial(DecodeImages, size=self._vit.size("image_size"), seed=options.data_seed)
        return Stage(make=decode), Stage(make=functools.partial(EncodeShard, encoding), pooled=True)

    def notes(self) -> dict[str, Any]:
        """Class names, left-out images, widths of the features, and the ViT."""
        return {
            "classes": self._classes,
            "skipped": self._skipped,
            "widths": {IMAGE: self._vit.size("hidden_size"), TEXT: self._bert.size("hidden_size")},
            "vit": self._vit.reference,
        }

    def specs(self, first: RawShard) -> dict[str, TensorSpec]:
        """Those of the features, from the sizes of the encoders, or of the pixels."""
        stored = STORED[self.options.extract_precision]
        size, length = self._vit.size("image_size"), self.options.text_length
        features = TensorSpec(shape=(self._steps, self._vit.size("hidden_size")), dtype=stored)
        return {
            IMAGE: TensorSpec(shape=(size, size, 3), dtype="uint8") if self.online else features,
            TEXT: TensorSpec(shape=(length, self._bert.size("hidden_size")), dtype=stored),
            TARGET: TensorSpec(shape=(), dtype="int64"),
        }

    def accept(self, folder: Path, manifest: Manifest) -> None:
        """Stops where more images were left out than this run allows."""
        self._allow(manifest.notes["skipped"])

    def demonstration(self, folder: Path, seed: int) -> Path:
        """`food101-<seed>`: JSON files, small JPEGs, a small random ViT and BERT with its vocabulary."""
        require_pillow()
        path = folder / f"food101-{seed}"
        if not path.exists():
            write_demonstration(path, seed)
        return path

    def task(self, manifest: Manifest) -> Task:
        """Cross-entropy over the classes of the data."""
        return Classification(len(manifest.notes["classes"]))

    def shapes(self, manifest: Manifest, modalities: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
        """Those of the features, also where the shards hold pixels."""
        return {name: (*manifest.modalities[name].shape[:1], manifest.notes["widths"][name]) for name in modalities}

    def open_split(
        self, folder: Path, manifest: Manifest, split: str, modalities: tuple[str, ...], device: torch.device
    ) -> Split:
        """Features; online, pixels that turn into features when they are asked for."""
        if not self.online or IMAGE not in modalities:
            return super().open_split(folder, manifest, split, modalities, device)
        pixels = super().open_split(folder, manifest, split, modalities, torch.device("cpu"))
        return OnlineSplit(pixels, self._image_encoder(manifest, device), split == "train", self.settings.seed)

    def _image_encoder(self, manifest: Manifest, device: torch.device) -> ImageFeatures:
        """One ViT for all splits."""
        if not hasattr(self, "_image_features"):
            info = find_vit(self.options.vit or manifest.notes["vit"])
            self._image_features = ImageFeatures(
                info, self.options.extract_precision, self.options.extract_batch, device
            )
        return self._image_features

    def _encoders(self, root: Path) -> tuple[EncoderInfo, EncoderInfo]:
        def value(flag: str) -> str:
            given = getattr(self.options, flag)
            if given is None and not (root / flag).is_dir():
                raise DataError(f"{flag}: expected a local folder or a hub name; {root} has no folder {flag} either")
            return str(given if given is not None else root / flag)

        return find_vit(value("vit")), find_bert(value("bert"), self.options.text_length)

    def _splits(self, sources: list[Path]) -> list[str]:
        return [split for split, file in FILES.items() if self._root / file in sources]

    @property
    def _steps(self) -> int:
        """Patches of an image, and the class token."""
        return (self._vit.size("image_size") // self._vit.size("patch_size")) ** 2 + 1

    def _sample_bytes(self, views: int) -> int:
        """The larger of features and pixels."""
        size, width, steps = self._vit.size("image_size"), self._vit.size("hidden_size"), self._steps
        item = np.dtype(STORED[self.options.extract_precision]).itemsize
        text = self.options.text_length * self._bert.size("hidden_size") * item
        return max(steps * width * item, size * size * 3) * views + text

    def _readable(self, splits: dict[str, list[Record]]) -> tuple[dict[str, list[Record]], dict[str, str]]:
        """The records whose image can be read, and the others' images with the reason."""
        size = self._vit.size("image_size")
        names = sorted({record.image for records in splits.values() for record in records})
        with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
            found = pool.map(lambda name: image_problem(self._root / name, size), names)
            bad = {name: reason for name, reason in zip(names, found, strict=True) if reason is not None}
        self._allow(bad)
        kept = {split: [r for r in records if r.image not in bad] for split, records in splits.items()}
        for split, records in kept.items():
            if not records:
                raise DataError(f"{self._root / FILES[split]}: no image of {split} can be read")
        return kept, bad

    def _allow(self, bad: dict[str, str]) -> None:
        """Lists unreadable images; raises DataError where there are more than `skip_bad`."""
        if not bad:
            return
        lines = [f"{name}: {reason}" for name, reason in bad.items()]
        allowed = self.options.skip_bad
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
