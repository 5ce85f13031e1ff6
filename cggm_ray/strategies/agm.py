"""Adaptive Gradient Modulation (Li et al., ICCV 2023, arXiv 2308.07686).

A step, with K modalities, Phi(S) the fused prediction when only the modalities of S are there, and Phi() = 0:

    phi_m   = sum_{S without m} |S|! (K - |S| - 1)! / K! (Phi(S + m) - Phi(S))     mono-modal response, a Shapley value
    s_m     = mean cross-entropy of phi_m
    r_m     = exp( 1/(K-1) sum_{j != m} (s_j - s_m) )                              discrepancy ratio, large where m is ahead
    tau_m   = exp( 1/(K-1) sum_{j != m} (S_j - S_m) ),  S(t) = S(t-1) (t-1)/t + s(t)/t     the same of the running averages
    kappa_m = exp( -alpha (r_m - tau_m) )
    gradient of encoder m <- kappa_m * gradient of encoder m

The responses of all modalities add up to the fused prediction. What was decided here:

- A modality that is not there has zeros in place of its features, where the paper puts zeros in place of its input: the
  encoders need not run again, and it is how this package shows a network that a sample lacks a modality.
- All K responses need 2^K - 1 passes of the fusion, in evaluation mode and without gradient.
- tau includes the running step, so the first step has kappa = 1.
- tau - r is bounded by 10 from above, as in published code: on a single bad batch the exponential of an exponential would
  end the training.
- s is the task's own loss of the response: for regression the mean absolute error, for segmentation its mixture with Dice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cggm_ray.config.fields import check, option
from cggm_ray.core.batch import Batch, Feature
from cggm_ray.core.reduction import SINGLE_WORKER, Reduce
from cggm_ray.core.shapley import all_subsets, shapley_values
from cggm_ray.strategies.base import Strategy
from cggm_ray.strategies.features import Predict, as_in_inference, keep_only, logits_of
from cggm_ray.strategies.registry import STRATEGIES, Materials, StrategyInfo, StrategyOptions
from cggm_ray.strategies.responses import ResponseStrategy
from cggm_ray.tasks.base import Task

MOST = 10.0
"""Bound of tau - r."""


@dataclass(frozen=True, kw_only=True)
class AGMOptions(StrategyOptions):
    """Options of `agm`."""

    agm_alpha: float = option(1.0, "agm: how strongly the gradient of a modality that is ahead is lowered")

    def __post_init__(self) -> None:
        check(self.agm_alpha > 0, self, "agm_alpha", "a positive number")


class AGM(ResponseStrategy):
    """AGM for a model and a loop of any kind.

    Args:
        modalities: their names, in the order of the coefficients.
        predict: the fused prediction from features, `net.fuse`; `features.as_in_inference` wraps one with dropout or
            batch normalisation.
        task: what is predicted.
        alpha: how strongly the gradient of a modality that is ahead is lowered.
        reduce: sums a vector over workers.

    Raises:
        UsageError: fewer than two modalities.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cggm_ray import Classification
        >>> from cggm_ray.strategies import AGM
        >>> encoders = nn.ModuleDict({"image": nn.Linear(5, 8), "sound": nn.Linear(7, 8)})
        >>> head, task = nn.Linear(16, 3), Classification(3)
        >>> def fuse(features):
        ...     hidden = torch.cat(list(features.values()), 1)
        ...     return head(hidden), hidden
        >>> balance = AGM(["image", "sound"], fuse, task=task, alpha=0.5)
        >>> inputs, target = {"image": torch.randn(4, 5), "sound": torch.randn(4, 7)}, torch.tensor([0, 1, 2, 0])
        >>> features = balance.modulate({name: encoders[name](x) for name, x in inputs.items()}, target)
        >>> logits, hidden = fuse(features)
        >>> loss = task.loss(logits, target) + balance.loss(logits, hidden, target)
        >>> loss.backward(); balance.step()
    """

    def __init__(
        self,
        modalities: Sequence[str],
        predict: Predict,
        *,
        task: Task,
        alpha: float = 1.0,
        reduce: Reduce = SINGLE_WORKER,
    ) -> None:
        super().__init__(modalities, predict, task=task, reduce=reduce)
        self.alpha = alpha
        self.register_buffer("average_M", torch.zeros(len(modalities), dtype=torch.float64))
        self.register_buffer("steps_M", torch.zeros(len(modalities), dtype=torch.float64))

    average_M: Tensor
    steps_M: Tensor

    def answers(self, features: Mapping[str, Feature], batch: Batch) -> list[Tensor]:
        """Shapley values phi_m, [N, C, ...] each."""
        answers = {
            kept: logits_of(self.predict, keep_only(features, kept), batch.masks)
            for kept in all_subsets(sorted(self.modalities))
            if kept
        }
        nothing = torch.zeros_like(answers[frozenset(self.modalities)])
        return list(shapley_values({frozenset(): nothing} | answers, self.modalities).values())

    def score_sums(self, logits: Tensor, batch: Batch) -> Tensor:
        """The sums of the task's loss."""
        return self.task.sums(logits, batch)

    def decide(self, sums_MK: Tensor, seen_M: Tensor) -> Tensor:
        """kappa [M]; 1 for a modality that no sample of the step has, whose running average stays."""
        score_M = torch.stack([self.task.combine(sums) for sums in sums_MK])
        self.steps_M.add_(seen_M)
        moved_M = self.average_M + (score_M - self.average_M) / self.steps_M.clamp(min=1)
        self.average_M.copy_(torch.where(seen_M, moved_M, self.average_M))
        ratio_M, tau_M = ratios(score_M, seen_M), ratios(self.average_M, seen_M)
        self.diagnostics = {"score": torch.where(seen_M, score_M, 0.0), "ratio": ratio_M, "tau": tau_M}
        return torch.exp(self.alpha * (tau_M - ratio_M).clamp(max=MOST))

    def memory(self) -> list[Tensor]:
        """The running averages."""
        return [self.average_M, self.steps_M]


def ratios(score_M: Tensor, seen_M: Tensor) -> Tensor:
    """exp of how far the others' mean loss lies above a modality's own; 1 for one that was not seen, and for one alone."""
    score_M = torch.where(seen_M, score_M, 0.0)
    others_M = (score_M.sum() - score_M) / (seen_M.sum() - 1).clamp(min=1)
    return torch.where(seen_M & (seen_M.sum() > 1), torch.exp(others_M - score_M), 1.0)


def _build(given: Materials[AGMOptions]) -> Strategy:
    return AGM(
        given.modalities,
        as_in_inference(given.net),
        task=given.task,
        alpha=given.options.agm_alpha,
        reduce=given.reduce,
    )


STRATEGIES.register("agm")(StrategyInfo(build=_build, options=AGMOptions))
