"""Networks that are functions or modules of a person's own, without a line of this package in them.

`--network my_file.py:build` and `train(..., network=build)` take a function that returns a module, or a module and its guides.
The module has two methods: `encode` maps inputs by modality to features by modality, `fuse` maps these to logits and the input
of the last linear layer. Guides that are not given are made for the shapes of the features.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cggm_ray.core.batch import Batch, Feature, HeadOutput
from cggm_ray.core.errors import UsageError
from cggm_ray.models.net import Masks, MultimodalNet, mask_of, zeroed, zeroed_feature
from cggm_ray.models.registry import NetworkInfo, NetworkOptions, NetworkPlan
from cggm_ray.models.wrapped import Wrapped

Build = Callable[..., Any]
"""Takes a `NetworkPlan`, or nothing; returns a module, or a module and its guides by modality."""


def own_network(name: str, build: Build) -> NetworkInfo[NetworkOptions]:
    """Returns a network as a run knows it.

    Args:
        name: for messages.
        build: see `Build`.
    """
    return NetworkInfo(build=partial(_build, name, build), options=NetworkOptions, sized=False)


def _build(name: str, build: Build, plan: NetworkPlan[Any]) -> tuple[MultimodalNet, dict[str, nn.Module]]:
    made = build(plan) if inspect.signature(build).parameters else build()
    module, guides = made if isinstance(made, tuple) else (made, None)
    if not isinstance(module, nn.Module):
        raise UsageError(
            f"network: {name} gave {type(module).__name__}; expected a torch.nn.Module, or one and its guides"
        )
    net = module if isinstance(module, MultimodalNet) else OwnNet(name, module, plan)
    features = tried_features(name, net, plan)
    if guides is None:
        return net, default_guides(name, net, plan, features)
    if set(guides) != set(plan.shapes):
        raise UsageError(f"network: {name} gave guides for {', '.join(guides)}; expected {', '.join(plan.shapes)}")
    return net, dict(guides)


class MaskedEncoder(nn.Module):
    """An encoder that is called with the mask of its modality, whether it takes one or not.

    Args:
        encoder: it gets the mask where it has an argument `mask`.

    Attributes:
        is_alone: whether it gives what `encode` gives for its modality, so that it can be used without the network.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.is_alone = True
        self._takes_mask = "mask" in inspect.signature(encoder.forward).parameters

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Feature:
        """The feature of one modality.

        Raises:
            UsageError: the network makes something else of it.
        """
        if not self.is_alone:
            raise UsageError(
                f"modulation: this strategy calls encoders without their network, and {type(self.encoder).__name__} alone does "
                "not give the feature that encode gives; expected an encoder whose output is the feature, or another strategy"
            )
        feature: Feature = self.encoder(x, mask=mask) if self._takes_mask else self.encoder(x)
        return feature


class OwnNet(MultimodalNet):
    """A module with `encode` and `fuse` as a network of this package.

    Args:
        name: for messages.
        module: `encode(inputs)` gives features [N, ...] by modality, `fuse(features)` gives (logits, hidden); either may take
            the masks of the batch (`Batch.masks`, or None) as a second argument. The encoder of a modality is
            `module.encoders[modality]` or `module.<modality>`; the head is `module.head`, or the last linear layer that has as
            many outputs as are predicted.
        plan: what is to be predicted from what.

    Raises:
        UsageError: something of this is missing.
    """

    def __init__(self, name: str, module: nn.Module, plan: NetworkPlan[Any]) -> None:
        nn.Module.__init__(self)
        missing = [method for method in ("encode", "fuse") if not callable(getattr(module, method, None))]
        if missing:
            raise UsageError(
                f"network: {name} gave {type(module).__name__} without {' and '.join(missing)}; expected encode(inputs), "
                "which gives features by modality, and fuse(features), which gives logits and the input of the last layer, or "
                "cggm_ray.wrap(module, encoders={modality: path, ...}, head=path)"
            )
        self.inputs = nn.ModuleDict()
        self.module = module
        self._names, self._head = tuple(plan.shapes), _head_name(name, module, plan.outputs)
        self._masks = [len(inspect.signature(getattr(module, method)).parameters) > 1 for method in ("encode", "fuse")]
        for modality in self._names:
            if not isinstance(_part(module, modality), nn.Module):
                raise UsageError(
                    f"network: {name} gave {type(module).__name__} without an encoder for {modality!r}; expected it as "
                    f"module.encoders[{modality!r}] or module.{modality}"
                )

        # No parts of their own: their parameters are the module's.
        self._encoders = {modality: MaskedEncoder(_part(module, modality)) for modality in self._names}

    @property
    def encoders(self) -> dict[str, nn.Module]:  # type: ignore[override]
        """The encoder of every modality. Strategies with teachers or an ensemble of encoders call them by themselves."""
        return dict(self._encoders)

    @property
    def fusion(self) -> nn.Module:  # type: ignore[override]
        """The module: its fusion need not be a part of its own."""
        return self.module

    @property
    def head(self) -> nn.Module:  # type: ignore[override]
        """The last linear layer."""
        return self.module.get_submodule(self._head)

    def encode(self, batch: Batch | Mapping[str, Tensor], masks: Masks | None = None) -> dict[str, Feature]:
        """Features of every modality, zero where a mask is False.

        Args:
            batch: with its masks; or the inputs alone by modality.
            masks: of inputs that are given alone.
        """
        inputs, masks = (batch.inputs, batch.masks) if isinstance(batch, Batch) else (batch, masks)
        ready = {}
        for name in self._names:
            x = self.inputs[name](inputs[name]) if name in self.inputs else inputs[name]
            ready[name] = x if masks is None or name not in masks else zeroed(x, masks[name])
        encode: Callable[..., Mapping[str, Feature]] = self.module.encode  # type: ignore[assignment]
        features = encode(ready, masks) if self._masks[0] else encode(ready)
        if masks is None:
            return dict(features)
        return {name: zeroed_feature(one, masks[name]) if name in masks else one for name, one in features.items()}

    def fuse(self, features: Mapping[str, Feature], masks: Masks | None = None) -> HeadOutput:
        """Prediction from the features, with the head's input.

        Raises:
            UsageError: the module's `fuse` does not give both.
        """
        fuse: Callable[..., Any] = self.module.fuse  # type: ignore[assignment]
        found = fuse(features, masks) if self._masks[1] else fuse(features)
        if not isinstance(found, tuple):
            raise UsageError(
                f"network: {type(self.module).__name__}.fuse gave {type(found).__name__}; expected (logits, hidden), the "
                "second being the input of the last linear layer"
            )
        return found if isinstance(found, HeadOutput) else HeadOutput(*found)


def _part(module: nn.Module, modality: str) -> Any:
    if isinstance(module, Wrapped):
        return module.encoder_of(modality) if modality in module.encoders else None
    encoders = getattr(module, "encoders", None)
    if isinstance(encoders, nn.ModuleDict) and modality in encoders:
        return encoders[modality]
    return getattr(module, modality, None)


def _head_name(name: str, module: nn.Module, outputs: int) -> str:
    layers = [path for path, part in module.named_modules() if getattr(part, "out_features", None) == outputs]
    if isinstance(module, Wrapped):
        return module.head_path
    if "head" in dict(module.named_children()):
        return "head"
    if not layers:
        raise UsageError(
            f"network: {name} gave {type(module).__name__} without a linear layer of {outputs} outputs; expected module.head"
        )
    return layers[-1]


class PooledGuide(nn.Module):
    """Guide for a feature of any shape: the mean over steps or pixels, a hidden layer, and a linear one.

    Args:
        width: of the feature.
        hidden: as wide as the input of the network's head, because the direction term compares the two.
        outputs: C.
    """

    def __init__(self, width: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(width, hidden), nn.Linear(hidden, outputs)

    def forward(self, feature: Tensor, mask: Tensor | None = None) -> HeadOutput:
        """Features [N, D], [N, T, D] or [N, D, H, W] of one modality to its own prediction."""
        if feature.ndim == 4:
            pooled = feature.mean((2, 3))
        elif feature.ndim == 3:
            found = mask_of(feature, mask)
            there = feature.new_ones(feature.shape[:2]) if found is None else found.expand(feature.shape[:2])
            pooled = feature.sum(1) / there.sum(1, keepdim=True).clamp(min=1)
        else:
            pooled = feature
        hidden = nn.functional.gelu(self.hidden(pooled))
        return HeadOutput(self.head(hidden), hidden)


@torch.no_grad()
def tried_features(name: str, net: MultimodalNet, plan: NetworkPlan[Any]) -> dict[str, Feature]:
    """Returns the features of two random samples, after a whole forward pass; notes which encoders stand alone.

    Raises:
        UsageError: the network does not take such samples.
    """
    training = net.training
    net.eval()
    draw = torch.Generator().manual_seed(0)
    inputs = {modality: torch.randn(2, *shape, generator=draw) for modality, shape in plan.shapes.items()}
    try:
        features = net.encode(inputs)
        net.fuse(features)
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        shapes = ", ".join(f"{modality} [2, {', '.join(map(str, shape))}]" for modality, shape in plan.shapes.items())
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"network: {name} fails for inputs {shapes}: {type(error).__name__}: {reason}") from error
    else:
        for modality, encoder in net.encoders.items() if isinstance(net, OwnNet) else ():
            assert isinstance(encoder, MaskedEncoder)
            encoder.is_alone = _is_alone(encoder, inputs[modality], features.get(modality))
        return features
    finally:
        net.train(training)


def _is_alone(encoder: nn.Module, x: Tensor, feature: Any) -> bool:
    """Whether an encoder gives the feature of its modality without the network, which may call it in another way."""
    try:
        return _same(encoder(x), feature)
    # The code is a person's own.
    except Exception:
        return False


def _same(left: Any, right: Any) -> bool:
    return (
        isinstance(left, Tensor)
        and isinstance(right, Tensor)
        and left.shape == right.shape
        and torch.allclose(left, right)
    )


def default_guides(
    name: str, net: MultimodalNet, plan: NetworkPlan[Any], features: Mapping[str, Any]
) -> dict[str, nn.Module]:
    """Returns a guide for every modality.

    Raises:
        UsageError: the features or the head are of no kind that a guide can be made for.
    """
    guides: dict[str, nn.Module] = {}
    for modality in plan.shapes:
        feature = features.get(modality)
        if not isinstance(feature, Tensor) or feature.ndim not in (2, 3, 4) or not isinstance(net.head, nn.Linear):
            what = list(feature.shape) if isinstance(feature, Tensor) else type(feature).__name__
            raise UsageError(
                f"network: {name} gave no guides, and none can be made for the feature {what} of {modality!r} and the head "
                f"{type(net.head).__name__}; expected [N, D], [N, T, D] or [N, D, H, W] and a linear layer, or (net, guides)"
            )
        width = feature.shape[1] if feature.ndim == 4 else feature.shape[-1]
        guides[modality] = PooledGuide(width, net.head.in_features, plan.outputs)
    return guides
