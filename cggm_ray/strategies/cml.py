"""CML: Ma et al., "Calibrating Multimodal Learning" (ICML 2023, arXiv 2306.01265).

The confidence of a prediction, its largest probability, should not grow when a modality is taken away. In every step the
modalities are taken away one after the other; S_0 is the set of all, S_1 lacks one of them, and S_{M-1} has one left:

    loss = (1 / M) * sum_k CE(S_k) + lambda * sum_k R(S_k, S_{k+1})
    R(S, T) = mean over samples of max(0, confidence(T) - confidence(S))                       (reading 'paper')

This R is the paper's as a public review of it states it; the numbers of its equations were not at hand. With the reading
`released`, a sample that is predicted rightly by T and wrongly by S does not count in R: there the confidence may grow. With
the reading `benchmark`, R is max(0, .) of the sum over the batch, as in BalanceBenchmark, so that samples whose confidence
falls make up for others; and the sum is not divided by the number of samples. The mean in the first two is this package's:
the released code sums over its whole training set, which it takes as one batch.

The order in which modalities go is drawn for every epoch from the seed, as in BalanceBenchmark, which is also the source of the
cross-entropies of the subsets. A modality that is taken away is zero at the input of the fusion. The fusion predicts without
dropout and with running statistics; CE(S_0) alone is that of the training pass. Samples that lack a modality count in those
pairs in which something changes and something is left. The released code, for networks of another kind (CPM-Nets, MIWAE), and
BalanceBenchmark are checked by recorded numbers.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cggm_ray.config.fields import check, one_of, option
from cggm_ray.core.arithmetic import in_precision
from cggm_ray.core.batch import Batch, Feature, HeadOutput
from cggm_ray.core.reduction import SINGLE_WORKER, Reduce, Totals
from cggm_ray.core.seeding import generator
from cggm_ray.strategies.base import Memo, Strategy
from cggm_ray.strategies.features import Predict, as_in_inference, check_several, each
from cggm_ray.strategies.guided import losses_of
from cggm_ray.strategies.registry import STRATEGIES, Materials, StrategyInfo, StrategyOptions
from cggm_ray.tasks.base import Task
from cggm_ray.tasks.classification import Classification

READINGS = ("paper", "released", "benchmark")


@dataclass(frozen=True, kw_only=True)
class CMLOptions(StrategyOptions):
    """Flags of CML."""

    cml_lambda: float = option(0.1, "cml: weight of the loss of confidence that grows when a modality is removed")
    cml_reading: str = option("paper", "cml: formula of the growth of confidence: paper, released, benchmark")

    def __post_init__(self) -> None:
        check(0 <= self.cml_lambda < float("inf"), self, "cml_lambda", "zero or a positive number")
        one_of(self, "cml_reading", READINGS)


class _Subset(NamedTuple):
    """What the fusion predicts without some modalities, the batch in which those samples count that have another one, and the
    batch of those that also have the modality which was taken away last."""

    logits: Tensor
    left: Batch
    changed: Batch


class CML(Strategy):
    """Adds a loss of confidence that grows when a modality is removed, and the losses of the remaining subsets.

    Args:
        modalities: their names.
        predict: the fused prediction from features, with its gradient.
        task: a classification.
        weight: of the loss of growing confidence.
        reading: formula of the growth: 'paper', 'released' or 'benchmark'.
        seed: of the order in which modalities go; the same on all workers.
        reduce: sums a vector over workers.

    Raises:
        UsageError: fewer than two modalities.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        predict: Predict,
        *,
        task: Task,
        weight: float = 0.1,
        reading: str = "paper",
        seed: int = 0,
        reduce: Reduce = SINGLE_WORKER,
    ) -> None:
        super().__init__(task=task, reduce=reduce)
        check_several(modalities)
        self.modalities, self.weight, self.reading = tuple(modalities), weight, reading
        # In a tuple: a bound method of a network is not a part of the strategy.
        self._predict, self._seed = (predict,), seed
        self._start_epoch(0)

    def _start_epoch(self, epoch: int) -> None:
        """Draws the modalities that are taken away in an epoch, in their order."""
        order = torch.randperm(len(self.modalities), generator=generator(self._seed, "noise", epoch))
        self._epoch, self.removed = epoch, [self.modalities[index] for index in order[1:].tolist()]

    def branch(self) -> Hashable:
        """The order in which modalities go."""
        return tuple(self.removed)

    def transform(
        self, features: dict[str, Feature], batch: Batch, totals: Totals | None = None
    ) -> tuple[dict[str, Feature], Memo]:
        """Predicts from fewer and fewer modalities; the features stay."""
        if not self.training:
            return features, None
        fewer, left = dict(features), list(features)
        memo = [_Subset(self._logits(features, batch), batch, batch)]
        for name in self.removed:
            fewer[name] = each(fewer[name], torch.zeros_like)
            left.remove(name)
            counted = having_any(batch, left)
            memo.append(_Subset(self._logits(fewer, batch), counted, counted.having(name)))
        return features, memo

    def sums(self, head: HeadOutput, batch: Batch, memo: Memo) -> Tensor:
        """Of every subset [loss K], then of every pair [growth of the confidence, samples]."""
        if memo is None:
            return super().sums(head, batch, memo)
        losses = torch.cat([self.task.sums(subset.logits, subset.left) for subset in memo[1:]])
        pairs = []
        for before, after in itertools.pairwise(memo):
            w_N = after.changed.sample_weights()
            pairs += [self._growth(before.logits, after.logits, batch.target) @ w_N, w_N.sum()]
        return torch.cat([losses, torch.stack(pairs)])

    def combine(self, task_sums: Tensor, own_sums: Tensor, memo: Memo) -> Tensor:
        """The loss at the top of this file minus the task loss, to which it is added."""
        if memo is None:
            return own_sums.new_zeros(())
        steps = len(self.modalities) - 1
        losses = losses_of(self.task, own_sums[: -2 * steps].reshape(steps, -1))
        growth, count = own_sums[-2 * steps :].reshape(steps, 2).unbind(1)
        grown = growth.clamp(min=0) if self.reading == "benchmark" else growth / count.detach().clamp(min=1)
        self.diagnostics = {"subset_loss": losses.detach().mean(), "confidence_growth": grown.detach().sum()}
        loss = self.task.combine(task_sums)
        return (loss + losses.sum()) / len(self.modalities) + self.weight * grown.sum() - loss

    def end_epoch(self, train: Mapping[str, float], valid: Mapping[str, float], observed: Tensor) -> None:
        """Counts the epoch."""
        self._start_epoch(self._epoch + 1)

    def get_extra_state(self) -> dict[str, Any]:
        """The number of epochs, from which the order follows."""
        return {"epoch": self._epoch}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Puts it back."""
        self._start_epoch(int(state["epoch"]))

    def _logits(self, features: Mapping[str, Feature], batch: Batch) -> Tensor:
        (predict,) = self._predict
        output = predict(features) if batch.masks is None else predict(features, batch.masks)
        return in_precision(output[0])

    def _growth(self, before_NC: Tensor, after_NC: Tensor, target_N: Tensor) -> Tensor:
        """By how much the confidence of each sample counts as grown, float64 [N]."""
        (confidence_N, said_N), (grown_N, then_N) = (logits.softmax(1).max(1) for logits in (before_NC, after_NC))
        growth_N = (grown_N - confidence_N).double()
        if self.reading == "benchmark":
            return growth_N
        growth_N = growth_N.clamp(min=0)
        if self.reading == "paper":
            return growth_N
        return torch.where((then_N == target_N) & (said_N != target_N), 0.0, growth_N)


def having_any(batch: Batch, modalities: Sequence[str]) -> Batch:
    """The same batch, in which a sample counts only if it has one of these modalities at least."""
    present = batch.present or {}
    if not all(name in present for name in modalities):
        return batch
    has_N = torch.stack([present[name] for name in modalities]).any(0)
    return dataclasses.replace(batch, weight=has_N.double() if batch.weight is None else batch.weight * has_N)


def _build(given: Materials[CMLOptions]) -> Strategy:
    return CML(
        given.modalities,
        as_in_inference(given.net),
        task=given.task,
        weight=given.options.cml_lambda,
        reading=given.options.cml_reading,
        seed=given.seed,
        reduce=given.reduce,
    )


STRATEGIES.register("cml")(StrategyInfo(build=_build, options=CMLOptions, tasks=(Classification,)))
