"""MLB: coefficients, losses and gradients by hand, with samples that lack a modality."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from strategy_cases import LinearGuide, linear_inputs, linear_net, softmax

from cggm_ray import Classification, Regression
from cggm_ray.strategies.mlb import MLB, coefficients, mean_of_others

THERE = torch.tensor([True, False, True, True, False, True, True])
ALPHA, BETA = 0.6, 3.0


def coefficient(ratio: float) -> float:
    return 1 + (np.tanh(ALPHA * (ratio - 1)) if ratio <= 1 else (BETA - 1) * np.tanh(ALPHA * (ratio - 1)))


def test_loss_and_gradients() -> None:
    net, task = linear_net(3), Classification(3)
    guides = {name: LinearGuide(4, 3).double() for name in net.encoders}
    inputs, target = linear_inputs(net)
    balance = MLB(guides, task=task, alpha=ALPHA, beta=BETA, optimizer=lambda ps: torch.optim.SGD(ps, lr=0.1))
    features = balance.modulate(net.encode(inputs), target, {"a": THERE})
    head = net.fuse(features)
    extra = balance.loss(head.logits, head.hidden, target)
    (task.loss(head.logits, target) + extra).backward()

    labels, rows = np.eye(3)[target.numpy()], {name: np.ones(7, bool) for name in "abc"} | {"a": THERE.numpy()}
    said, score = {}, {}
    for name in "abc":
        w, b = (p.detach().numpy() for p in guides[name].parameters())
        said[name] = softmax(features[name].detach().numpy() @ w.T + b)
        score[name] = (said[name] * labels).sum(1)[rows[name]].mean()
    fused = (softmax(head.logits.detach().numpy()) - labels) / 7
    want = 0.0
    for number, name in enumerate("abc"):
        k = coefficient(np.mean([score[other] for other in "abc" if other != name]) / score[name])
        want += k * -np.log((said[name] * labels).sum(1))[rows[name]].mean()
        own = (said[name] - labels) * rows[name][:, None] / rows[name].sum()
        w_head = np.split(net.head.weight.detach().numpy(), 3, axis=1)[number]
        slope = k * (fused @ w_head + own @ guides[name].head.weight.detach().numpy())
        np.testing.assert_allclose(
            net.encoders[name].weight.grad, slope.T @ inputs[name].numpy(), rtol=1e-10, atol=1e-14
        )
        np.testing.assert_allclose(
            guides[name].head.weight.grad, k * own.T @ features[name].detach().numpy(), rtol=1e-10, atol=1e-14
        )
    assert extra.item() == pytest.approx(want, rel=1e-12)


def test_what_is_far_behind_has_beta_and_what_is_far_ahead_has_nothing() -> None:
    assert coefficients(torch.tensor([1.0, 1e9, -1e9]), ALPHA, BETA).tolist() == [1.0, BETA, 0.0]


def test_a_modality_that_was_not_seen_counts_for_none() -> None:
    others = mean_of_others(torch.tensor([0.2, 0.4, 0.9]), torch.tensor([True, True, False]))
    assert others.tolist() == pytest.approx([0.4, 0.2, 0.3])
    net = linear_net()
    guides = {name: LinearGuide(4, 3).double() for name in net.encoders}
    inputs, target = linear_inputs(net)
    balance = MLB(guides, task=Classification(3), optimizer=lambda ps: torch.optim.SGD(ps, lr=0.1))
    head = net.fuse(balance.modulate(net.encode(inputs), target, {"a": torch.zeros(7, dtype=torch.bool)}))
    balance.loss(head.logits, head.hidden, target).backward()
    assert balance.diagnostics["coefficient"].tolist() == [1.0, 1.0]
    assert all(torch.isfinite(p.grad).all() for p in net.encoders["b"].parameters())


def test_other_tasks_compare_losses() -> None:
    net = linear_net(outputs=1)
    guides = {name: LinearGuide(4, 1).double() for name in net.encoders}
    inputs, _ = linear_inputs(net)
    target = torch.linspace(-1, 1, 7, dtype=torch.float64)[:, None]
    balance = MLB(guides, task=Regression(), alpha=ALPHA, beta=BETA, optimizer=lambda ps: torch.optim.SGD(ps, lr=0.1))
    features = net.encode(inputs)
    head = net.fuse(balance.modulate(features, target))
    balance.loss(head.logits, head.hidden, target)
    loss = {name: float((guides[name](features[name]).logits - target).abs().mean()) for name in "ab"}
    want = [coefficient(loss["a"] / loss["b"]), coefficient(loss["b"] / loss["a"])]
    assert balance.diagnostics["coefficient"].tolist() == pytest.approx(want)
