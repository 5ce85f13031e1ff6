"""The gate against the definition: every parameter gradient of an encoder, multiplied by its coefficient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cggm_ray.strategies.gate import Gates


class TwoOutputs(nn.Module):
    """An encoder with two feature levels, like DeepLab's."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(3, 4), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        low = self.low(x).tanh()
        return self.high(low).tanh(), low


def gradients(gated: bool, scale: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    encoders = nn.ModuleDict({"a": TwoOutputs(), "b": TwoOutputs()}).double()
    head = nn.Linear(18, 1).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    gates = Gates()
    features = [encoder(x) for encoder in encoders.values()]
    if gated:
        features = [gates.place(feature, index) for index, feature in enumerate(features)]
        gates.open(scale)
    head(torch.cat([part for feature in features for part in feature], 1)).pow(2).sum().backward()
    named = [*encoders.named_parameters(), *head.named_parameters(prefix="head")]
    return {name: p.grad for name, p in named if p.grad is not None}


def test_gate_scales_every_parameter_of_its_encoder_and_nothing_else() -> None:
    scale = torch.tensor([0.3, -2.5], dtype=torch.float64)
    plain, gated = gradients(False, scale), gradients(True, scale)
    factor = {"a": scale[0], "b": scale[1], "head": torch.tensor(1.0, dtype=torch.float64)}
    wrong = {
        name: float((gated[name] - factor[name.split(".")[0]] * grad).norm())
        for name, grad in plain.items()
        if not torch.allclose(gated[name], factor[name.split(".")[0]] * grad, rtol=1e-12, atol=0)
    }
    assert not wrong, f"parameters whose gradient is off, with the norm of the difference: {wrong}"
    assert len(plain) == 10


def test_hooks_scale_single_parameters() -> None:
    layer, gates = nn.Linear(2, 2), Gates()
    gates.hook(layer.parameters(), 1)
    gates.open(torch.tensor([7.0, 0.5]))
    x = torch.randn(3, 2)
    layer(x).sum().backward()
    assert torch.allclose(layer.bias.grad, torch.full((2,), 1.5))


def test_backward_before_the_coefficients_is_an_error() -> None:
    gates = Gates()
    feature = gates.place(torch.randn(2, requires_grad=True) * 1, 0)
    with pytest.raises(RuntimeError, match=r"call balance\.loss"):
        feature.sum().backward()
