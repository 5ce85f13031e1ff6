"""Ridge regressions of any strength from sums over samples, and the weight of one in an average."""

from __future__ import annotations

import torch
from torch import Tensor

PRIOR = 0.01
"""Strength with which the weight of an average is drawn to one half, in variances of the targets."""


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

    def solve(self, strengths: list[float], own_D: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the weights [K, C, D] and the biases [K, C] of the ridge regression of every strength.

        It is that of `sklearn.linear_model.Ridge(alpha=strength)` on numbers that are standardised first, or only centred. A
        number that is constant has no weight.

        Args:
            strengths: K of them.
            own_D: bool, which numbers are divided by their own standard deviation; None for all.
        """
        d = self._numbers
        count = self.products[-1, -1]
        mean = self.products[-1, :-1] / count
        centred = self.products[:-1, :-1] - count * mean[:, None] * mean
        variance = centred.diagonal()[:d] / count
        # What is below is the rounding of the sums.
        varies = variance > 1e-10 * (variance + mean[:d] ** 2) + 1e-30
        scale = variance.clamp(min=1e-30).rsqrt() * varies
        scale = scale if own_D is None else torch.where(own_D, scale, varies.double())
        values, vectors = torch.linalg.eigh(centred[:d, :d] * scale[:, None] * scale)
        target = vectors.T @ (scale[:, None] * centred[:d, d:])
        strength_K11 = values.new_tensor(strengths)[:, None, None]
        weights_KCD = (scale[:, None] * (vectors @ (target / (values[:, None] + strength_K11)))).transpose(1, 2)
        return weights_KCD, mean[d:] - weights_KCD @ mean[:d]


def regression_weight(first_NC: Tensor, second_NC: Tensor, target_NC: Tensor) -> float:
    """Returns the weight of the second of two regressions, 0 to 1, with which their average has the least squared error.

    The samples are not those that the regressions were fitted to, and as they may be few, the weight is drawn to one half
    (`PRIOR`). These are stacked regressions (Breiman 1996).

    Args:
        first_NC, second_NC: predictions for N samples.
        target_NC: their targets.
    """
    error_NC, step_NC = (target_NC - first_NC).double(), (second_NC - first_NC).double()
    prior = PRIOR * target_NC.double().var(0, correction=0).mean()
    share = float(((error_NC * step_NC).mean() + prior / 2) / (step_NC.square().mean() + prior))
    return min(1.0, max(0.0, share))
