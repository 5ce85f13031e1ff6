"""Coefficient rules: from the utilities of the guides to the scale of each encoder's gradient.

All rules work on float64 vectors [M] on the device and never synchronise with the host. Their memory lives in buffers.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Coefficients(NamedTuple):
    """What a rule decides in one step.

    Attributes:
        gate_M: scale of the gradient of each encoder.
        direction_M: weight of each modality in the direction term.
    """

    gate_M: Tensor
    direction_M: Tensor


class CoefficientRule(nn.Module):
    """A rule that compares the utilities of a step with those of the step before.

    Args:
        modalities: M.
        rho: scale of the coefficients.

    Attributes:
        clipped_M: bool, whether a modality got worse in the last step and counted as unchanged; None for a rule that takes
            changes as they are.
    """

    clipped_M: Tensor | None = None

    def __init__(self, modalities: int, *, rho: float) -> None:
        super().__init__()
        self.rho = rho
        self.register_buffer("previous_M", torch.zeros(modalities, dtype=torch.float64))

    previous_M: Tensor

    @abstractmethod
    def forward(self, utility_M: Tensor, seen_M: Tensor) -> Coefficients:
        """Takes the utilities of this step and returns its coefficients.

        Args:
            utility_M: eps_m(t), float64.
            seen_M: bool, False where no sample of the batch has the modality, which then counts as unchanged.
        """

    def _advance(self, current_M: Tensor, seen_M: Tensor) -> Tensor:
        """Improvement since the last step; moves the memory on."""
        current_M = torch.where(seen_M, current_M, self.previous_M)
        change_M = current_M - self.previous_M
        self.previous_M.copy_(current_M)
        return change_M


class PaperRule(CoefficientRule):
    """Equations 7 and 8 as printed: B_m = rho (S - d_m) / S with d_m = eps_m(t) - eps_m(t - 1), S = sum d.

    S is often negative or nearly zero; then B turns descent into ascent or is huge. Where S is exactly zero the quotient
    is undefined and the step takes the value of equal improvements, rho (M - 1) / M.
    """

    def forward(self, utility_M: Tensor, seen_M: Tensor) -> Coefficients:
        """Returns B_m for both, from utilities [M] and whether the batch has each modality [M]."""
        change_M = self._advance(utility_M, seen_M)
        total = change_M.sum()
        share_M = torch.where(total == 0, 1 / len(change_M), change_M / total)
        scale_M = self.rho * (1 - share_M)
        return Coefficients(scale_M, scale_M)


class ReleasedRule(CoefficientRule):
    """The released code: S + 1e-8 in the quotient, rho on the gradient only and not in the direction term."""

    def forward(self, utility_M: Tensor, seen_M: Tensor) -> Coefficients:
        """Returns rho times the quotient for the gradient, and the quotient for the direction term."""
        change_M = self._advance(utility_M, seen_M)
        total = change_M.sum() + 1e-8
        scale_M = (total - change_M) / total
        return Coefficients(self.rho * scale_M, scale_M)


class StableRule(CoefficientRule):
    """Bounded coefficients from smoothed improvements.

    u_m is the bias-corrected exponential moving average of eps_m, p_m = max(u_m(t) - u_m(t - 1), 0) + floor, and
    B_m = rho (1 - p_m / sum_k p_k). Hence 0 <= B_m <= rho, sum B_m = rho (M - 1), and equal improvements give
    rho (M - 1) / M: the values of the paper wherever every d_m is positive (smoothing and floor 0).

    Args:
        modalities: M.
        rho: scale of the coefficients.
        smoothing: decay of the moving average, in [0, 1).
        floor: amount added to the improvement of every modality, in units of the utility; positive.
    """

    def __init__(self, modalities: int, *, rho: float, smoothing: float, floor: float) -> None:
        super().__init__(modalities, rho=rho)
        self.smoothing = smoothing
        self.floor = floor
        self.register_buffer("average_M", torch.zeros(modalities, dtype=torch.float64))
        self.register_buffer("steps_M", torch.zeros(modalities, dtype=torch.float64))

    average_M: Tensor
    steps_M: Tensor

    def forward(self, utility_M: Tensor, seen_M: Tensor) -> Coefficients:
        """Returns B_m for both, and moves the averages of the modalities that the batch has."""
        average_M = self.smoothing * self.average_M + (1 - self.smoothing) * utility_M
        self.average_M.copy_(torch.where(seen_M, average_M, self.average_M))
        self.steps_M.add_(seen_M)
        corrected_M = self.average_M / (1 - self.smoothing**self.steps_M).clamp(min=1e-300)
        change_M = self._advance(corrected_M, seen_M)
        self.clipped_M = change_M < 0
        progress_M = change_M.clamp(min=0) + self.floor
        scale_M = self.rho * (1 - progress_M / progress_M.sum())
        return Coefficients(scale_M, scale_M)


COEFFICIENT_RULES: dict[str, type[CoefficientRule]] = {
    "stable": StableRule,
    "paper": PaperRule,
    "released": ReleasedRule,
}
"""Rules by the name that `--coefficients` takes."""
