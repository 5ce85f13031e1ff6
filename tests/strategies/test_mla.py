"""MLA: turns against a loop that is written out, the matrix of the head, certainty, and resumes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from strategy_cases import LinearGuide, linear_inputs, linear_net
from strategy_runs import assert_resumes
from torch import nn

from cggm_ray import Classification, UsageError
from cggm_ray.strategies.mla import MLA, MLAOptions, certainty
from cggm_ray.strategies.registry import STRATEGIES

TASK = Classification(3)


def alternating(modalities: int = 2) -> Any:
    plain = linear_net(modalities)
    guides: dict[str, nn.Module] = {name: LinearGuide(4, 3).double() for name in plain.encoders}
    return STRATEGIES.get("mla").network_of(plain, guides, MLAOptions())


@pytest.mark.parametrize("gradient", ["projection", "off"])
def test_turns(gradient: str) -> None:
    net = alternating()
    inputs, target = linear_inputs(net)
    there = torch.tensor([True, False, True, True, False, True, True])
    rows = {"a": there, "b": torch.ones(7, dtype=torch.bool)}
    encoders, head = copy.deepcopy(net.encoders), copy.deepcopy(net.head)
    balance = MLA(net, task=TASK, gradient=gradient)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3 * balance.turns):
        optimizer.zero_grad()
        features = balance.modulate(net.encode(inputs), target, {"a": there})
        said = net.fuse(features, {"a": there[:, None]})
        sum(balance.losses(said, target)).backward()
        balance.adjust()
        optimizer.step()
        balance.step()

    other = torch.optim.SGD([*encoders.parameters(), *head.parameters()], lr=0.1, momentum=0.9)
    matrix = torch.eye(4, dtype=torch.float64)
    for _ in range(3):
        for name in "ab":
            other.zero_grad()
            h = encoders[name](inputs[name][rows[name]])
            F.cross_entropy(head(h), target[rows[name]]).backward()
            if gradient == "projection":
                head.weight.grad = head.weight.grad @ matrix
                r = h.detach().mean(0)[:, None]
                matrix = matrix - matrix @ r @ r.T @ matrix / (0.1 + r.T @ matrix @ r)
            other.step()
    for name in "ab":
        torch.testing.assert_close(net.encoders[name].weight, encoders[name].weight, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(net.head.weight, head.weight, rtol=1e-10, atol=1e-12)


def test_projection_damps_what_was_seen() -> None:
    net = alternating()
    balance = MLA(net, task=TASK)
    seen = torch.tensor([2.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    for _ in range(3):
        balance._learn(seen)
    assert float(balance.P_DD[0, 0]) < 0.01
    assert torch.equal(balance.P_DD[1:, 1:], torch.eye(3, dtype=torch.float64))


def test_certain_modalities_have_more_weight() -> None:
    logits = torch.tensor([[[4.0, 0.0, 0.0]], [[0.1, 0.0, 0.0]], [[1.0, 0.0, 0.0]]], dtype=torch.float64)
    found = certainty(logits, torch.tensor([[True], [True], [True]]))[:, 0]
    p = np.exp(logits.numpy()[:, 0]) / np.exp(logits.numpy()[:, 0]).sum(1, keepdims=True)
    want = np.exp((p * np.log(p)).sum(1))
    np.testing.assert_allclose(found, want / want.sum())
    without = certainty(logits, torch.tensor([[False], [True], [True]]))[:, 0]
    np.testing.assert_allclose(without, [0, *(want[1:] / want[1:].sum())])
    assert certainty(logits, torch.zeros(3, 1, dtype=torch.bool)).tolist() == [[0.0]] * 3


def test_guides_of_several_widths_are_refused() -> None:
    guides: dict[str, nn.Module] = {"a": LinearGuide(4, 3), "b": LinearGuide(5, 3)}
    with pytest.raises(
        UsageError, match=r"mla needs guides that end in linear layers named head, of one width; found .*5"
    ):
        STRATEGIES.get("mla").network_of(linear_net(), guides, MLAOptions())


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["projection", "benchmark"])
def test_resume(tmp_path: Path, gradient: str) -> None:
    assert_resumes(tmp_path, "--modulation", "mla", "--mla_gradient", gradient)
