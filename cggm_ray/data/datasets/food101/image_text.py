"""Turns image files and texts into features: two stages of the conversion, and a split that encodes images during training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from cggm_ray.core.batch import Batch
from cggm_ray.core.errors import DataError
from cggm_ray.data.datasets.food101.augment import augmented, resized
from cggm_ray.data.datasets.food101.encoders import (
    EncoderInfo,
    ImageFeatures,
    TextFeatures,
    extraction_device,
    stored,
)
from cggm_ray.data.loading.sampler import Slice
from cggm_ray.data.loading.split import Split, view_columns
from cggm_ray.data.loading.stream import ahead
from cggm_ray.data.shards.shards import INDEX, VIEW, column_values, tensor_column
from cggm_ray.storage.places import as_path

IMAGE, TEXT = "image", "text"
PATH, VIEWS = "path", "views"
"""Columns of a raw table: the image file, and how many augmented views of it to make (0: the image as it is)."""
BATCHES_AHEAD = 2


@dataclass(frozen=True, kw_only=True)
class DecodeImages:
    """First stage, in CPU tasks: it decodes image files to pixels uint8 [size, size, 3], with augmented views on request.

    Attributes:
        size: of the square.
        seed: of the views.
        bits: of the camera, for grey images of more than 8 bits.
        upright: turn images as their EXIF data say.
    """

    size: int
    seed: int
    bits: int | None = None
    upright: bool = False

    def __call__(self, table: pa.Table) -> pa.Table:
        """Returns a raw table with one column `image`, or several views, in place of `path` and `views`.

        Raises:
            DataError: an image cannot be read.
        """
        paths, samples = table.column(PATH).to_pylist(), table.column(INDEX).to_pylist()
        (views,) = set(table.column(VIEWS).to_pylist())
        images = [self._decoded(path) for path in paths]
        table = table.drop_columns([PATH, VIEWS])
        for view in range(max(1, views)):
            made = [augmented(i, self.seed, s, view) for i, s in zip(images, samples, strict=True)] if views else images
            table = table.append_column(f"{VIEW}{view}/{IMAGE}" if view else IMAGE, tensor_column(np.stack(made)))
        return table

    def _decoded(self, path: str) -> np.ndarray:
        try:
            return resized(as_path(path), self.size, self.bits, self.upright)
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{path}: the image can no longer be read: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Settings of the computation of features.

    Attributes:
        vit: image encoder; None leaves the pixels as they are.
        bert: text encoder.
        text_length: pieces of a text.
        text_padding: 'released' keeps BERT's output for the padding, 'zero' replaces it by zeros.
        precision: of the computation.
        batch: samples at once.
        no_cuda: stay on the CPU.
    """

    vit: EncoderInfo | None
    bert: EncoderInfo
    text_length: int
    text_padding: str
    precision: str
    batch: int
    no_cuda: bool


class EncodeShard:
    """Second stage, in long-lived processes that hold the encoders: it turns pixels and texts into features."""

    def __init__(self, encoding: Encoding) -> None:
        device = extraction_device(encoding.no_cuda)
        self._encoding = e = encoding
        self._texts = TextFeatures(e.bert, e.text_length, e.text_padding, e.precision, e.batch, device)
        self._images = None if e.vit is None else ImageFeatures(e.vit, e.precision, e.batch, device)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Replaces every image column and the texts by features.

        Raises:
            DataError: a feature is not finite.
        """
        e = self._encoding
        texts = stored(self._texts(table.column(TEXT).to_pylist()), e.bert, e.precision)
        table = table.drop_columns([TEXT])
        if self._images is not None and e.vit is not None:
            for name in view_columns(table.column_names, IMAGE):
                pixels = torch.from_numpy(column_values(table.column(name)))
                features = tensor_column(stored(self._images(pixels), e.vit, e.precision))
                table = table.set_column(table.column_names.index(name), name, features)
        return table.append_column(TEXT, tensor_column(texts))


class OnlineSplit:
    """A split of pixels that augments its images anew in every epoch and encodes them when they are needed.

    Args:
        pixels: the split with pixels uint8 [N, H, W, 3] as `image`, on the CPU.
        encoder: of the images.
        augment: whether to augment them; validation and test do not.
        seed: of the augmentation, a function of it, the epoch and the sample.
    """

    def __init__(self, pixels: Split, encoder: ImageFeatures, augment: bool, seed: int) -> None:
        self._pixels = pixels
        self._encoder = encoder
        self._augment = augment
        self._seed = seed
        self.names = pixels.names
        self.groups = pixels.groups

    def __len__(self) -> int:
        return len(self._pixels)

    def batches(self, plan: Iterable[Slice], epoch: int) -> Iterator[Batch]:
        """Yields a batch for every slice of the plan, with encoded images."""

        def augment(batch: Batch) -> Batch:
            images = batch.inputs[IMAGE].numpy()
            new = [augmented(i, self._seed, s, epoch) for i, s in zip(images, batch.index.tolist(), strict=True)]
            made = dataclasses.replace(batch, inputs={**batch.inputs, IMAGE: torch.from_numpy(np.stack(new))})
            return made.pinned() if self._encoder.device.type == "cuda" else made

        batches = self._pixels.batches(plan, epoch)
        for batch in ahead(augment, batches, BATCHES_AHEAD) if self._augment else batches:
            images = self._encoder(batch.inputs.pop(IMAGE)).float()
            moved = batch.to(self._encoder.device)
            # The network orders the modalities by its encoders, so their order here does not matter.
            moved.inputs[IMAGE] = images
            yield moved
