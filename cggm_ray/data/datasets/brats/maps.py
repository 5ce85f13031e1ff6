"""Writes predicted segmentations as NIfTI files, one per case."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cggm_ray.core.batch import Batch
from cggm_ray.core.optional import require
from cggm_ray.core.reduction import Reduce
from cggm_ray.data.datasets.brats.cases import Case
from cggm_ray.data.datasets.brats.labels import Convention
from cggm_ray.data.datasets.brats.volumes import grid
from cggm_ray.data.formats.nifti import with_nifti
from cggm_ray.data.loading.slices import Facts, VolumeSlices, centred


class MapWriter:
    """Collects the slices of a volume and writes `<case>_seg.nii.gz` when its last slice has arrived.

    The voxels are uint8. A case of NIfTI files gives its map its own grid: shape, order of the axes, sform and qform are those
    of its first sequence.

    Args:
        folder: where they go.
        split: whole volumes; only one of them is held.
        cases: by name.
        convention: of the labels in the maps.
    """

    def __init__(self, folder: Path, split: VolumeSlices, cases: Mapping[str, Case], convention: Convention) -> None:
        self._folder, self._split, self._cases, self._convention = folder, split, cases, convention
        self._slices: list[np.ndarray] = []
        self._nibabel = require("nibabel", extra="brats", purpose="maps")

    def take(self, batch: Batch, logits: Tensor) -> None:
        """Receives the logits of a batch of slices and writes the volumes that are complete."""
        assert batch.group is not None
        classes_NHW = logits.argmax(1).to(torch.uint8).cpu().numpy()
        for volume, classes_HW in zip(batch.group.tolist(), classes_NHW, strict=True):
            self._slices.append(classes_HW)
            facts = self._split.facts(volume)
            if len(self._slices) == len(facts.tumour):
                self._write(facts)
                self._slices = []

    def share(self, reduce: Reduce, device: torch.device) -> None:
        """Does nothing, because the files are already on disk."""

    def _write(self, facts: Facts) -> None:
        classes_DHW = centred(np.stack(self._slices), (facts.height, facts.width))
        labels = self._convention.written(np.moveaxis(classes_DHW, 0, 2))
        case = self._cases[facts.case]
        image = self._nibabel.Nifti1Image(labels, np.eye(4))
        if case.named:
            _place(image, grid(case.named).header.path)
        self._nibabel.save(image, self._folder / f"{facts.case}_seg.nii.gz")


def _place(image: Any, path: Path) -> None:
    """Copies sform and qform of a file, with their codes, to an image."""
    sform, qform, affine = with_nifti(
        path, lambda file: (file.get_sform(coded=True), file.get_qform(coded=True), file.affine)
    )
    image.header.set_xyzt_units("mm")
    # A form without a code in the file stays without one; the size of the voxels is kept then too.
    image.set_sform(affine)
    image.set_qform(affine, code=0)
    image.set_qform(*qform)
    image.set_sform(*sform)
