"""Losses of all modalities: the sum and its gradients, by hand; and what a projection leaves of them."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest
import torch
from strategy_cases import LinearGuide, linear_inputs, linear_net, softmax
from strategy_runs import assert_resumes

import cggm_ray.strategies.multiloss
from cggm_ray import Classification, UsageError
from cggm_ray.commands.cli import parse
from cggm_ray.engine.configuration import Config
from cggm_ray.strategies.multiloss import MultiLoss, part
from cggm_ray.strategies.registry import STRATEGIES, Setting

TASK = Classification(3)
WEIGHTS = {"a": 0.5, "b": 2.0, "c": 0.0}


@pytest.mark.parametrize("project", [False, True])
def test_loss_and_gradients(project: bool) -> None:
    net = linear_net(3)
    guides = {name: LinearGuide(4, 3).double() for name in net.encoders}
    inputs, target = linear_inputs(net)
    there = torch.tensor([True, False, True, True, False, True, True])
    balance = MultiLoss(
        guides, task=TASK, weights=WEIGHTS, project=project, optimizer=lambda ps: torch.optim.SGD(ps, lr=0.1)
    )
    features = balance.modulate(net.encode(inputs), target, {"a": there})
    head = net.fuse(features)
    extra = balance.loss(head.logits, head.hidden, target)
    (TASK.loss(head.logits, target) + extra).backward()

    labels = np.eye(3)[target.numpy()]
    split = np.split(net.head.weight.detach().numpy(), 3, axis=1)
    fused = (softmax(head.logits.detach().numpy()) - labels) / len(target)
    want_extra, conflicts = 0.0, 0
    for number, (name, encoder) in enumerate(net.encoders.items()):
        x, h = inputs[name].numpy(), features[name].detach().numpy()
        w, b = (p.detach().numpy() for p in guides[name].parameters())
        rows = there.numpy() if name == "a" else np.ones(7, bool)
        said = softmax(h @ w.T + b)
        want_extra += WEIGHTS[name] * -np.log((said * labels).sum(1))[rows].mean()
        g = fused @ split[number]
        u = WEIGHTS[name] * ((said - labels) * rows[:, None] / rows.sum()) @ w
        for row in range(7 if project else 0):
            product = u[row] @ g[row]
            if product < 0:
                u[row] -= product / (g[row] @ g[row]) * g[row]
                conflicts += 1
        np.testing.assert_allclose(encoder.weight.grad.numpy(), (g + u).T @ x, rtol=1e-10, atol=1e-14)
        slope = WEIGHTS[name] * ((said - labels) * rows[:, None] / rows.sum()).T @ h
        np.testing.assert_allclose(guides[name].head.weight.grad.numpy(), slope, rtol=1e-10, atol=1e-14)
    assert extra.item() == pytest.approx(want_extra, rel=1e-12)
    assert not project or 0 < conflicts < 14


def test_a_feature_of_several_tensors_is_projected_as_one() -> None:
    torch.manual_seed(0)
    whole = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    pieces = whole[:, :4].reshape(5, 2, 2), whole[:, 4:]
    g, u = torch.randn(2, 5, 6, dtype=torch.float64)
    g[3] = 0
    fused, guided = part(pieces)
    terms = [
        (tensor * rows).sum()
        for tensors, rows_of in ((fused, g), (guided, u))
        for tensor, rows in zip(tensors, (rows_of[:, :4].reshape(5, 2, 2), rows_of[:, 4:]), strict=True)
    ]
    sum(terms[1:], terms[0]).backward()
    assert whole.grad is not None
    for row in range(5):
        product = float(u[row] @ g[row])
        want = u[row] - min(0.0, product) / max(float(g[row] @ g[row]), 1e-300) * g[row] + g[row]
        torch.testing.assert_close(whole.grad[row], want)
    assert torch.equal(whole.grad[3], u[3])


def test_half_precision_is_projected_in_full() -> None:
    feature = torch.zeros(1, 300, dtype=torch.bfloat16, requires_grad=True)
    fused, guided = part(feature)
    ((fused * 1.0).sum() + (guided * -0.5).sum()).backward()
    assert torch.equal(feature.grad, torch.ones_like(feature))


def weights_of(*flags: str) -> object:
    config = parse(Config(), ["--modulation", "multiloss", *flags]).config
    setting = Setting(
        options=config.strategy, modulation=config.modulation, modalities=("text", "audio"), lr=1e-3, seed=0
    )
    check = STRATEGIES.get("multiloss").check
    assert check is not None
    return check(setting)


def test_weights() -> None:
    assert weights_of() == {"text": 1.0, "audio": 1.0}
    assert weights_of("--multiloss_weight", "0.25") == {"text": 0.25, "audio": 0.25}
    assert weights_of("--multiloss_weights", "audio=0,text=2") == {"text": 2.0, "audio": 0.0}
    assert weights_of("--multiloss_weights", "3,4") == {"text": 3.0, "audio": 4.0}
    for flags, message in (
        (("--multiloss_weight", "-1"), "multiloss_weight: found -1.0; expected zero or a positive number"),
        (("--multiloss_weights", "text=1"), "multiloss_weights: found none for audio; expected one for every modality"),
        (("--multiloss_weights", "text=1,audio=nan"), "found 'nan' for audio; expected zero or a positive number"),
        (("--multiloss_weights", "text=1,adio=1"), "multiloss_weights: no modality 'adio'"),
    ):
        with pytest.raises(UsageError, match=message):
            weights_of(*flags)


def test_resume(tmp_path: Path) -> None:
    assert_resumes(tmp_path, "--modulation", "multiloss", "--multiloss_project", "True", "--precision", "bf16")


def test_its_example() -> None:
    result = doctest.testmod(cggm_ray.strategies.multiloss)
    assert result.attempted > 10
    assert result.failed == 0
