"""The networks by name, and what one is built from.

A network is one file in this package that registers how it is built. Which one a run trains is the dataset's default, or
what `--network` names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import nn

from cggm_ray.core.registry import Registry
from cggm_ray.models.net import MultimodalNet
from cggm_ray.models.settings import ModelConfig


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Options of one network alone; a network that has any subclasses this, with `option` for every field."""

    def parts(self) -> list[tuple[str, str]]:
        """Returns registry and name of the parts that the options name, such as ('encoder', 'mlp')."""
        return []


S = TypeVar("S", bound=NetworkOptions)


@dataclass(frozen=True, kw_only=True)
class NetworkPlan(Generic[S]):
    """What a network is built from.

    Attributes:
        shapes: modality to the shape of one sample as the network gets it, in the order of the fusion.
        kinds: modality to 'sequence', 'vector', 'image' or 'frames'.
        outputs: C, the number of outputs of the head.
        sizes: layers, widths and dropouts, for networks that have them.
        options: the network's own section of the configuration.
        regression: whether values are predicted, not classes.
        samples: of the training split; None where it is not known.
        pretrained: makes the trained model of a modality that has one, which maps its inputs, and masks or None, to the
            sequences that `shapes` describes.
    """

    shapes: Mapping[str, tuple[int, ...]]
    kinds: Mapping[str, str]
    outputs: int
    sizes: ModelConfig
    options: S
    regression: bool = False
    samples: int | None = None
    pretrained: Mapping[str, Callable[[], nn.Module]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class NetworkInfo(Generic[S]):
    """A network as a run knows it.

    Attributes:
        build: makes the network and a guide classifier for every modality.
        options: class of its own section of the configuration.
        sized: whether it has the sizes of `ModelConfig`; a run that sets them for another one is refused.
        pretrained: whether it takes the trained models of a plan.
        check: raises a UsageError where the options do not fit the modalities; called before any long work.
        against_graph: its options to why a training step cannot be recorded as a CUDA graph, or to None where it can. A
            network that can reads no value of a tensor on the host, copies nothing to the device, and has all its random
            numbers from torch's default generator.
    """

    build: Callable[[NetworkPlan[S]], tuple[MultimodalNet, dict[str, nn.Module]]]
    options: type[S]
    sized: bool = True
    pretrained: bool = False
    check: Callable[[NetworkPlan[S]], object] | None = None
    against_graph: Callable[[S], str | None] = lambda options: "its network does not say that a step can be recorded"


def can_be_recorded(options: NetworkOptions) -> None:
    """`NetworkInfo.against_graph` of a network whose steps can be recorded as a CUDA graph, whatever its options."""


NETWORKS: Registry[NetworkInfo[Any]] = Registry("network", "cggm_ray.models")
