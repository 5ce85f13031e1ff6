"""An ensemble of uni-modal models in the place of fusion and head: the prediction is the sum or the mean of theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cggm_ray.models.net import Masks, MultimodalNet

if TYPE_CHECKING:
    from cggm_ray.core.batch import Feature


class Ensemble(nn.Module):
    """The members' predictions, put together; what a sample lacks has no vote.

    Args:
        members: by modality; each maps the feature of its modality to a `HeadOutput`.
        mean: take the mean instead of the sum.

    Attributes:
        logits: of every member in the last forward pass, by modality, with their graph; those of samples without the
            modality are 0.
    """

    def __init__(self, members: Mapping[str, nn.Module], *, mean: bool) -> None:
        super().__init__()
        self.members = nn.ModuleDict(members)
        self.logits: dict[str, Tensor] = {}
        self._mean = mean

    def forward(self, features: Mapping[str, Feature], masks: Masks | None = None) -> Tensor:
        """Features by modality to logits [N, C, ...]."""
        self.logits, votes = {}, []
        for name, member in self.members.items():
            mask = None if masks is None else masks.get(name)
            logits = member(features[name]).logits if mask is None else member(features[name], mask).logits
            has_N1 = logits.new_ones(len(logits), *[1] * (logits.ndim - 1))
            if mask is not None:
                there = mask.any(1).reshape(has_N1.shape)
                logits, has_N1 = logits.masked_fill(~there, 0), has_N1 * there
            self.logits[name] = logits
            votes.append(has_N1)
        total = torch.stack(list(self.logits.values())).sum(0)
        return total / torch.stack(votes).sum(0).clamp(min=1) if self._mean else total


def ensemble_net(net: MultimodalNet, members: Mapping[str, nn.Module], *, mean: bool) -> MultimodalNet:
    """The encoders of a network with an ensemble of their guides instead of its fusion; the head is the identity.

    Args:
        net: whose encoders are taken.
        members: the guides, by modality.
        mean: see `Ensemble`.
    """
    encoders = {name: net.encoders[name] for name in members}
    return MultimodalNet(encoders, Ensemble(members, mean=mean), nn.Identity())


def ensemble_of(net: MultimodalNet) -> Ensemble:
    """The ensemble of a network that `ensemble_net` made."""
    assert isinstance(net.fusion, Ensemble)
    return net.fusion
