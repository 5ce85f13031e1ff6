"""What strategies do with features: detach them, mask modalities, and predict without them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cggm_ray.core.arithmetic import in_precision
from cggm_ray.core.batch import Batch, Feature, HeadOutput
from cggm_ray.core.errors import UsageError
from cggm_ray.models.net import MultimodalNet, zeroed_feature

Predict = Callable[..., HeadOutput | tuple[Tensor, ...]]
"""(features by modality), or (features, masks) where there are masks, to the fused head's output; logits come first."""


def check_several(modalities: Collection[str]) -> None:
    """Checks that there are at least two modalities to balance.

    Raises:
        UsageError: fewer than two modalities.
    """
    if len(modalities) < 2:
        raise UsageError(
            f"modulation: at least two modalities can be balanced, found {len(modalities)}; use the strategy 'none'"
        )


def each(feature: Feature, change: Callable[[Tensor], Tensor]) -> Feature:
    """The feature with every tensor of it changed."""
    return tuple(change(part) for part in feature) if isinstance(feature, tuple) else change(feature)


def detached(feature: Feature) -> Feature:
    """The feature without its history."""
    return each(feature, torch.Tensor.detach)


def keep_only(features: Mapping[str, Feature], kept: Container[str]) -> dict[str, Feature]:
    """All features detached, with zeros in place of the modalities that are not kept."""
    return {
        name: detached(feature) if name in kept else each(feature, torch.zeros_like)
        for name, feature in features.items()
    }


def pooled(feature: Feature, mask: Tensor | None = None) -> Tensor:
    """A feature [N, D], [N, T, D] or [N, C, H, W], or several of them, as means over all but samples and channels [N, D].

    Steps that a mask [N, T] says are padding do not count.
    """
    if isinstance(feature, tuple):
        return torch.cat([pooled(part) for part in feature], 1)
    x = in_precision(feature)
    if x.ndim == 2:
        return x
    if x.ndim == 3:
        if mask is None or mask.shape[1] != x.shape[1]:
            return x.mean(1)
        there_NT1 = mask[..., None].to(x.dtype)
        return (x * there_NT1).sum(1) / there_NT1.sum(1).clamp(min=1)
    return x.flatten(2).mean(2)


class PooledFeatures(NamedTuple):
    """Pooled features of samples, and what goes with them, as `Strategy.measure` returns it and `begin_epoch` gets it.

    Attributes:
        target: classes, int64 [N].
        has: by modality, whether a sample has it, bool [N].
        features: by modality, [N, D].
    """

    target: Tensor
    has: Sequence[Tensor]
    features: Sequence[Tensor]

    @classmethod
    def of(cls, names: Sequence[str], features: Mapping[str, Feature], batch: Batch) -> PooledFeatures:
        """Those of a batch, for the modalities with these names."""
        found = [pooled(features[name], None if batch.masks is None else batch.masks.get(name)) for name in names]
        return cls(batch.target, [batch.having(name).sample_weights() > 0 for name in names], found)

    def joined(self) -> Tensor:
        """[class | whether a sample has the modality M | features D_1 + ... + D_M], float64."""
        columns = [part[:, None] for part in (self.target, *self.has)]
        return torch.cat([part.double() for part in (*columns, *self.features)], 1)

    @classmethod
    def split(cls, values: Tensor, widths: Sequence[int]) -> PooledFeatures:
        """Undoes `joined`.

        Args:
            values: what it returned.
            widths: of the features of every modality.
        """
        first = 1 + len(widths)
        has = (values[:, 1:first] > 0).unbind(1)
        return cls(values[:, 0].long(), has, values[:, first:].split(list(widths), 1))


@torch.no_grad()
def logits_of(predict: Predict, features: Mapping[str, Feature], masks: Mapping[str, Tensor] | None) -> Tensor:
    """Logits of the fused head for these features, without gradient."""
    output = predict(features) if masks is None else predict(features, masks)
    return in_precision(output[0])


def as_in_inference(net: MultimodalNet) -> Predict:
    """`net.fuse` without dropout and with running statistics, so that a call draws no random number and changes no state."""

    def predict(features: Mapping[str, Feature], masks: Mapping[str, Tensor] | None = None) -> HeadOutput:
        with inference((net.fusion, net.head)):
            return net.fuse(features, masks)

    return predict


def blank_features(net: MultimodalNet, batch: Batch) -> dict[str, Feature]:
    """The features of inputs that are zero, with their graph and in evaluation mode.

    The zeros are what an encoder gets, so standardised inputs are at their mean. A sample without a modality has a zero
    feature here too.
    """
    features = {}
    with inference(net.encoders.values()):
        for name, encoder in net.encoders.items():
            x, mask = torch.zeros_like(batch.inputs[name]), None if batch.masks is None else batch.masks.get(name)
            features[name] = encoder(x) if mask is None else zeroed_feature(encoder(x, mask), mask)
    return features


@contextmanager
def inference(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, the modules are in evaluation mode; afterwards every part is in the mode that it was in."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for part, _ in modes:
        part.training = False
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
