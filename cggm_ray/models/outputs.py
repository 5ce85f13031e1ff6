"""Heads with outputs in the units of the target, so that a network learns values around 0 whatever these units are."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from cggm_ray.models.net import MultimodalNet
from cggm_ray.models.stacked import Linear


class ScaledLinear(Linear):
    """A linear layer with outputs location + unit * (W h + b), the identity of `nn.Linear` until `fill` is called.

    Args:
        linear: whose parameters it takes.
    """

    location: Tensor
    unit: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("location", torch.zeros(linear.out_features))
        self.register_buffer("unit", torch.ones(linear.out_features))

    def fill(self, location: Tensor, unit: Tensor) -> None:
        """Sets mean and standard deviation of the target, [C] each."""
        self.location.copy_(location)
        self.unit.copy_(unit)

    def forward(self, h: Tensor) -> Tensor:
        """[N, D] to [N, C]."""
        return self.location + self.unit * super().forward(h)


def scaled_head(net: MultimodalNet) -> ScaledLinear | None:
    """Returns a scaled head of a network or of the members of an ensemble, which all have one scale; None without any."""
    return next((module for module in net.modules() if isinstance(module, ScaledLinear)), None)


def scale_outputs(net: MultimodalNet, guides: Iterable[nn.Module]) -> list[ScaledLinear]:
    """Gives network and guides a `ScaledLinear` in the place of the linear layer `head`, with the same parameters.

    Networks with a head of another kind stay as they are, and their guides with them, because all of them must predict in one
    unit.

    Args:
        net: the network, or an ensemble of the guides, whose own head is the identity.
        guides: the guide classifiers.

    Returns:
        The new heads.
    """
    owners = [module for module in (net, *guides) if not isinstance(getattr(module, "head", None), nn.Identity)]
    heads = [getattr(module, "head", None) for module in owners]
    if not all(type(head) in (nn.Linear, Linear) for head in heads):
        return []
    scaled = []
    for owner, head in zip(owners, heads, strict=True):
        assert isinstance(head, nn.Linear)
        owner.head = ScaledLinear(head)
        scaled.append(owner.head)
    return scaled
