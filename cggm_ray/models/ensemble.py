"""An ensemble of uni-modal models in the place of fusion and head: the prediction is the sum or the mean of theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cggm_ray.core.batch import Feature, HeadOutput
from cggm_ray.core.errors import UsageError
from cggm_ray.models.net import Masks, MultimodalNet


class Votes(NamedTuple):
    """The prediction of an ensemble.

    Attributes:
        logits: [N, C, ...] of the ensemble.
        members: modality name to the logits of its member, of the same shape, with their graph; those of samples without
            the modality are 0.
    """

    logits: Tensor
    members: dict[str, Tensor]


class Ensemble(nn.Module):
    """The sum or mean of the members' predictions, over the modalities that a sample has.

    Args:
        members: by modality; each maps the feature of its modality to a `HeadOutput`.
        mean: take the mean instead of the sum.
    """

    def __init__(self, members: Mapping[str, nn.Module], *, mean: bool) -> None:
        super().__init__()
        self.members = nn.ModuleDict(members)
        self._mean = mean

    def forward(self, features: Mapping[str, Feature], masks: Masks | None = None) -> Votes:
        """Features by modality to the logits of the ensemble and of its members."""
        said, votes = {}, []
        for name, member in self.members.items():
            mask = None if masks is None else masks.get(name)
            logits = member(features[name]).logits if mask is None else member(features[name], mask).logits
            has_N1 = logits.new_ones(len(logits), *[1] * (logits.ndim - 1))
            if mask is not None:
                there = mask.any(1).reshape(has_N1.shape)
                logits, has_N1 = logits.masked_fill(~there, 0), has_N1 * there
            said[name] = logits
            votes.append(has_N1)
        total = torch.stack(list(said.values())).sum(0)
        return Votes(total / torch.stack(votes).sum(0).clamp(min=1) if self._mean else total, said)


class EnsembleNet(MultimodalNet):
    """A network whose fusion is an `Ensemble`; the head gets its logits."""

    def fuse(self, features: Mapping[str, Feature], masks: Masks | None = None) -> HeadOutput:
        """The ensemble's prediction from the features, with those of its members."""
        logits, members = self.fusion(features) if masks is None else self.fusion(features, masks)
        return HeadOutput(self.head(logits), logits, members=members)


def ensemble_net(net: MultimodalNet, members: Mapping[str, nn.Module], *, mean: bool) -> MultimodalNet:
    """The encoders of a network with an ensemble of their guides instead of its fusion; the head is the identity.

    Args:
        net: whose encoders are taken.
        members: the guides, by modality.
        mean: see `Ensemble`.
    """
    encoders = {name: net.encoders[name] for name in members}
    return EnsembleNet(encoders, Ensemble(members, mean=mean), nn.Identity(), dict(net.inputs.items()))


def ensemble_of(net: MultimodalNet) -> Ensemble:
    """The ensemble of a network that `ensemble_net` made."""
    assert isinstance(net.fusion, Ensemble)
    return net.fusion


def members_of(head: HeadOutput) -> Mapping[str, Tensor]:
    """The logits of the members of an ensemble, by modality.

    Raises:
        UsageError: the prediction is not that of an ensemble.
    """
    if head.members is None:
        raise UsageError(
            "modulation: this strategy trains the members of an ensemble; expected a network of `ensemble_net`"
        )
    return head.members
