"""Guides as a measure of single modalities: their losses and utilities, in training and on validation.

A strategy that subclasses `Guided` has a guide per modality with an optimizer of its own, which is part of its state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cggm_ray.core.batch import Feature, HeadOutput
from cggm_ray.core.reduction import Reduce, alone
from cggm_ray.models.ensemble import Ensemble
from cggm_ray.strategies.base import Strategy
from cggm_ray.strategies.features import counted, detached, in_precision
from cggm_ray.tasks.base import Task

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


class Guided(Strategy):
    """A strategy with guides.

    Args:
        guides: by modality; none for a strategy that can do without.
        task: what is predicted.
        optimizer: makes the guides' optimizer from their parameters.
        detach: whether the guides' gradient ends at the features.
        reduce: sums a vector over workers.
    """

    def __init__(
        self,
        guides: Mapping[str, nn.Module],
        *,
        task: Task,
        optimizer: MakeOptimizer,
        detach: bool,
        reduce: Reduce = alone,
    ) -> None:
        super().__init__(task=task, reduce=reduce)
        self.guides = nn.ModuleDict(guides)
        self.optimizer = optimizer(self.guides.parameters()) if guides else None
        self._detach = detach
        self._outputs: list[tuple[HeadOutput, Tensor | None]] = []

    def modulate(
        self,
        features: dict[str, Feature],
        target: Tensor,
        present: Mapping[str, Tensor] | None = None,
        weight: Tensor | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Feature]:
        """Runs the guides; the features stay as they are."""
        super().modulate(features, target, present, weight, masks)
        self._outputs = self._run(features, present, weight, masks)
        return features

    def sums(self, head: HeadOutput, target: Tensor, weight: Tensor | None) -> Tensor:
        """The guides' losses, [M K]."""
        if self.guides and not self._outputs:
            raise RuntimeError("balance.loss(...) before balance.modulate(...)")
        sums = [self.task.sums(guide.logits, target, w) for guide, w in self._outputs]
        self._outputs = []
        return torch.cat(sums) if sums else super().sums(head, target, weight)

    def guide_losses(self, sums_MK: Tensor) -> Tensor:
        """The guides' losses [M] from their sums; 0, without gradient, where no sample has the modality."""
        return losses_of(self.task, sums_MK)

    def observe(
        self,
        features: dict[str, Feature],
        target: Tensor,
        present: Mapping[str, Tensor] | None = None,
        weight: Tensor | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """[guide losses M K | utilities M 2] of a validation batch."""
        outputs = [(in_precision(guide.logits), w) for guide, w in self._run(features, present, weight, masks)]
        utility = self.task.utility(self.task.default_utility)
        ones = torch.ones(len(target), dtype=torch.float64, device=target.device)
        losses = [self.task.sums(logits, target, w) for logits, w in outputs]
        utilities = [utility(logits, target, ones if w is None else w.double()) for logits, w in outputs]
        return torch.cat([*losses, *utilities])

    def observed_losses(self, observed: Tensor) -> Tensor:
        """The guides' validation losses [M] from the sums of `observe`."""
        m, k = len(self.guides), self.task.n_sums
        return self.guide_losses(observed[: m * k].reshape(m, k))

    def observed_utilities(self, observed: Tensor) -> Tensor:
        """The guides' validation utilities [M] from the sums of `observe`; NaN where no sample has the modality."""
        sums_M2 = observed[len(self.guides) * self.task.n_sums :].reshape(-1, 2)
        return sums_M2[:, 0] / sums_M2[:, 1]

    def own_optimizer(self) -> Optimizer | None:
        """The guides' optimizer."""
        return self.optimizer

    def get_extra_state(self) -> dict[str, Any]:
        """State of the guides' optimizer; with it, `state_dict` is all that a resume needs."""
        return {} if self.optimizer is None else self.optimizer.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Puts the guides' optimizer back."""
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state)

    def _run(
        self,
        features: Mapping[str, Feature],
        present: Mapping[str, Tensor] | None,
        weight: Tensor | None,
        masks: Mapping[str, Tensor] | None,
    ) -> list[tuple[HeadOutput, Tensor | None]]:
        """Output of every guide, with the weights of the samples that count for it."""
        outputs = []
        for name, guide in self.guides.items():
            feature = detached(features[name]) if self._detach else features[name]
            mask = [] if masks is None or name not in masks else [masks[name]]
            outputs.append((guide(feature, *mask), counted(weight, present, name)))
        return outputs


class OfEnsemble(Strategy):
    """A strategy whose network predicts by an ensemble of uni-modal members instead of a fusion.

    Args:
        ensemble: which the network has in the place of its fusion.
        task: what is predicted.
        reduce: sums a vector over workers.
    """

    def __init__(self, ensemble: Ensemble, *, task: Task, reduce: Reduce = alone) -> None:
        super().__init__(task=task, reduce=reduce)
        # In a tuple: its parameters are the network's, and not registered a second time.
        self._ensemble = (ensemble,)
        self._present: Mapping[str, Tensor] | None = None

    @property
    def ensemble(self) -> Ensemble:
        """The members and their last predictions."""
        return self._ensemble[0]

    def modulate(
        self,
        features: dict[str, Feature],
        target: Tensor,
        present: Mapping[str, Tensor] | None = None,
        weight: Tensor | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Feature]:
        """Keeps what is present; the features stay as they are."""
        super().modulate(features, target, present, weight, masks)
        self._present = present
        return features


def losses_of(task: Task, sums_MK: Tensor) -> Tensor:
    """Losses [M] from their sums; 0, without gradient, where no sample has the modality."""
    # A count of 0 would make 0 / 0; ones in its place keep the gradients of the others finite.
    seen_M = (sums_MK.detach() != 0).any(1)
    safe_MK = torch.where(seen_M[:, None], sums_MK, 1.0)
    return torch.where(seen_M, torch.stack([task.combine(sums) for sums in safe_MK]), 0.0)
