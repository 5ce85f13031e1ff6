"""Clips as the network gets them: in single precision, and in training cropped and turned left to right at random."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from cggm_ray.core.batch import Batch
from cggm_ray.core.seeding import generator
from cggm_ray.data.loading.sampler import Slice
from cggm_ray.data.loading.split import Split

AREA = (0.08, 1.0)
"""Smallest and largest share of a picture that is left of it."""
RATIO = (3 / 4, 4 / 3)
"""Narrowest and widest form of what is left, width by height."""


class ClipSplit:
    """A split of clips.

    Args:
        inner: the clips as they are stored.
        pictures: modalities that are cropped; none for validation and test.
        whole: modalities that no clip of the split lacks, so that no mask is needed.
        seed: of the crops, which are a function of it, the epoch and the clip.
    """

    def __init__(self, inner: Split, pictures: tuple[str, ...], whole: tuple[str, ...], seed: int) -> None:
        self._inner = inner
        self._pictures = pictures
        self._whole = whole
        self._seed = seed
        self.names = inner.names
        self.groups = inner.groups

    def __len__(self) -> int:
        return len(self._inner)

    def batches(self, plan: Iterable[Slice], epoch: int) -> Iterator[Batch]:
        """Yields a batch for every slice of the plan."""
        drawn = torch.rand(len(self), 5, generator=generator(self._seed, "augment", epoch)) if self._pictures else None
        for batch in self._inner.batches(plan, epoch):
            inputs = {
                name: values.float() if not values.is_floating_point() else values
                for name, values in batch.inputs.items()
            }
            if drawn is not None:
                grid = crops(drawn[batch.index]).to(batch.target.device, non_blocking=True)
                inputs |= {name: cropped(inputs[name], grid) for name in self._pictures}
            masks = {name: mask for name, mask in (batch.masks or {}).items() if name not in self._whole}
            present = {name: there for name, there in (batch.present or {}).items() if name not in self._whole}
            yield dataclasses.replace(batch, inputs=inputs, masks=masks or None, present=present or None)


def crops(drawn: Tensor) -> Tensor:
    """Returns the affine map of every crop, as `torch.nn.functional.affine_grid` takes it, [N, 2, 3].

    Args:
        drawn: numbers in [0, 1), [N, 5]: share of the area, form, place across and down, and whether it is turned.
    """
    area = AREA[0] + (AREA[1] - AREA[0]) * drawn[:, 0]
    ratio = torch.exp(math.log(RATIO[0]) + (math.log(RATIO[1]) - math.log(RATIO[0])) * drawn[:, 1])
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    across, down = (1 - width) * (2 * drawn[:, 2] - 1), (1 - height) * (2 * drawn[:, 3] - 1)
    turned = torch.where(drawn[:, 4] < 0.5, -width, width)
    none = torch.zeros_like(width)
    return torch.stack([torch.stack([turned, none, across], 1), torch.stack([none, height, down], 1)], 1)


def cropped(pictures: Tensor, maps_N23: Tensor) -> Tensor:
    """Returns crops of pictures [N, F, C, H, W], stretched to their size; all pictures of a clip are cropped alike."""
    n, f, c, h, w = pictures.shape
    flat = pictures.reshape(n, f * c, h, w)
    grid = F.affine_grid(maps_N23.to(flat.dtype), [n, 1, h, w], align_corners=False)
    return F.grid_sample(flat, grid, padding_mode="border", align_corners=False).reshape(n, f, c, h, w)
