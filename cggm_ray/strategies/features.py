"""What strategies do with features: detach them, mask modalities, and ask the fusion what it says without them."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cggm_ray.core.batch import Feature, HeadOutput

if TYPE_CHECKING:
    from cggm_ray.models.net import MultimodalNet

Predict = Callable[..., HeadOutput | tuple[Tensor, ...]]
"""(features by modality), or (features, masks) where there are masks, to the fused head's output; logits come first."""


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


def in_precision(logits: Tensor) -> Tensor:
    """Logits in float32 at least: a score from bfloat16 has two digits."""
    return logits.float() if logits.dtype.itemsize < 4 else logits


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


@torch.no_grad()
def logits_of(predict: Predict, features: Mapping[str, Feature], masks: Mapping[str, Tensor] | None) -> Tensor:
    """Logits of the fused head for these features, without gradient."""
    output = predict(features) if masks is None else predict(features, masks)
    return in_precision(output[0])


def as_in_inference(net: MultimodalNet) -> Predict:
    """`net.fuse` without dropout and with running statistics, so that asking draws no random number and moves no state."""

    def predict(features: Mapping[str, Feature], masks: Mapping[str, Tensor] | None = None) -> HeadOutput:
        with inference((net.fusion, net.head)):
            return net.fuse(features, masks)

    return predict


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
