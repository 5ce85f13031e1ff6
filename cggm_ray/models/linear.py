"""A linear model on the numbers of a sample, as a network, so that its predictions can be added to those of another one.

The feature of a modality is its numbers themselves. A modality that a sample lacks, or that is left out, has zeros, and so it
adds nothing; where inputs are standardised that is its mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cggm_ray.core.kinds import SEQUENCE
from cggm_ray.models.composed.steps import summary
from cggm_ray.models.net import Masks, MultimodalNet


class Numbers(nn.Module):
    """The numbers of a sample; of a sequence mean, maximum and standard deviation over the steps that are there."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._sequence = kind == SEQUENCE

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[N, ...] to [N, 1, numbers]."""
        return (summary(x, mask) if self._sequence else x.flatten(1))[:, None]


class SideBySide(nn.Module):
    """The numbers of all modalities, one after the other."""

    def forward(self, features: Mapping[str, Tensor], masks: Masks | None = None) -> Tensor:
        """Features [N, 1, numbers] by modality to [N, all numbers]."""
        return torch.cat(list(features.values()), 2)[:, 0]


def numbers_of(kind: str, shape: tuple[int, ...]) -> int:
    """Returns how many numbers `Numbers` gives of a sample of that shape."""
    return 3 * shape[-1] if kind == SEQUENCE else math.prod(shape)


def linear_net(
    kinds: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    outputs: int,
    inputs: Mapping[str, nn.Module] | None = None,
) -> MultimodalNet:
    """Returns a linear function of all numbers of a sample as a network, with weights that are to be filled.

    Args:
        kinds: of the modalities, by name: vectors and sequences.
        shapes: of a sample of each.
        outputs: C.
        inputs: what standardises the modalities.
    """
    head = nn.Linear(sum(numbers_of(kind, shapes[name]) for name, kind in kinds.items()), outputs)
    return MultimodalNet({name: Numbers(kind) for name, kind in kinds.items()}, SideBySide(), head, inputs)
