"""Guides as a measure of single modalities: their losses and utilities, in training and on validation.

A strategy that subclasses `Guided` has a guide per modality with an optimizer of its own, which is part of its state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cggm_ray.core.arithmetic import in_precision
from cggm_ray.core.batch import Batch, Feature, HeadOutput
from cggm_ray.core.reduction import SINGLE_WORKER, Reduce, Totals
from cggm_ray.strategies.base import Memo, Strategy
from cggm_ray.strategies.features import detached
from cggm_ray.tasks.base import Task, Utility

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
GuideOutputs = list[tuple[HeadOutput, Batch]]
"""Of every guide, with the batch in which the samples count that have its modality."""


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
        reduce: Reduce = SINGLE_WORKER,
    ) -> None:
        super().__init__(task=task, reduce=reduce)
        self.guides = nn.ModuleDict(guides)
        self.optimizer = optimizer(self.guides.parameters()) if guides else None
        self._detach = detach

    def transform(
        self, features: dict[str, Feature], batch: Batch, totals: Totals | None = None
    ) -> tuple[dict[str, Feature], Memo]:
        """Runs the guides, whose outputs are the memo; the features stay as they are."""
        return features, self.run_guides(features, batch)

    def sums(self, head: HeadOutput, batch: Batch, memo: Memo) -> Tensor:
        """The guides' losses, [M K]."""
        return self.guide_sums(memo) if self.guides else super().sums(head, batch, memo)

    def guide_sums(self, outputs: GuideOutputs) -> Tensor:
        """The additive sums of the guides' losses, [M K]."""
        return torch.cat([self.task.sums(guide.logits, batch) for guide, batch in outputs])

    def utility_sums(self, utility: Utility, outputs: GuideOutputs) -> Tensor:
        """The additive sums of the guides' utilities, [M 2], without gradient; in the precision of the logits."""
        # Like all sums in full precision, also where the networks run in another.
        with torch.no_grad(), torch.autocast(outputs[0][0].logits.device.type, enabled=False):
            return torch.cat([utility(guide.logits, batch) for guide, batch in outputs])

    def guide_losses(self, sums_MK: Tensor) -> Tensor:
        """The guides' losses [M] from their sums; 0, without gradient, where no sample has the modality."""
        return losses_of(self.task, sums_MK)

    def observe(self, features: dict[str, Feature], batch: Batch) -> Tensor:
        """[guide losses M K | utilities M 2] of a validation batch."""
        outputs = [
            (guide._replace(logits=in_precision(guide.logits)), counted)
            for guide, counted in self.run_guides(features, batch)
        ]
        utility = self.task.utility(self.task.default_utility)
        return torch.cat([self.guide_sums(outputs), self.utility_sums(utility, outputs)])

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

    def run_guides(self, features: Mapping[str, Feature], batch: Batch) -> GuideOutputs:
        """Output of every guide, with the batch in which the samples count that have its modality."""
        outputs = []
        for name, guide in self.guides.items():
            feature = detached(features[name]) if self._detach else features[name]
            mask = [] if batch.masks is None or name not in batch.masks else [batch.masks[name]]
            outputs.append((guide(feature, *mask), batch.having(name)))
        return outputs


def losses_of(task: Task, sums_MK: Tensor) -> Tensor:
    """Losses [M] from their sums; 0, without gradient, where no sample has the modality."""
    # A count of 0 would make 0 / 0; ones in its place keep the gradients of the others finite.
    seen_M = (sums_MK.detach() != 0).any(1)
    safe_MK = torch.where(seen_M[:, None], sums_MK, 1.0)
    return torch.where(seen_M, torch.stack([task.combine(sums) for sums in safe_MK]), 0.0)
