"""Predicted segmentations as NIfTI files, one a case."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cggm_ray.core.batch import Batch
from cggm_ray.core.reduction import Reduce
from cggm_ray.data.datasets.brats.volumes import LABELS, geometry
from cggm_ray.data.loading.slices import Facts, VolumeSlices, centred


class MapWriter:
    """Puts the slices of a volume together and writes `<case>_seg.nii.gz` when its last one is there.

    The voxels are uint8 with the labels of the challenge. A case of NIfTI files gives its map the same place in space.

    Args:
        folder: where they go.
        split: whole volumes; only one of them is held.
        sources: case to a raw file of it.
    """

    def __init__(self, folder: Path, split: VolumeSlices, sources: Mapping[str, Path]) -> None:
        self._folder, self._split, self._sources = folder, split, sources
        self._slices: list[np.ndarray] = []

    def take(self, batch: Batch, logits: Tensor) -> None:
        """See `Collector`."""
        assert batch.group is not None
        classes_NHW = logits.argmax(1).to(torch.uint8).cpu().numpy()
        for volume, classes_HW in zip(batch.group.tolist(), classes_NHW, strict=True):
            self._slices.append(classes_HW)
            facts = self._split.facts(volume)
            if len(self._slices) == len(facts.tumour):
                self._write(facts)
                self._slices = []

    def share(self, reduce: Reduce, device: torch.device) -> None:
        """Nothing: files are on disk."""

    def _write(self, facts: Facts) -> None:
        import nibabel

        classes_DHW = centred(np.stack(self._slices), (facts.height, facts.width))
        affine = geometry(self._sources[facts.case])
        image = nibabel.Nifti1Image(LABELS[np.moveaxis(classes_DHW, 0, 2)], affine)
        nibabel.save(image, self._folder / f"{facts.case}_seg.nii.gz")
