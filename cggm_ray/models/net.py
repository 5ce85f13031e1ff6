"""A multimodal network: encoders by modality, a fusion and a head."""

from __future__ import annotations

import functools
import inspect
import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cggm_ray.core.batch import Batch, Feature, HeadOutput
from cggm_ray.core.errors import UsageError
from cggm_ray.models.branches import run_branches

Masks = Mapping[str, Tensor]
"""Modality name to bool [N, T] or [N, 1]; see `Batch.masks`."""
Given = tuple[Tensor, Tensor | None]
"""The input [N, ...] of an encoder, and its mask as in `Masks`."""


class MultimodalNet(nn.Module):
    """Encoders phi_m, fusion Omega and head F: y_hat = F(Omega([phi_m(x_m)])).

    Args:
        encoders: by modality. An encoder may name the part without its input projection `body`.
        fusion: maps the features of all modalities to the input of the head.
        head: the last linear layer or 1x1 convolution.
        inputs: by modality, a module that its input passes before it is masked and encoded, such as `Standardise`; it
            changes no shape.

    Encoders and fusion get masks as a second argument where there are any, and only then.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        fusion: nn.Module,
        head: nn.Module,
        inputs: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.inputs = nn.ModuleDict(inputs)
        self.encoders = nn.ModuleDict(encoders)
        self.fusion = fusion
        self.head = head

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "encode" in vars(cls):
            cls.encode = _taking_batch(vars(cls)["encode"])  # type: ignore[method-assign]

    def encode(self, batch: Batch | Mapping[str, Tensor], masks: Masks | None = None) -> dict[str, Feature]:
        """Features h_m of every modality; what encoders get, and features, are zero where a mask is False.

        Args:
            batch: with its masks; or the inputs alone by modality, where there is no batch, as in inference.
            masks: of inputs that are given alone.
        """
        inputs, masks = _parts(batch, masks)
        given: dict[str, Given] = {}
        for name in self.encoders:
            mask = None if masks is None else masks.get(name)
            # Before the mask, because padding is a zero of what the encoder gets.
            x = self.inputs[name](inputs[name]) if name in self.inputs else inputs[name]
            given[name] = (x if mask is None else zeroed(x, mask), mask)
        features = self.run_encoders(given)
        for name, (_, mask) in given.items():
            if mask is not None:
                features[name] = zeroed_feature(features[name], mask)
        return features

    def run_encoders(self, given: Mapping[str, Given]) -> dict[str, Feature]:
        """Features of every modality, from encoders that are called one by one; what masks leave out may be anything.

        Args:
            given: to every encoder, with its mask where there is one.
        """
        calls = [partial(self.encoders[name], *_there(each)) for name, each in given.items()]
        encoders = [self.encoders[name] for name in given]
        return dict(zip(given, run_branches(encoders, calls, list(given.values())), strict=True))

    def fuse(self, features: Mapping[str, Feature], masks: Masks | None = None) -> HeadOutput:
        """Prediction from the features, with the head's input."""
        hidden = self.fusion(features) if masks is None else self.fusion(features, masks)
        return HeadOutput(self.head(hidden), hidden)

    def forward(self, inputs: Mapping[str, Tensor], masks: Masks | None = None) -> Tensor:
        """Logits of a batch; what inference calls."""
        return self.fuse(self.encode(inputs, masks), masks).logits

    def bodies(self) -> dict[str, nn.Module]:
        """Encoders without their input projections, the part that the released code modulates."""
        return {name: getattr(encoder, "body", encoder) for name, encoder in self.encoders.items()}


def _there(given: Given) -> tuple[Tensor, ...]:
    """The arguments of an encoder, which gets a mask only where there is one."""
    x, mask = given
    return (x,) if mask is None else (x, mask)


def _parts(batch: Batch | Mapping[str, Tensor], masks: Masks | None) -> tuple[Mapping[str, Tensor], Masks | None]:
    """Inputs and masks of a batch, or those that were given alone."""
    return (batch.inputs, batch.masks) if isinstance(batch, Batch) else (batch, masks)


def _taking_batch(encode: Callable[..., dict[str, Feature]]) -> Callable[..., dict[str, Feature]]:
    """The method `encode` of a network of a person's own; one that takes (inputs, masks) gets those of the batch."""
    arguments = list(inspect.signature(encode).parameters)[1:]
    if len(arguments) < 2 or arguments[0] == "batch":
        return encode

    @functools.wraps(encode)
    def adapted(
        self: MultimodalNet, batch: Batch | Mapping[str, Tensor], masks: Masks | None = None
    ) -> dict[str, Feature]:
        return encode(self, *_parts(batch, masks))

    return adapted


def check_compiler(device: torch.device) -> None:
    """Checks that torch.compile finds what it needs.

    Raises:
        UsageError: the device is a CPU, and there is no compiler for it.
    """
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise UsageError("compile: found no C++ compiler; expected g++, clang++ or the one that CXX names")


def compile_parts(net: MultimodalNet, guides: Mapping[str, nn.Module]) -> None:
    """Has encoders, fusion and guides compiled at their first call; what lies between them is Python."""
    for part in (*net.encoders.values(), net.fusion, *guides.values()):
        part.compile()


def mask_of(feature: Tensor, mask: Tensor | None) -> Tensor | None:
    """The mask of a feature [N, T, ...], from that of its modality [N, T'] or [N, 1].

    A feature of another number of steps, such as a mean over all of them, is there where any step is.
    """
    if mask is None or mask.shape[1] == 1 or (feature.ndim > 2 and feature.shape[1] == mask.shape[1]):
        return mask
    return mask.any(1, keepdim=True)


def masks_of_steps(features: Mapping[str, Feature], masks: Masks) -> list[Tensor]:
    """Returns a mask for each of the features [N, T, ...], bool [N, T]; all True where its modality has none."""
    found = []
    for name, h_NTD in features.items():
        assert isinstance(h_NTD, Tensor)
        whole = torch.ones(h_NTD.shape[:2], dtype=torch.bool, device=h_NTD.device)
        found.append(whole & masks[name] if name in masks else whole)
    return found


def zeroed_feature(feature: Feature, mask: Tensor) -> Feature:
    """Every tensor of the feature, zeroed where its mask is False."""
    if isinstance(feature, Tensor):
        found = mask_of(feature, mask)
        return feature if found is None else zeroed(feature, found)
    return tuple(zeroed(part, mask.any(1, keepdim=True)) for part in feature)


def zeroed(x: Tensor, mask: Tensor) -> Tensor:
    """x [N, T, ...], or [N, ...] under a mask [N, 1], with zeros and no gradient where the mask is False.

    What stood there may be anything, NaN included: it reaches neither values nor gradients.
    """
    return x.masked_fill(~mask.reshape(*mask.shape, *[1] * (x.ndim - 2)), 0)
