"""Pictures of a segmentation: the image, the truth and the prediction side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from cggm_ray.core.optional import require
from cggm_ray.data.datasets.brats.brats import BratsOptions
from cggm_ray.data.loading.sampler import Slice
from cggm_ray.data.loading.slices import VolumeSlices
from cggm_ray.data.loading.split import Split
from cggm_ray.data.settings import DatasetOptions
from cggm_ray.models.net import MultimodalNet
from cggm_ray.runs.pictures import NOTES, PICTURES
from cggm_ray.storage.files import write_text
from cggm_ray.tasks.metrics import CAVITY_REGIONS, TUMOUR_REGIONS, region_dice

COLOURS = np.array([[0, 0, 0], [220, 50, 47], [38, 139, 210], [240, 200, 30], [70, 170, 90]], dtype=np.float64)
"""Of the classes: none, red for the necrotic core, blue for oedema, yellow for enhancing tumour, green for the cavity."""
NAMES = {1: "necrotic core", 2: "oedema", 3: "enhancing tumour", 4: "resection cavity"}
TUMOUR_CLASSES = range(4)
"""Without a resection cavity, which sets of 2024 have."""
OPACITY = 0.5
LIGHTEST = 99.5


@PICTURES.register("brats")
def draw(folder: Path, net: MultimodalNet, split: Split, options: DatasetOptions) -> Iterator[Path] | None:
    """Draws as many test cases as the options say; see `draw_overlays`."""
    assert isinstance(split, VolumeSlices)
    assert isinstance(options, BratsOptions)
    return draw_overlays(folder, net, split, options.overlays) if options.overlays else None


@torch.no_grad()
def draw_overlays(folder: Path, net: MultimodalNet, split: VolumeSlices, most: int) -> Iterator[Path]:
    """Draws `<case>.png` for the first cases, one a step: image, truth and prediction of the slice with most tumour.

    `cases.json` beside them has the legend of the colours, and the Dice of each drawn slice.

    Args:
        folder: made if it is not there.
        net: in evaluation mode, where the split puts its batches.
        split: whose cases are drawn.
        most: number of cases.
    """
    images = require("PIL.Image", extra="images", purpose="pictures")

    dice: dict[str, dict[str, float]] = {}
    for case, index in split.largest(most):
        (batch,) = split.batches([Slice.whole(torch.tensor([index]))], epoch=0)
        logits = net(batch.inputs)
        predicted = logits.argmax(1)[0].cpu().numpy()
        grey = next(iter(batch.inputs.values()))[0, 0].cpu().numpy()
        truth = batch.target[0].cpu().numpy()
        panels = [coloured(grey, labels) for labels in (np.zeros_like(truth), truth, predicted)]
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{case}.png"
        images.fromarray(np.concatenate(panels, 1)).save(path)
        regions = CAVITY_REGIONS if logits.shape[1] > len(TUMOUR_CLASSES) else TUMOUR_REGIONS
        scores = region_dice(logits.argmax(1), batch.target, smooth=1e-3, regions=regions)[0]
        dice[case] = {f"dice_{name}": float(score) for name, score in zip(regions, scores, strict=True)}
        drawn = {k: name for k, name in NAMES.items() if k < logits.shape[1]}
        legend = [(name, "#" + bytes(COLOURS[k].astype(np.uint8)).hex()) for k, name in drawn.items()]
        write_text(folder / NOTES, json.dumps({"legend": legend, "dice": dice}, indent=1))
        yield path


def coloured(grey: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A slice [H, W] in grey with its classes [H, W] in colour, uint8 [H, W, 3]."""
    low, high = grey.min(), max(np.percentile(grey, LIGHTEST), grey.min() + 1e-6)
    tones = np.clip((grey - low) / (high - low), 0, 1)[..., None].repeat(3, -1) * 255
    blended = (1 - OPACITY) * tones + OPACITY * COLOURS[labels]
    return np.where(labels[..., None] > 0, blended, tones).round().astype(np.uint8)
