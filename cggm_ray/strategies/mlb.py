"""MLB, multi-loss balanced: Kontras et al., "Improving Multimodal Learning with Multi-Loss Gradient Modulation" (BMVC 2024,
arXiv 2405.07930).

Every modality has a loss of its own beside that of the fused head,

    L = L_fused + sum_m L_m,

and all gradients of encoder m and of its guide are multiplied by a coefficient that speeds up what is behind and slows down
what is ahead,

    r_m = mean of the scores of the other modalities / score of modality m,
    k_m = 1 + tanh(alpha (r_m - 1))                    where r_m <= 1,
    k_m = 1 + (beta - 1) tanh(alpha (r_m - 1))         where r_m > 1,

so that k_m lies between 0 and beta, and balancing ends by itself when all predict equally well. The score of a modality is the
mean probability that its guide gives to the true class. For other tasks r_m is the loss of guide m over the mean of the
others', as the released code has it for regression. The formulas are those of the paper as its authors' page has them, without
their numbers (github.com/kkontras/MLB); there the scores are sums over the batch, of which a ratio is the same.

The released code is checked by recorded numbers (`tests/recorded`). It scales gradients after the backward pass; here the same
coefficients are the weights of the guides' losses and gates on the way from the fusion to the encoders. There the guides are
parts of the fused head, a linear layer on concatenated features, whose weights are scaled with the encoder; here a guide is a
network of its own, and the fused head is not scaled. beta is 2 in all released settings, which is the formula of the paper
without a case distinction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cggm_ray.config.fields import check, option
from cggm_ray.core.arithmetic import in_precision
from cggm_ray.core.batch import Batch, Feature, HeadOutput
from cggm_ray.core.reduction import SINGLE_WORKER, Reduce, Totals
from cggm_ray.strategies.base import Memo, Strategy
from cggm_ray.strategies.features import check_several
from cggm_ray.strategies.gate import Gates, scaled
from cggm_ray.strategies.guided import Guided, GuideOutputs, MakeOptimizer
from cggm_ray.strategies.registry import STRATEGIES, Materials, StrategyInfo, StrategyOptions
from cggm_ray.tasks.base import Task
from cggm_ray.tasks.classification import Classification


@dataclass(frozen=True, kw_only=True)
class MLBOptions(StrategyOptions):
    """Flags of MLB."""

    mlb_alpha: float = option(0.8, "mlb: how steeply a coefficient follows the ratio of scores")
    mlb_beta: float = option(2.0, "mlb: largest coefficient, that of a modality that is far behind")

    def __post_init__(self) -> None:
        check(0 <= self.mlb_alpha < float("inf"), self, "mlb_alpha", "zero or a positive number")
        check(1 <= self.mlb_beta < float("inf"), self, "mlb_beta", "a number of 1 or more")


class _Decided(NamedTuple):
    """Coefficients and the ratios that they were decided from, [M] each."""

    coefficient_M: Tensor
    ratio_M: Tensor


class _Memo(NamedTuple):
    """Of a pass: the own sums of its batch, what they decide where they are known before the fusion, and the gates."""

    sums: Tensor
    decided: _Decided | None
    gates: Gates


class MLB(Guided):
    """A loss for every modality, and gradients that are larger for a modality that is behind the others.

    Args:
        guides: by modality.
        task: what is predicted.
        alpha: how steeply a coefficient follows the ratio of scores.
        beta: largest coefficient.
        optimizer: makes the guides' optimizer from their parameters.
        reduce: sums a vector over workers.

    Raises:
        UsageError: fewer than two guides.
    """

    beside_fusion = True

    def __init__(
        self,
        guides: Mapping[str, nn.Module],
        *,
        task: Task,
        alpha: float = 0.8,
        beta: float = 2.0,
        optimizer: MakeOptimizer,
        reduce: Reduce = SINGLE_WORKER,
    ) -> None:
        check_several(guides)
        super().__init__(guides, task=task, optimizer=optimizer, detach=False, reduce=reduce)
        self.alpha, self.beta = alpha, beta
        self._by_probability = isinstance(task, Classification)

    def transform(
        self, features: dict[str, Feature], batch: Batch, totals: Totals | None = None
    ) -> tuple[dict[str, Feature], Memo]:
        """Runs the guides, and scales the gradients on the way from the fusion to the encoders, or places gates there.

        A single worker decides the coefficients here; with several, `combine` opens the gates after the all-reduce of the step.
        """
        outputs = self.run_guides(features, batch)
        # Like all sums in full precision, also where the networks run in another.
        with torch.autocast(batch.target.device.type, enabled=False):
            sums = self._sums(outputs, batch)
        known = self.known_sums(sums.detach(), totals)
        memo = _Memo(sums, None if known is None else self._decide(known), Gates())
        if memo.decided is None:
            return {name: memo.gates.place(features[name], index) for index, name in enumerate(self.guides)}, memo
        factors = zip(self.guides, memo.decided.coefficient_M, strict=True)
        return {name: scaled(features[name], factor) for name, factor in factors}, memo

    def sums(self, head: HeadOutput, batch: Batch, memo: Memo) -> Tensor:
        """[guide losses M K | probabilities of the true classes M | samples that have the modality M]."""
        sums: Tensor = memo.sums
        return sums

    def _sums(self, outputs: GuideOutputs, batch: Batch) -> Tensor:
        weights = [counted.sample_weights() for _, counted in outputs]
        if self._by_probability:
            with torch.no_grad():
                rows = [in_precision(guide.logits).softmax(1) for guide, _ in outputs]
                scores = [
                    p.gather(1, batch.target[:, None])[:, 0].double() @ w for p, w in zip(rows, weights, strict=True)
                ]
        else:
            scores = [w.new_zeros(()) for w in weights]
        return torch.cat([self.guide_sums(outputs), torch.stack(scores + [w.sum() for w in weights])])

    def combine(self, task_sums: Tensor, own_sums: Tensor, memo: Memo) -> Tensor:
        """sum_m k_m L_m; decides the coefficients and opens the gates, if that is still to do."""
        losses_M = self.guide_losses(own_sums[: -2 * len(self.guides)].reshape(len(self.guides), -1))
        coefficient_M, ratio_M = memo.decided or self._decide(own_sums.detach())
        memo.gates.open(coefficient_M)
        self.diagnostics = {"coefficient": coefficient_M, "ratio": ratio_M, "guide_loss": losses_M.detach()}
        return (coefficient_M * losses_M).sum()

    @torch.no_grad()
    def _decide(self, own_sums: Tensor) -> _Decided:
        """Coefficients and ratios from the sums of the global batch."""
        m = len(self.guides)
        score_M, count_M = own_sums[-2 * m :].chunk(2)
        seen_M = count_M > 0
        if self._by_probability:
            score_M = score_M / count_M.clamp(min=1)
            ratio_M = mean_of_others(score_M, seen_M) / score_M
        else:
            losses_M = self.guide_losses(own_sums[: -2 * m].reshape(m, -1))
            ratio_M = losses_M / mean_of_others(losses_M, seen_M)
        # A ratio is unknown where a modality or all others were not seen, or where everything is fitted perfectly.
        ratio_M = torch.where(seen_M & ~ratio_M.isnan(), ratio_M, 1.0)
        return _Decided(coefficients(ratio_M, self.alpha, self.beta), ratio_M)


def mean_of_others(value_M: Tensor, seen_M: Tensor) -> Tensor:
    """Of every modality the mean [M] of the others that were seen; NaN where none was."""
    seen_value_M = torch.where(seen_M, value_M, 0.0)
    others_M = seen_M.sum() - seen_M.to(value_M.dtype)
    return (seen_value_M.sum() - seen_value_M) / others_M


def coefficients(ratio_M: Tensor, alpha: float, beta: float) -> Tensor:
    """k_m [M] from r_m."""
    bent_M = torch.tanh(alpha * (ratio_M - 1))
    return 1 + torch.where(ratio_M > 1, (beta - 1) * bent_M, bent_M)


def _build(given: Materials[MLBOptions]) -> Strategy:
    return MLB(
        given.guides,
        task=given.task,
        alpha=given.options.mlb_alpha,
        beta=given.options.mlb_beta,
        optimizer=given.guide_optimizer,
        reduce=given.reduce,
    )


STRATEGIES.register("mlb")(StrategyInfo(build=_build, options=MLBOptions))
