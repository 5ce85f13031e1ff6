"""Sample-level modality valuation (Wei, Feng, Wang and Hu, CVPR 2024, arXiv 2309.06255).

Before every epoch from `valuation_warmup` on, each modality m of each training sample i gets a value. With v_i(S) = |S| where
the fused network predicts the class of the sample from the modalities of S alone, and 0 where it does not,

    phi_i,m = sum_{S without m} |S|! (M - |S| - 1)! / M! (v_i(S + m) - v_i(S))        a Shapley value, at most M

Samples in which a modality contributes little are trained more often, as copies in which the features of all other modalities
are zero:

- `valuation_level sample`: of every sample 1, 2 or 3 copies with modality m alone, for phi_i,m in [.4, 1), [-.1, .4) and below
  -.1. For two modalities these are the values .5, 0 and -.5.
- `valuation_level modality`: with gap_m = 1 - mean of phi_i,m over a share `valuation_part` of the samples, a share
  `valuation_alpha` 2/3 (largest gap - mean of the other gaps) of the samples gets a copy with the modality of the largest gap
  alone; they are drawn with replacement.

Formulas and defaults are those of the released code (github.com/GeWu-Lab/Valuate-and-Enhance-Multimodal-Cooperation), for two
modalities. What was decided here:

- An epoch keeps its length, on which schedule and budget depend: it has as many samples as the split, taken from the list of
  samples and copies in a random order that is a function of seed and epoch. The released code goes through the whole list, up
  to 1 + 3 M times as long.
- A modality that a sample lacks has no value and no copies.
- A loop of your own calls `begin_epoch` with what `measure` says of the training split, and gives the samples of `plan` to
  its batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from cggm_ray.config.fields import at_least, check, one_of, option
from cggm_ray.core.batch import Batch, EpochPlan, Feature
from cggm_ray.core.reduction import SINGLE_WORKER, Reduce, Totals
from cggm_ray.core.seeding import generator
from cggm_ray.core.shapley import all_subsets, shapley_values
from cggm_ray.strategies.base import Memo, Strategy
from cggm_ray.strategies.features import Predict, as_in_inference, each, keep_only, logits_of
from cggm_ray.strategies.registry import STRATEGIES, Materials, StrategyInfo, StrategyOptions
from cggm_ray.tasks import Classification

KEPT = "kept"
"""Name of what a sample brings: whether its features of each modality stay, bool [M]."""
LEVELS = ("sample", "modality")
SOME, MORE = 0.4, -0.1
"""Values below 1, `SOME` and `MORE` mean one copy, two and three."""


@dataclass(frozen=True, kw_only=True)
class ValuationOptions(StrategyOptions):
    """Options of `valuation`; the defaults are those of the released code."""

    valuation_level: str = option(
        "sample", "valuation: level of the values by which samples are repeated: sample, modality (their mean)"
    )
    valuation_warmup: int = option(5, "valuation: number of first epochs without copies of samples")
    valuation_alpha: float = option(1.0, "valuation: level modality: factor of the number of copies")
    valuation_part: float = option(0.2, "valuation: level modality: share of the samples whose values are averaged")

    def __post_init__(self) -> None:
        one_of(self, "valuation_level", LEVELS)
        at_least(self, "valuation_warmup", 0)
        check(self.valuation_alpha >= 0, self, "valuation_alpha", "zero or a positive number")
        check(0 < self.valuation_part <= 1, self, "valuation_part", "a number in (0, 1]")


class Valuation(Strategy):
    """Trains samples more often in which a modality contributes little, with that modality alone.

    Args:
        modalities: their names, in their order.
        predict: the fused prediction from features, `net.fuse`. It is called without gradient.
        task: a classification.
        level: of the values by which samples are repeated: 'sample' or 'modality' (their mean).
        warmup: number of first epochs without copies of samples.
        alpha: of the level 'modality': factor of the number of copies.
        part: of the level 'modality': share of the samples whose values are averaged.
        reduce: sums a vector over workers.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        predict: Predict,
        *,
        task: Classification,
        level: str = "sample",
        warmup: int = 5,
        alpha: float = 1.0,
        part: float = 0.2,
        reduce: Reduce = SINGLE_WORKER,
    ) -> None:
        super().__init__(task=task, reduce=reduce)
        self.modalities = tuple(modalities)
        self._predict = (predict,)
        self._level, self._warmup, self._alpha, self._part = level, warmup, alpha, part
        # No buffer, which a loop of a person's own copies in every step: [samples, M], NaN where a sample lacks the modality.
        self._values_SM: Tensor | None = None
        self.register_buffer("value_M", torch.zeros(len(self.modalities), dtype=torch.float64))

    value_M: Tensor

    def measures(self, epoch: int) -> Mapping[str, int | None]:
        """The training split, after the warm-up."""
        return {"train": None} if epoch >= self._warmup else {}

    def measure(self, features: dict[str, Feature], batch: Batch) -> Tensor:
        """phi [N, M]; NaN where a sample lacks the modality."""
        (predict,) = self._predict
        scores: dict[frozenset[str], Tensor] = {
            frozenset(): torch.zeros(len(batch), dtype=torch.float64, device=batch.target.device)
        }
        for kept in all_subsets(self.modalities)[1:]:
            right = logits_of(predict, keep_only(features, kept), batch.masks).argmax(1) == batch.target
            scores[kept] = len(kept) * right.double()
        values = shapley_values(scores, self.modalities)
        has = [batch.having(name).sample_weights() > 0 for name in self.modalities]
        columns = zip(self.modalities, has, strict=True)
        return torch.stack([torch.where(has_N, values[name], torch.nan) for name, has_N in columns], 1)

    def begin_epoch(self, epoch: int, measured: Mapping[str, Tensor]) -> None:
        """Takes the values of all samples."""
        if measured:
            self._values_SM = measured["train"]
            self.value_M.copy_(self._values_SM.nanmean(0).nan_to_num(nan=0.0))

    def plan(self, order: Tensor, *, epoch: int, seed: int, batch_size: int) -> EpochPlan:
        """As many samples as there are in the order, of all samples and their copies."""
        m = len(self.modalities)
        if self._values_SM is None:
            # Recorded steps are all of one form.
            return EpochPlan(order, {KEPT: torch.ones(len(order), m, dtype=torch.bool)})
        draw = generator(seed, "given", epoch)
        copies_SM = copies(self._values_SM) if self._level == "sample" else self._few(draw)
        times = [torch.ones_like(copies_SM[:, 0]), *copies_SM.unbind(1)]
        rows = [torch.arange(len(copies_SM)).repeat_interleave(number) for number in times]
        kept = torch.cat([torch.ones(1, m, dtype=torch.bool), torch.eye(m, dtype=torch.bool)])
        kinds = torch.cat([torch.full((len(part),), kind) for kind, part in enumerate(rows)])
        chosen = torch.cat([torch.randperm(len(kinds), generator=draw) for _ in range(-(-len(order) // len(kinds)))])
        chosen = chosen[: len(order)]
        return EpochPlan(torch.cat(rows)[chosen], {KEPT: kept[kinds[chosen]]})

    def _few(self, draw: torch.Generator) -> Tensor:
        """Copies [samples, M] of the level modality."""
        assert self._values_SM is not None
        samples, m = self._values_SM.shape
        part = torch.randint(samples, (max(1, int(samples * self._part)),), generator=draw)
        gap_M = 1 - self._values_SM[part].nanmean(0).nan_to_num(nan=1.0)
        most = int(gap_M.argmax())
        others = (gap_M.sum() - gap_M[most]) / max(1, m - 1)
        number = int(float(gap_M[most] - others) * 2 / 3 * self._alpha * samples)
        found = torch.zeros(samples, m, dtype=torch.int64)
        having = torch.nonzero(~self._values_SM[:, most].isnan())[:, 0]
        if len(having):
            drawn = having[torch.randint(len(having), (number,), generator=draw)]
            found[:, most] = torch.bincount(drawn, minlength=samples)
        return found

    def transform(
        self, features: dict[str, Feature], batch: Batch, totals: Totals | None = None
    ) -> tuple[dict[str, Feature], Memo]:
        """The features with zeros where a copy has another modality alone."""
        kept_NM = None if batch.given is None else batch.given.get(KEPT)
        if kept_NM is None or not self.training:
            return features, None
        kept = zip(self.modalities, kept_NM.unbind(1), strict=True)
        return {name: each(features[name], partial(_where, kept_N)) for name, kept_N in kept}, None

    def combine(self, task_sums: Tensor, own_sums: Tensor, memo: Memo) -> Tensor:
        """There is no term of the loss; the log shows the mean value of each modality."""
        self.diagnostics = {"value": self.value_M.clone()}
        return own_sums.new_zeros(())

    def get_extra_state(self) -> dict[str, Any]:
        """The values of the samples."""
        return {"values": self._values_SM}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Puts them back."""
        self._values_SM = state["values"]


def copies(values_SM: Tensor) -> Tensor:
    """Copies of every sample with each modality alone, int64 [samples, M]."""
    return (values_SM < 1 - 1e-9).long() + (values_SM < SOME).long() + (values_SM < MORE).long()


def _where(kept_N: Tensor, part: Tensor) -> Tensor:
    return part.masked_fill(~kept_N.reshape(-1, *[1] * (part.ndim - 1)), 0)


def _build(given: Materials[ValuationOptions]) -> Strategy:
    options = given.options
    return Valuation(
        given.modalities,
        as_in_inference(given.net),
        task=cast(Classification, given.task),
        level=options.valuation_level,
        warmup=options.valuation_warmup,
        alpha=options.valuation_alpha,
        part=options.valuation_part,
        reduce=given.reduce,
    )


RECIPE = {"optim": "Adam", "lr": 5e-5, "weight_decay": 1e-4, "clip": 0.0, "batch_size": 64, "num_epochs": 60}
STRATEGIES.register("valuation")(
    StrategyInfo(build=_build, options=ValuationOptions, tasks=(Classification,), recipe=RECIPE)
)
