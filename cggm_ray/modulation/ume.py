"""UME, uni-modal ensemble: Du et al., "On Uni-Modal Feature Learning in Supervised Multi-Modal Learning" (ICML 2023).

The uni-modal models are trained each by its own loss, without anything in common, and the prediction is the mean of their
logits: the baseline for data where modalities have little to say together. Here encoder and guide of a modality
are its model; all are trained side by side, by the sum of their losses, and fusion and head are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cggm_ray.batch import Feature, HeadOutput
from cggm_ray.models.ensemble import Ensemble, ensemble_net, ensemble_of
from cggm_ray.modulation.base import STRATEGIES, Reduce, Strategy, StrategyInfo, alone
from cggm_ray.modulation.features import counted
from cggm_ray.modulation.unimodal import losses_of
from cggm_ray.tasks.base import Task

if TYPE_CHECKING:
    from cggm_ray.config import Config
    from cggm_ray.models.net import MultimodalNet


class UME(Strategy):
    """See the module.

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
        self._present = present
        return features

    def sums(self, head: HeadOutput, target: Tensor, weight: Tensor | None) -> Tensor:
        """The members' losses, [M K]."""
        return torch.cat(
            [
                self.task.sums(logits, target, counted(weight, self._present, name))
                for name, logits in self.ensemble.logits.items()
            ]
        )

    def combine(self, task_sums: Tensor, own_sums: Tensor) -> Tensor:
        """The sum of the members' losses, without the loss of the ensemble, by which nothing is trained."""
        losses_M = losses_of(self.task, own_sums.reshape(-1, self.task.n_sums))
        self.diagnostics = {"guide_loss": losses_M.detach()}
        return losses_M.sum() - self.task.combine(task_sums)


def _build(config: Config, net: MultimodalNet, guides: Mapping[str, nn.Module], task: Task, reduce: Reduce) -> Strategy:
    return UME(ensemble_of(net), task=task, reduce=reduce)


STRATEGIES.register("ume")(
    StrategyInfo(build=_build, network=lambda config, net, guides: ensemble_net(net, guides, mean=True))
)
