"""A small network and data that are written down by formulas, on which the official code of strategies was run.

`tests/recorded/NAME.json` holds what came out: the repository, its commit, and the parameters after some steps. A test runs the
strategy from the same beginning and compares.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from strategy_cases import Concatenation
from torch import Tensor, nn

from cggm_ray.models.net import MultimodalNet

FOLDER = Path(__file__).parents[1] / "recorded"
CLASSES, WIDTH, BATCH, STEPS = 3, 4, 6, 8
LR = 0.2
SHAPES = {"audio": (1, 5, 6), "visual": (2, 3, 3), "text": (1, 2, 4)}


def wave(shape: Sequence[int], number: float) -> Tensor:
    """Numbers between -1 and 1 that look random, float64."""
    count = int(torch.tensor(shape).prod())
    return torch.cos(torch.arange(count, dtype=torch.float64) ** 2 * 0.37 + 1.3 * number + 0.1).reshape(tuple(shape))


def fill(parameters: Sequence[Tensor]) -> None:
    """Gives parameters their values before the first step."""
    for number, parameter in enumerate(parameters):
        parameter.data = 0.4 * wave(parameter.shape, number)


def inputs(step: int, names: Sequence[str] = ("audio", "visual")) -> tuple[dict[str, Tensor], Tensor]:
    """The batch of a step; the classes are in the first modality more than in the others."""
    target = (torch.arange(BATCH) * (step + 2) + step) % CLASSES
    found = {}
    for number, name in enumerate(names):
        x = wave((BATCH, *SHAPES[name]), 10 * step + number)
        found[name] = (
            x + (1.5 if number == 0 else 0.4) * wave(SHAPES[name], 50 + number) * (target - 1)[:, None, None, None]
        )
    return found, target


def encoder(name: str) -> nn.Module:
    """One convolution over the whole input, [N, WIDTH]."""
    return nn.Sequential(nn.Conv2d(SHAPES[name][0], WIDTH, SHAPES[name][1:]), nn.Flatten()).double()


def network(names: Sequence[str] = ("audio", "visual")) -> MultimodalNet:
    """Convolutions, a concatenation and a linear head."""
    net = MultimodalNet(
        {name: encoder(name) for name in names}, Concatenation(), nn.Linear(WIDTH * len(names), CLASSES).double()
    )
    fill(list(net.parameters()))
    return net


def record(name: str) -> dict[str, Any]:
    """What was recorded of a strategy."""
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return found


def assert_recorded(found: Mapping[str, Any], parameters: Sequence[Tensor], rtol: float = 1e-9) -> None:
    """Compares parameters, in their order, with those that were recorded."""
    assert len(parameters) == len(found["parameters"])
    for parameter, want in zip(parameters, found["parameters"], strict=True):
        expected = torch.tensor(want, dtype=torch.float64).reshape(parameter.shape)
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=rtol, atol=rtol)


def run(
    net: MultimodalNet, take: Callable[[dict[str, Tensor], Tensor], None], names: Sequence[str], steps: int = STEPS
) -> None:
    """Steps of SGD without momentum; `take` leaves the gradients in the network."""
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    for step in range(steps):
        optimizer.zero_grad()
        take(*inputs(step, names))
        optimizer.step()
