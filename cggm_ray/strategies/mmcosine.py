"""MMCosine: Xu et al., "MMCosine: Multi-Modal Cosine Loss Towards Balanced Audio-Visual Fine-Grained Learning" (ICASSP 2023,
arXiv 2303.05338).

In a late fusion by one linear layer on concatenated features the logit of class c is sum_m W_m,c . h_m, so a modality may win
by the length of its features or weights alone. MMCosine takes the lengths away:

    logit_c = s * sum_m cos(W_m,c, h_m),

with one scale s for all. It is the network that changes, in training and in prediction; the loss is the task's.

Here h_m is what the guide of modality m hands to its last layer, and W_m is the weight of that layer (its bias is not used):
encoder and guide of a modality are its part, and the run's own fusion and head are left out. A sample that lacks a modality
has no vote of it. Checked by recorded numbers of the released code, without its optional contrastive term, which the
method of the paper does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cggm_ray.config.fields import check, option
from cggm_ray.core.batch import Batch, Feature, HeadOutput
from cggm_ray.core.errors import UsageError
from cggm_ray.models.ensemble import ensemble_net, members_of
from cggm_ray.models.net import MultimodalNet
from cggm_ray.strategies.base import Memo, Strategy
from cggm_ray.strategies.guided import losses_of
from cggm_ray.strategies.registry import STRATEGIES, Materials, StrategyInfo, StrategyOptions
from cggm_ray.tasks.classification import Classification


@dataclass(frozen=True, kw_only=True)
class MMCosineOptions(StrategyOptions):
    """Flags of MMCosine."""

    mmcosine_scale: float = option(10.0, "mmcosine: scale of the cosines")

    def __post_init__(self) -> None:
        check(0 < self.mmcosine_scale < float("inf"), self, "mmcosine_scale", "a positive number")


class CosineMember(nn.Module):
    """A guide whose logits are scaled cosines between its last hidden vector and the rows of its last layer.

    Args:
        guide: with a last linear layer `head`, which loses its bias.
        scale: s.

    Raises:
        UsageError: the guide has no such layer.
    """

    def __init__(self, guide: nn.Module, scale: float) -> None:
        super().__init__()
        head = getattr(guide, "head", None)
        if not isinstance(head, nn.Linear):
            raise UsageError(
                f"modulation: mmcosine needs guides that end in a linear layer named head; found {type(head).__name__} in "
                f"{type(guide).__name__}"
            )
        # A parameter without a gradient is an error under DistributedDataParallel.
        head.register_parameter("bias", None)
        self.guide, self.scale = guide, scale

    def forward(self, feature: Feature, *mask: Tensor) -> HeadOutput:
        """The scaled cosines [N, C], with the hidden vector [N, D]."""
        hidden_ND = self.guide(feature, *mask).hidden
        weight_CD = self.guide.get_parameter("head.weight")
        return HeadOutput(self.scale * F.linear(F.normalize(hidden_ND), F.normalize(weight_CD)), hidden_ND)


class MMCosine(Strategy):
    """Joint training of a network whose logits are sums of cosines; it logs the loss of every modality alone."""

    def sums(self, head: HeadOutput, batch: Batch, memo: Memo) -> Tensor:
        """The losses of the members alone, [M K], without gradient."""
        members = members_of(head).items()
        return torch.cat([self.task.sums(logits.detach(), batch.having(name)) for name, logits in members])

    def combine(self, task_sums: Tensor, own_sums: Tensor, memo: Memo) -> Tensor:
        """No term of the loss."""
        self.diagnostics = {"guide_loss": losses_of(self.task, own_sums.detach().reshape(-1, self.task.n_sums))}
        return own_sums.new_zeros(())


def _network(net: MultimodalNet, guides: Mapping[str, nn.Module], options: MMCosineOptions) -> MultimodalNet:
    members = {name: CosineMember(guide, options.mmcosine_scale) for name, guide in guides.items()}
    return ensemble_net(net, members, mean=False)


def _build(given: Materials[MMCosineOptions]) -> Strategy:
    return MMCosine(task=given.task, reduce=given.reduce)


STRATEGIES.register("mmcosine")(
    StrategyInfo(build=_build, options=MMCosineOptions, tasks=(Classification,), network=_network)
)
