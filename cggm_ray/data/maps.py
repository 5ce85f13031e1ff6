"""Predicted segmentations as NIfTI files, one a case."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cggm_ray.batch import Batch
from cggm_ray.data.slices import VolumeSlices, centred
from cggm_ray.data.volumes import LABELS, geometry
from cggm_ray.modulation.base import Reduce


class MapWriter:
    """Puts the slices of a volume together and writes `<case>_seg.nii.gz` when its last one is there.

    The voxels are uint8 with the labels of the challenge. A case of NIfTI files gives its map the same place in space.

    Args:
        folder: where they go.
        split: whole volumes; only one of them is held.
        sources: case to the files that it was read from.
    """

    def __init__(self, folder: Path, split: VolumeSlices, sources: Mapping[str, Path]) -> None:
        self._folder, self._split, self._sources = folder, split, sources
        self._volume: int | None = None
        self._slices: list[np.ndarray] = []

    def take(self, batch: Batch, logits: Tensor) -> None:
        """See `Collector`."""
        assert batch.group is not None
        classes_NHW = logits.argmax(1).to(torch.uint8).cpu().numpy()
        for volume, classes_HW in zip(batch.group.tolist(), classes_NHW, strict=True):
            self._volume = volume
            self._slices.append(classes_HW)
            if len(self._slices) == self._split.depth(volume):
                self._write()

    def share(self, reduce: Reduce, device: torch.device) -> None:
        """Nothing: files are on disk."""

    def _write(self) -> None:
        import nibabel

        assert self._volume is not None
        facts = self._split.facts(self._volume)
        classes_DHW = centred(np.stack(self._slices), (facts.height, facts.width))
        affine = geometry(self._sources[facts.case])
        image = nibabel.Nifti1Image(LABELS[np.moveaxis(classes_DHW, 0, 2)], affine)
        nibabel.save(image, self._folder / f"{facts.case}_seg.nii.gz")
        self._slices = []
