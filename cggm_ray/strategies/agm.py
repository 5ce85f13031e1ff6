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
- tau - r is bounded by `agm_bound` from above: on a single bad batch the exponential of an exponential would end the
  training. The released code has 10 for CREMA-D, 7 for URFunny and no bound for AVE and MOSEI.
- s is the task's own loss of the response: for regression the mean absolute error, for segmentation its mixture with Dice.

`agm_reading released` is the arithmetic of the released code (github.com/lihong2303/AGM_ICCV2023): kappa_m scales the
gradient of the response phi_m as a part of the prediction, sum_m phi_m, so fusion and head are scaled too, and the passes
without some modalities have gradients; what is padded is a zero input, not a zero feature; tau does not include the running
step. Two differences are left: the encoders run once in a step, where the released code runs them again in evaluation mode for
every pass with padding, and it bounds a probability by 1e-8 from below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from cggm_ray.config.fields import check, one_of, option
from cggm_ray.core.arithmetic import in_precision
from cggm_ray.core.batch import Batch, Feature, HeadOutput
from cggm_ray.core.reduction import SINGLE_WORKER, Reduce, Totals
from cggm_ray.core.shapley import all_subsets, shapley_values
from cggm_ray.strategies.base import Memo, Strategy
from cggm_ray.strategies.features import Predict, as_in_inference, blank_features, each, keep_only, logits_of
from cggm_ray.strategies.gate import Gates
from cggm_ray.strategies.registry import STRATEGIES, Materials, StrategyInfo, StrategyOptions
from cggm_ray.strategies.responses import ResponseStrategy
from cggm_ray.tasks.base import Task

READINGS = ("encoders", "released")
Blank = Callable[[Batch], Mapping[str, Feature]]
"""A batch to the features of inputs that are zero."""


@dataclass(frozen=True, kw_only=True)
class AGMOptions(StrategyOptions):
    """Options of `agm`."""

    agm_alpha: float = option(1.0, "agm: how strongly the gradient of a modality that is ahead is lowered")
    agm_reading: str = option(
        "encoders", "agm: which gradients are scaled: encoders (those of encoders), released (those of responses)"
    )
    agm_bound: float = option(10.0, "agm: upper bound of tau - r; 0 for none")

    def __post_init__(self) -> None:
        check(self.agm_alpha > 0, self, "agm_alpha", "a positive number")
        one_of(self, "agm_reading", READINGS)
        check(self.agm_bound >= 0, self, "agm_bound", "zero or a positive number")


class AGM(ResponseStrategy):
    """AGM for a model and a loop of any kind.

    Args:
        modalities: their names, in the order of the coefficients.
        predict: the fused prediction from features, `net.fuse`; `features.as_in_inference` wraps one with dropout or
            batch normalisation.
        task: what is predicted.
        alpha: how strongly the gradient of a modality that is ahead is lowered.
        bound: upper bound of tau - r; 0 for none.
        gated: whether the gradients are scaled at the features; False for a subclass that scales them elsewhere.
        reduce: sums a vector over workers.

    Raises:
        UsageError: fewer than two modalities.

    Examples:
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
        >>> features = balance.modulate({name: encoders[name](inputs[name]) for name in inputs}, target)
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
        bound: float = 10.0,
        gated: bool = True,
        reduce: Reduce = SINGLE_WORKER,
    ) -> None:
        super().__init__(modalities, predict, task=task, gated=gated, reduce=reduce)
        self.alpha, self.bound = alpha, bound or math.inf
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
        before_M = self.average_M.clone()
        self.steps_M.add_(seen_M)
        moved_M = self.average_M + (score_M - self.average_M) / self.steps_M.clamp(min=1)
        self.average_M.copy_(torch.where(seen_M, moved_M, self.average_M))
        ratio_M, tau_M = ratios(score_M, seen_M), ratios(self._expected(before_M), seen_M)
        self.diagnostics = {"score": torch.where(seen_M, score_M, 0.0), "ratio": ratio_M, "tau": tau_M}
        return torch.exp(self.alpha * (tau_M - ratio_M).clamp(max=self.bound))

    def _expected(self, before_M: Tensor) -> Tensor:
        """The average losses [M] that give tau, from those without the running step."""
        return self.average_M

    def memory(self) -> list[Tensor]:
        """The running averages."""
        return [self.average_M, self.steps_M]


class _Passes(NamedTuple):
    """Of a pass: the prediction from every set of modalities but all of them, and the gates of the responses."""

    logits: dict[frozenset[str], Tensor]
    gates: Gates


class AGMReleased(AGM):
    """AGM in the reading of the released code: the gradients of the responses are scaled, fusion and head included.

    Args:
        modalities, predict, task, alpha, bound, reduce: see `AGM`; `predict` is called with gradient.
        blank: the features of inputs that are zero; by default features that are zero.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        predict: Predict,
        *,
        task: Task,
        alpha: float = 1.0,
        bound: float = 10.0,
        blank: Blank | None = None,
        reduce: Reduce = SINGLE_WORKER,
    ) -> None:
        super().__init__(modalities, predict, task=task, alpha=alpha, bound=bound, gated=False, reduce=reduce)
        self._blank = (blank,)

    def transform(
        self, features: dict[str, Feature], batch: Batch, totals: Totals | None = None
    ) -> tuple[dict[str, Feature], Memo]:
        """Predicts from every set of modalities but all of them; the features stay as they are."""
        (blank,) = self._blank
        zeros = (
            {name: each(part, torch.zeros_like) for name, part in features.items()} if blank is None else blank(batch)
        )
        logits = {
            kept: self._predicted({name: (features if name in kept else zeros)[name] for name in features}, batch)
            for kept in all_subsets(sorted(self.modalities))
            if kept and len(kept) < len(self.modalities)
        }
        return features, _Passes(logits, Gates())

    def _predicted(self, features: Mapping[str, Feature], batch: Batch) -> Tensor:
        output = self.predict(features) if batch.masks is None else self.predict(features, batch.masks)
        return in_precision(output[0])

    def sums(self, head: HeadOutput, batch: Batch, memo: Memo) -> Tensor:
        """[score sums M K | samples that have the modality M | the task's sums of the prediction with gates K]."""
        whole = in_precision(head.logits)
        nothing = torch.zeros_like(whole)
        answers = {frozenset[str](): nothing, **memo.logits, frozenset(self.modalities): whole}
        values = shapley_values(answers, self.modalities)
        responses = [values[name] for name in self.modalities]
        scores = self._scores([response.detach() for response in responses], batch)
        gated: list[Tensor] = [memo.gates.place(response, index) for index, response in enumerate(responses)]  # type: ignore[misc]
        return torch.cat([scores, self.task.sums(torch.stack(gated).sum(0), batch)])

    def combine(self, task_sums: Tensor, own_sums: Tensor, memo: Memo) -> Tensor:
        """Opens the gates; the loss of the prediction with gates in place of that without, which has the same value."""
        scores, gated = own_sums[: -self.task.n_sums], own_sums[-self.task.n_sums :]
        memo.gates.open(self._coefficients(scores.detach()))
        return self.task.combine(gated) - self.task.combine(task_sums)

    def _expected(self, before_M: Tensor) -> Tensor:
        return before_M


def ratios(score_M: Tensor, seen_M: Tensor) -> Tensor:
    """exp of how far the others' mean loss lies above a modality's own; 1 for one that was not seen, and for one alone."""
    score_M = torch.where(seen_M, score_M, 0.0)
    others_M = (score_M.sum() - score_M) / (seen_M.sum() - 1).clamp(min=1)
    return torch.where(seen_M & (seen_M.sum() > 1), torch.exp(others_M - score_M), 1.0)


def _build(given: Materials[AGMOptions]) -> Strategy:
    released = given.options.agm_reading == "released"
    kind = partial(AGMReleased, blank=partial(blank_features, given.net)) if released else AGM
    return kind(
        given.modalities,
        as_in_inference(given.net),
        task=given.task,
        alpha=given.options.agm_alpha,
        bound=given.options.agm_bound,
        reduce=given.reduce,
    )


# The command of its README, for AV-MNIST.
RECIPE = {
    **{"optim": "SGD", "lr": 1e-4, "weight_decay": 1e-4, "clip": 0.0, "batch_size": 64, "num_epochs": 100},
    **{"agm_alpha": 2.5, "agm_reading": "released"},
}
STRATEGIES.register("agm")(StrategyInfo(build=_build, options=AGMOptions, recipe=RECIPE))
