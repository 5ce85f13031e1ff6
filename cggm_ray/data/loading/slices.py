"""Shards of image slices, one file a volume, read slice by slice.

Training takes one random tumour slice of every volume and epoch; evaluation streams all slices of all volumes. Neither
holds more than the slices of a few batches in memory. Shapes: N slices, H and W pixels, S pixels of a square crop.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from cggm_ray.core.batch import Batch
from cggm_ray.core.errors import DataError
from cggm_ray.core.seeding import derive_seed
from cggm_ray.data.loading.sampler import Slice
from cggm_ray.data.loading.split import unreadable
from cggm_ray.data.loading.stream import device_batches
from cggm_ray.data.shards.packed import unpack
from cggm_ray.data.shards.reading import open_shard
from cggm_ray.data.shards.shards import IDENTITY, INDEX, TARGET, UNREADABLE, Manifest, column_values, tensor_column

FACTS = b"slices"
STRIDE = 16
"""Images are padded to a multiple of this."""
AHEAD = 2
"""Number of batches that are read ahead."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Properties of the slices of a volume, from the footer of its file.

    Attributes:
        case: name of the volume.
        height, width: pixels of a slice.
        tumour: tumour pixels of every slice.
        filled: whether a slice shows anything.
        labelled: whether the volume has labels; without, all of them are 0 and mean nothing.
    """

    case: str
    height: int
    width: int
    tumour: list[int]
    filled: list[bool]
    labelled: bool = True

    @property
    def has_tumour(self) -> bool:
        """Whether a slice shows tumour."""
        return any(self.tumour)

    @property
    def drawable(self) -> list[int]:
        """Slices from which training draws: those with tumour, or if there are none, those that are not empty."""
        with_tumour = np.flatnonzero(self.tumour).tolist()
        return with_tumour or np.flatnonzero(self.filled).tolist()


def slice_table(image: Mapping[str, np.ndarray], label: np.ndarray | None, *, case: str, start: int) -> pa.Table:
    """Returns a volume as a table with one row per slice, and the facts in its metadata.

    Args:
        image: by sequence, [H, W, D].
        label: classes [H, W, D]; None where the volume has no labels.
        case: name of the volume.
        start: index of the first slice in its split.
    """
    labelled = label is not None
    label = np.zeros(next(iter(image.values())).shape, dtype=np.uint8) if label is None else label
    height, width, slices = label.shape
    columns = {name: tensor_column(np.moveaxis(values, 2, 0).astype(np.float16)) for name, values in image.items()}
    columns[TARGET] = tensor_column(np.moveaxis(label, 2, 0))
    columns[INDEX] = pa.array(np.arange(start, start + slices))
    columns[IDENTITY] = pa.array([f"{case}:{number}" for number in range(slices)])
    shown = np.any([values.any(axis=(0, 1)) for values in image.values()], axis=0)
    tumour = (label > 0).sum(axis=(0, 1))
    facts = Facts(
        case=case, height=height, width=width, tumour=tumour.tolist(), filled=shown.tolist(), labelled=labelled
    )
    return pa.table(columns).replace_schema_metadata({FACTS: json.dumps(asdict(facts)).encode()})


class SliceFiles:
    """The files of a split.

    Args:
        folder: of the set.
        manifest: of the set.
        split: name.
        modalities: columns to read.

    Raises:
        DataError: a file cannot be read.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: str, modalities: Sequence[str]) -> None:
        self.paths = [folder / shard.file for shard in manifest.splits[split]]
        self.modalities = list(modalities)
        self.split = split
        self.facts = [read_facts(path) for path in self.paths]

    def read(self, volume: int, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Returns slices of one volume in the order of `rows`.

        The image is float16 [N, modalities, H, W], the classes are uint8 [N, H, W].
        """
        path = self.paths[volume]
        file = _open(path)
        ends = np.cumsum([file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)])
        groups = np.searchsorted(ends, rows, side="right")
        needed, place = np.unique(groups, return_inverse=True)
        starts = np.concatenate([[0], ends])
        sizes = (starts[1:] - starts[:-1])[needed]
        offsets = np.concatenate([[0], np.cumsum(sizes)])[place] + (np.asarray(rows) - starts[groups])
        try:
            table = unpack(file.read_row_groups(needed.tolist(), columns=[*self.modalities, TARGET]))
        except UNREADABLE as error:
            raise unreadable(path.parent, path, error) from None
        image = np.stack([column_values(table.column(name))[offsets] for name in self.modalities], 1)
        return image, column_values(table.column(TARGET))[offsets]


def read_facts(path: Path) -> Facts:
    """Returns the facts about a volume without reading its slices.

    Raises:
        DataError: the file cannot be read.
    """
    return Facts(**json.loads(_open(path).schema_arrow.metadata[FACTS]))


def require_tumour(found: Iterable[bool], split: str, cases: int, where: Path) -> None:
    """Raises a DataError unless a case has a tumour.

    Args:
        found: whether each case has one; it is read up to the first case that has.
        split: of the cases.
        cases: their number.
        where: they lie, for the message.

    Raises:
        DataError: none has.
    """
    if any(found):
        return
    if split == "train":
        raise DataError(
            f"{where}: none of the {cases} training cases has a tumour; expected labels other than 0 in at least one"
        )
    raise DataError(
        f"{where}: none of the {cases} cases of split {split} has a tumour, which --score slice needs; use --score volume"
    )


class TumourSlices:
    """The training split: augmented slices of every volume, drawn anew in every epoch.

    Which slice, and how it is augmented, is a function of (seed, epoch, sample).

    Args:
        files: of the split.
        seed: of the run.
        crop: S.
        draws: slices of a volume; sample i is of volume i modulo their number.
        device: where batches go.

    Raises:
        DataError: no volume has a tumour.
    """

    groups: int | None = None

    def __init__(self, files: SliceFiles, *, seed: int, crop: int, device: torch.device, draws: int = 1) -> None:
        require_tumour(
            (facts.has_tumour for facts in files.facts), files.split, len(files.facts), files.paths[0].parent
        )
        self.names: Sequence[str] | None = [facts.case for facts in files.facts] * draws
        self._files, self._seed, self._crop, self._device = files, seed, crop, device

    def __len__(self) -> int:
        return len(self.names or ())

    def batches(self, plan: Iterable[Slice], epoch: int) -> Iterator[Batch]:
        """Returns a batch for every slice of the plan, on the device."""
        return _widened(device_batches(lambda part: self._batch(part, epoch), plan, AHEAD, self._device))

    def draw(self, sample: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the image float32 [modalities, S, S] and the classes uint8 [S, S] of a sample in an epoch."""
        random = np.random.default_rng(derive_seed(self._seed, "augment", epoch, sample))
        volume = sample % len(self._files.facts)
        row = int(random.choice(self._files.facts[volume].drawable))
        image, label = self._files.read(volume, [row])
        pixels = (self._crop, self._crop)
        return augmented(centred(image[0].astype(np.float32), pixels), centred(label[0], pixels), random)

    def _batch(self, part: Slice, epoch: int) -> Batch:
        images, labels = zip(*(self.draw(int(sample), epoch) for sample in part.index), strict=True)
        return _batch(self._files.modalities, np.stack(images), np.stack(labels), part)


class VolumeSlices:
    """A split for evaluation: slices of all volumes in order, numbered by volume.

    Args:
        files: of the split.
        crop: slices without tumour are left out and the rest are cropped to this size (the released convention); None
            keeps whole volumes, in the middle of a frame that holds the largest.
        device: where batches go.

    Raises:
        DataError: slices without tumour are left out, and that leaves none.
    """

    def __init__(self, files: SliceFiles, *, crop: int | None, device: torch.device) -> None:
        self._files, self._device = files, device
        if crop is not None:
            found = (facts.has_tumour for facts in files.facts)
            require_tumour(found, files.split, len(files.facts), files.paths[0].parent)
        kept = [[row for row, pixels in enumerate(f.tumour) if pixels or crop is None] for f in files.facts]
        self._volume = np.concatenate([np.full(len(rows), volume) for volume, rows in enumerate(kept)])
        self._row = np.concatenate([np.asarray(rows, dtype=np.int64) for rows in kept])
        height, width = (max(sizes) for sizes in zip(*((f.height, f.width) for f in files.facts), strict=True))
        self._pixels = (crop, crop) if crop else (_padded(height), _padded(width))
        self.groups: int | None = len(files.facts)
        self.names: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self._row)

    def batches(self, plan: Iterable[Slice], epoch: int) -> Iterator[Batch]:
        """Returns a batch for every slice of the plan, on the device."""
        return _widened(device_batches(self._batch, plan, AHEAD, self._device))

    def facts(self, volume: int) -> Facts:
        """Returns the facts about a volume."""
        return self._files.facts[volume]

    def largest(self, most: int) -> list[tuple[str, int]]:
        """Returns the case and the index of the slice with most tumour, for the first volumes that have slices."""
        found = []
        for volume, facts in enumerate(self._files.facts[:most]):
            members = np.flatnonzero(self._volume == volume)
            if len(members):
                pixels = np.asarray(facts.tumour)[self._row[members]]
                found.append((facts.case, int(members[pixels.argmax()])))
        return found

    def _batch(self, part: Slice) -> Batch:
        rows = part.index.numpy()
        volume, row = self._volume[rows], self._row[rows]
        images, labels = [], []
        for number in np.unique(volume):
            image, label = self._files.read(int(number), row[volume == number])
            images.append(centred(image, self._pixels))
            labels.append(centred(label, self._pixels))
        # Rows of a plan ascend, so the slices of a volume lie together.
        group = torch.from_numpy(volume)
        batch = _batch(self._files.modalities, np.concatenate(images), np.concatenate(labels), part, group)
        if all(facts.labelled for facts in self._files.facts):
            return batch
        labelled = torch.tensor([self._files.facts[number].labelled for number in volume.tolist()])
        return replace(batch, labelled=labelled)


def centred(values: np.ndarray, pixels: tuple[int, int]) -> np.ndarray:
    """Returns the middle of images [..., H, W], padded with zeros if they are smaller: [..., *pixels]."""
    for axis, wanted in zip((values.ndim - 2, values.ndim - 1), pixels, strict=True):
        spare = values.shape[axis] - wanted
        if spare >= 0:
            values = np.take(values, np.arange(spare // 2, spare // 2 + wanted), axis)
        else:
            before = -spare // 2
            values = np.pad(values, [(before, -spare - before) if a == axis else (0, 0) for a in range(values.ndim)])
    return values


def augmented(image: np.ndarray, label: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Applies the released augmentation: 0, 90 or 180 degrees, a flip along one axis, noise on one image in ten.

    Args:
        image: float32 [modalities, S, S].
        label: [S, S].
        random: what to draw from.
    """
    turns, axis = int(random.integers(3)), int(random.integers(1, 3))
    image = np.flip(np.rot90(image, turns, (1, 2)), axis)
    label = np.flip(np.rot90(label, turns), axis - 1)
    if random.random() < 0.1:
        image = image + random.normal(0, random.uniform(0, 0.1), image.shape).astype(np.float32)
    return np.ascontiguousarray(image), np.ascontiguousarray(label)


def _open(path: Path) -> pq.ParquetFile:
    try:
        return open_shard(path)
    except UNREADABLE as error:
        raise unreadable(path.parent, path, error) from None


def _batch(
    names: Sequence[str], image: np.ndarray, label: np.ndarray, part: Slice, group: Tensor | None = None
) -> Batch:
    """Returns a batch in the types of the arrays, which are narrow where they come from shards."""
    pixels = torch.from_numpy(image)
    inputs = {name: pixels[:, number : number + 1].contiguous() for number, name in enumerate(names)}
    target = torch.from_numpy(label)
    return Batch(inputs=inputs, target=target, index=part.index, group=group, weight=part.weight)


def _widened(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yields the batches with float32 images and int64 classes: the device widens what was copied to it."""
    for batch in batches:
        inputs = {name: values.float() for name, values in batch.inputs.items()}
        yield replace(batch, inputs=inputs, target=batch.target.long())


def _padded(pixels: int) -> int:
    return -(-pixels // STRIDE) * STRIDE
