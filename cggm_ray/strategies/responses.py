"""The base of strategies that score every modality by what the fused network answers, and scale its encoder's gradient.

OGM and AGM differ in two questions only: what the answer of a modality is, and which coefficient follows from its score.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cggm_ray.core.batch import Feature, HeadOutput
from cggm_ray.core.errors import UsageError
from cggm_ray.core.reduction import Reduce, alone
from cggm_ray.strategies.base import Strategy
from cggm_ray.strategies.features import Predict, counted
from cggm_ray.strategies.gate import Gates
from cggm_ray.tasks.base import Task


class ResponseStrategy(Strategy):
    """Modalities answer, answers are scored, scores become coefficients.

    Args:
        modalities: their names, in the order of the coefficients.
        predict: the fused prediction from features, `net.fuse`. It is called without gradient.
        task: what is predicted.
        reduce: sums a vector over workers.

    Attributes:
        gated: whether the gradient is scaled at the features; else a subclass scales it elsewhere.

    Raises:
        UsageError: fewer than two modalities.
    """

    def __init__(
        self, modalities: Sequence[str], predict: Predict, *, task: Task, gated: bool = True, reduce: Reduce = alone
    ) -> None:
        super().__init__(task=task, reduce=reduce)
        if len(modalities) < 2:
            raise UsageError(
                f"modulation: at least two modalities can be balanced, found {len(modalities)}; use the strategy 'none'"
            )
        self.modalities = tuple(modalities)
        # In a tuple: a bound method of a network is not a part of the strategy, a module might be taken for one.
        self._predict = (predict,)
        self.gates = Gates()
        self.gated = gated
        self._answers: list[Tensor] = []
        self._weights: list[Tensor | None] = []

    @property
    def predict(self) -> Predict:
        """The fused prediction from features."""
        return self._predict[0]

    @abstractmethod
    def answers(self, features: Mapping[str, Feature], masks: Mapping[str, Tensor] | None) -> list[Tensor]:
        """Logits [N, C, ...] that are ascribed to each modality, without gradient."""

    @abstractmethod
    def score_sums(self, logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        """What the score of a modality is made of, additive, float64 [K]."""

    @abstractmethod
    def decide(self, sums_MK: Tensor, seen_M: Tensor) -> Tensor:
        """Coefficients [M] from the sums of the global batch; where a modality was not seen its sums are ones."""

    def modulate(
        self,
        features: dict[str, Feature],
        target: Tensor,
        present: Mapping[str, Tensor] | None = None,
        weight: Tensor | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Feature]:
        """Asks the modalities, and places the gates; see `Strategy.modulate`."""
        super().modulate(features, target, present, weight, masks)
        self.gates.close()
        self._answers = self.answers(features, masks)
        self._weights = [counted(weight, present, name) for name in self.modalities]
        if not self.gated:
            return features
        return {name: self.gates.place(features[name], index) for index, name in enumerate(self.modalities)}

    @torch.no_grad()
    def sums(self, head: HeadOutput, target: Tensor, weight: Tensor | None) -> Tensor:
        """[score sums M K | samples that have the modality M]."""
        if not self._answers:
            raise RuntimeError("balance.loss(...) before balance.modulate(...)")
        answers = list(zip(self._answers, self._weights, strict=True))
        everyone = torch.full((), len(target), dtype=torch.float64, device=target.device)
        counts = [everyone if w is None else w.double().sum() for _, w in answers]
        scores = [self.score_sums(logits, target, w) for logits, w in answers]
        self._answers, self._weights = [], []
        return torch.cat([*scores, torch.stack(counts)])

    def combine(self, task_sums: Tensor, own_sums: Tensor) -> Tensor:
        """Opens the gates with this step's coefficients; there is no term of the loss."""
        m = len(self.modalities)
        sums_MK, count_M = own_sums.detach()[:-m].reshape(m, -1), own_sums.detach()[-m:]
        seen_M = count_M > 0
        coefficient_M = self.decide(torch.where(seen_M[:, None], sums_MK, 1.0), seen_M)
        self.gates.open(coefficient_M)
        self.diagnostics["coefficient"] = coefficient_M
        return own_sums.new_zeros(())
