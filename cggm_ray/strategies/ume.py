"""UME, uni-modal ensemble: Du et al., "On Uni-Modal Feature Learning in Supervised Multi-Modal Learning" (ICML 2023).

The uni-modal models are trained each by its own loss, without anything in common, and the prediction is the mean of their
logits: the baseline for data where modalities have little to say together. Here encoder and guide of a modality
are its model; all are trained side by side, by the sum of their losses, and fusion and head are left out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cggm_ray.core.batch import Batch, HeadOutput
from cggm_ray.models.ensemble import ensemble_net, members_of
from cggm_ray.strategies.base import Memo, Strategy
from cggm_ray.strategies.guided import losses_of
from cggm_ray.strategies.registry import STRATEGIES, Materials, StrategyInfo, StrategyOptions


class UME(Strategy):
    """Trains models of single modalities side by side, each by its own loss.

    The network predicts by an ensemble, which gives `HeadOutput.members`.
    """

    def sums(self, head: HeadOutput, batch: Batch, memo: Memo) -> Tensor:
        """The members' losses, [M K]."""
        members = members_of(head)
        return torch.cat([self.task.sums(logits, batch.having(name)) for name, logits in members.items()])

    def combine(self, task_sums: Tensor, own_sums: Tensor, memo: Memo) -> Tensor:
        """The sum of the members' losses, without the loss of the ensemble, by which nothing is trained."""
        losses_M = losses_of(self.task, own_sums.reshape(-1, self.task.n_sums))
        self.diagnostics = {"guide_loss": losses_M.detach()}
        return losses_M.sum() - self.task.combine(task_sums)


def _build(given: Materials[StrategyOptions]) -> Strategy:
    return UME(task=given.task, reduce=given.reduce)


STRATEGIES.register("ume")(
    StrategyInfo(
        build=_build, options=StrategyOptions, network=lambda net, guides, options: ensemble_net(net, guides, mean=True)
    )
)
