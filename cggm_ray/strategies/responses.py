"""The base of strategies that score every modality by what the fused network answers, and scale its encoder's gradient.

OGM and AGM differ in two questions only: what the answer of a modality is, and which coefficient follows from its score.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cggm_ray.core.batch import Batch, Feature, HeadOutput
from cggm_ray.core.reduction import SINGLE_WORKER, Reduce, Totals
from cggm_ray.strategies.base import Memo, Strategy
from cggm_ray.strategies.features import Predict, check_several
from cggm_ray.strategies.gate import Gates, scaled
from cggm_ray.tasks.base import Task


class _Memo(NamedTuple):
    """Of a pass; `coefficient_M` is None where `combine` decides it. `gates` have it as soon as it is decided."""

    scores: Tensor
    coefficient_M: Tensor | None
    gates: Gates


class ResponseStrategy(Strategy):
    """Scores the response of every modality, and scales the gradient of its encoder by a coefficient that follows.

    Args:
        modalities: their names, in the order of the coefficients.
        predict: the fused prediction from features, `net.fuse`. It is called without gradient.
        task: what is predicted.
        gated: whether the gradient is scaled at the features; else a subclass scales it elsewhere.
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
        gated: bool = True,
        reduce: Reduce = SINGLE_WORKER,
    ) -> None:
        super().__init__(task=task, reduce=reduce)
        check_several(modalities)
        self.modalities = tuple(modalities)
        # In a tuple: a bound method of a network is not a part of the strategy, a module might be taken for one.
        self._predict = (predict,)
        self.gated = gated

    @property
    def predict(self) -> Predict:
        """The fused prediction from features."""
        return self._predict[0]

    @abstractmethod
    def answers(self, features: Mapping[str, Feature], batch: Batch) -> list[Tensor]:
        """The response of each modality, logits [N, C, ...] without gradient."""

    @abstractmethod
    def score_sums(self, logits: Tensor, batch: Batch) -> Tensor:
        """The additive sums from which the score of a modality follows, float64 [K].

        Args:
            logits: of `answers`, for one modality.
            batch: in which the samples count that have the modality.
        """

    @abstractmethod
    def decide(self, sums_MK: Tensor, seen_M: Tensor) -> Tensor:
        """Coefficients [M] from the sums of the global batch, which are ones where no sample has the modality."""

    def transform(
        self, features: dict[str, Feature], batch: Batch, totals: Totals | None = None
    ) -> tuple[dict[str, Feature], Memo]:
        """Finds the responses, and scales the gradients of the features by the coefficients, or places gates.

        A single worker decides the coefficients here. With several, `combine` decides them after the one all-reduce of the
        step, and opens the gates; see `cggm_ray.strategies.cggm`.
        """
        scores = self._scores(self.answers(features, batch), batch)
        known = self.known_sums(scores, totals)
        memo = _Memo(scores, None if known is None else self._coefficients(known), Gates())
        if memo.coefficient_M is not None:
            memo.gates.open(memo.coefficient_M)
        if not self.gated:
            return features, memo
        if memo.coefficient_M is None:
            return {name: memo.gates.place(features[name], index) for index, name in enumerate(self.modalities)}, memo
        factors = dict(zip(self.modalities, memo.coefficient_M, strict=True))
        return {name: scaled(features[name], factor) for name, factor in factors.items()}, memo

    def sums(self, head: HeadOutput, batch: Batch, memo: Memo) -> Tensor:
        """[score sums M K | samples that have the modality M]."""
        scores: Tensor = memo.scores
        return scores

    def combine(self, task_sums: Tensor, own_sums: Tensor, memo: Memo) -> Tensor:
        """Decides the coefficients and opens the gates, if that is still to do; there is no term of the loss."""
        if memo.coefficient_M is None:
            memo.gates.open(self._coefficients(own_sums.detach()))
        return own_sums.new_zeros(())

    @torch.no_grad()
    def _scores(self, answers: list[Tensor], batch: Batch) -> Tensor:
        counted = [batch.having(name) for name in self.modalities]
        counts = [part.sample_weights().sum() for part in counted]
        # Like all sums in full precision, also where the networks run in another.
        with torch.autocast(batch.target.device.type, enabled=False):
            scores = [self.score_sums(logits, part) for logits, part in zip(answers, counted, strict=True)]
        return torch.cat([*scores, torch.stack(counts)])

    def _coefficients(self, scores: Tensor) -> Tensor:
        """Coefficients [M] from the scores of the global batch."""
        m = len(self.modalities)
        sums_MK, count_M = scores[:-m].reshape(m, -1), scores[-m:]
        seen_M = count_M > 0
        coefficient_M = self.decide(torch.where(seen_M[:, None], sums_MK, 1.0), seen_M)
        self.diagnostics["coefficient"] = coefficient_M
        return coefficient_M
