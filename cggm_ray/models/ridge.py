"""Ridge regression on the numbers of a sample, as a network, so that its predictions can be averaged with those of another one.

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


class RidgeSums:
    """Sums over samples, from which ridge regressions of any strength follow.

    They add up over batches and workers. Numbers and targets are taken in double precision.

    Args:
        numbers: of a sample.
        outputs: C.
        device: of the sums.
    """

    def __init__(self, numbers: int, outputs: int, device: torch.device | str = "cpu") -> None:
        size = numbers + outputs + 1
        self._numbers = numbers
        self.products = torch.zeros(size, size, dtype=torch.float64, device=device)
        """Sums of all products of numbers, targets and 1, in this order."""

    def add(self, x_ND: Tensor, y_NC: Tensor, weight_N: Tensor) -> None:
        """Adds samples with their numbers, targets and weights."""
        rows = torch.cat([x_ND.double(), y_NC.double(), torch.ones_like(weight_N, dtype=torch.float64)[:, None]], 1)
        self.products += rows.T @ (weight_N.double()[:, None] * rows)

    def solve(self, strengths: list[float]) -> tuple[Tensor, Tensor]:
        """Returns the weights [K, C, D] and the biases [K, C] of the ridge regression of every strength.

        It is that of `sklearn.linear_model.Ridge(alpha=strength)` on numbers that are standardised first. A number that is
        constant has no weight.
        """
        d = self._numbers
        count = self.products[-1, -1]
        mean = self.products[-1, :-1] / count
        centred = self.products[:-1, :-1] - count * mean[:, None] * mean
        variance = centred.diagonal()[:d] / count
        # What is below is the rounding of the sums.
        varies = variance > 1e-10 * (variance + mean[:d] ** 2) + 1e-30
        scale = torch.where(varies, variance.clamp(min=1e-30).rsqrt(), 0.0)
        values, vectors = torch.linalg.eigh(centred[:d, :d] * scale[:, None] * scale)
        target = vectors.T @ (scale[:, None] * centred[:d, d:])
        strength_K11 = values.new_tensor(strengths)[:, None, None]
        weights_KCD = (scale[:, None] * (vectors @ (target / (values[:, None] + strength_K11)))).transpose(1, 2)
        return weights_KCD, mean[d:] - weights_KCD @ mean[:d]
