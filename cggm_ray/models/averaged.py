"""Several networks as one: the mean, or a weighted sum, of their predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from cggm_ray.core.arithmetic import in_precision
from cggm_ray.core.batch import Batch, Feature, HeadOutput
from cggm_ray.core.errors import UsageError
from cggm_ray.models.net import Masks, MultimodalNet


def mean_prediction(logits_MNC: Tensor, share_M: Tensor, *, classes: bool) -> Tensor:
    """Returns the weighted mean of predictions: for classes the logarithm of the mean probabilities, otherwise of the values.

    Args:
        logits_MNC: of M networks, [M, N, C].
        share_M: their weights, which add up to 1; weights of values may have another sum.
        classes: whether logits of classes are averaged as probabilities.
    """
    share_M = share_M.to(logits_MNC)
    if not classes:
        return torch.einsum("m,mnc->nc", share_M, logits_MNC)
    return (logits_MNC.log_softmax(-1) + share_M.log()[:, None, None]).logsumexp(0)


class AveragedNet(MultimodalNet):
    """The weighted mean or sum of networks that take the same modalities and predict one vector a sample.

    The feature of a modality is the tuple of those of all members, which may be such means themselves. Its own encoders only
    name the modalities; encoders, fusion and head are those of the members.

    Args:
        members: the networks.
        shares: their weights, as `mean_prediction` takes them.
        modalities: that they take.
        classes: whether probabilities of classes are averaged, and not values or logits.
    """

    share: Tensor

    def __init__(
        self, members: Sequence[MultimodalNet], shares: Sequence[float], modalities: Sequence[str], *, classes: bool
    ) -> None:
        super().__init__({name: nn.Identity() for name in modalities}, nn.Identity(), nn.Identity())
        self.members = nn.ModuleList(members)
        self.register_buffer("share", torch.tensor(shares, dtype=torch.float32))
        self._classes = classes

    def encode(self, batch: Batch | Mapping[str, Tensor], masks: Masks | None = None) -> dict[str, Feature]:
        """Features of every modality, one of each member.

        Raises:
            UsageError: an encoder gives several tensors.
        """
        found = [(member, member.encode(batch, masks)) for member in self._members()]
        return {
            name: tuple(part for member, features in found for part in _parts(name, member, features[name]))
            for name in self.encoders
        }

    def fuse(self, features: Mapping[str, Feature], masks: Masks | None = None) -> HeadOutput:
        """The mean of the predictions from the features."""
        logits, start = [], 0
        for member in self._members():
            if isinstance(member, AveragedNet):
                own: dict[str, Feature] = {name: parts[start : start + member.size] for name, parts in features.items()}
                start += member.size
            else:
                own = {name: parts[start] for name, parts in features.items()}
                start += 1
            logits.append(in_precision(member.fuse(own, masks).logits))
        mean = mean_prediction(torch.stack(logits), self.share, classes=self._classes)
        return HeadOutput(mean, mean)

    @property
    def size(self) -> int:
        """Number of tensors that are the feature of a modality."""
        return sum(member.size if isinstance(member, AveragedNet) else 1 for member in self._members())

    def _members(self) -> list[MultimodalNet]:
        return [member for member in self.members if isinstance(member, MultimodalNet)]


def _parts(name: str, member: MultimodalNet, feature: Feature) -> tuple[Tensor, ...]:
    if isinstance(member, AveragedNet):
        return tuple(feature)
    if isinstance(feature, Tensor):
        return (feature,)
    raise UsageError(
        f"encoders: that of {name} gives {len(feature)} tensors; a mean of networks needs encoders with one"
    )
