"""MMPareto against its rule, written out with two gradients for every encoder."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from strategy_cases import LinearGuide, linear_inputs, linear_net
from torch import Tensor
from torch.optim import SGD

import cggm_ray.strategies.mmpareto
from cggm_ray import Classification, UsageError
from cggm_ray.models.net import MultimodalNet
from cggm_ray.strategies.mmpareto import MMPareto, Products, pareto_weights

GAMMA = 1.5
TASK = Classification(3)


def flat(loss: Tensor, parameters: list[Tensor]) -> np.ndarray:
    grads = torch.autograd.grad(loss, parameters, retain_graph=True)
    return torch.cat([grad.flatten() for grad in grads]).numpy()


def oracle(g: np.ndarray, u: np.ndarray) -> np.ndarray:
    """The gradient of an encoder; the min-norm weights by trying many."""
    a = 0.5
    if g @ u < 0:
        tries = np.linspace(0, 1, 200001)
        # |a g + (1 - a) u|^2 for all of them.
        a = tries[np.argmin(tries**2 * (g @ g) + (1 - tries) ** 2 * (u @ u) + 2 * tries * (1 - tries) * (g @ u))]
    h = 2 * a * g + 2 * (1 - a) * u
    enhanced = np.linalg.norm(g + u) / np.linalg.norm(h)
    return GAMMA * max(enhanced, 1.0) * h


def setting(modalities: int, seed: int) -> tuple[MultimodalNet, MMPareto]:
    net = linear_net(modalities)
    torch.manual_seed(seed)
    guides = {name: LinearGuide(4, 3).double() for name in net.encoders}
    return net, MMPareto(guides, dict(net.encoders), task=TASK, gamma=GAMMA, optimizer=lambda p: SGD(p, lr=0.1))


@pytest.mark.parametrize("modalities", [2, 3])
def test_gradient_of_every_encoder(modalities: int) -> None:
    conflicts = []
    for seed in range(6):
        net, balance = setting(modalities, seed)
        inputs, target = linear_inputs(net)
        features = net.encode(inputs)
        fused = TASK.loss(net.fuse(features).logits, target)
        guided = {name: TASK.loss(balance.guides[name](features[name]).logits, target) for name in net.encoders}
        want, pairs = {}, {}
        for name, encoder in net.encoders.items():
            parameters = list(encoder.parameters())
            pairs[name] = flat(fused, parameters), flat(guided[name], parameters)
            want[name] = oracle(*pairs[name])
        own = {name: flat(guided[name], list(balance.guides[name].parameters())) for name in net.encoders}
        of_head = flat(fused, list(net.head.parameters()))

        head = net.fuse(balance.modulate(net.encode(inputs), target))
        extra = balance.loss(head.logits, head.hidden, target)
        assert extra.item() == pytest.approx(sum(loss.item() for loss in guided.values()))
        (TASK.loss(head.logits, target) + extra).backward()
        for name, encoder in net.encoders.items():
            got = torch.cat([p.grad.flatten() for p in encoder.parameters()]).numpy()
            assert np.allclose(got, want[name], rtol=1e-4, atol=1e-6), name
            g, u = pairs[name]
            assert got @ g >= 0
            assert got @ u >= 0
            assert np.linalg.norm(got) >= GAMMA * np.linalg.norm(g + u) * (1 - 1e-9)
            conflicts.append(g @ u < 0)
            guide = torch.cat([p.grad.flatten() for p in balance.guides[name].parameters()]).numpy()
            assert np.allclose(guide, own[name], rtol=1e-12)
        assert np.allclose(torch.cat([p.grad.flatten() for p in net.head.parameters()]).numpy(), of_head, rtol=1e-12)
    # Without both kinds of encoder, only half of the rule was compared with the oracle.
    assert 0 < sum(conflicts) < len(conflicts)


def test_never_against_either_loss() -> None:
    rng = np.random.default_rng(0)
    g, u = rng.normal(size=(500, 3)), rng.normal(size=(500, 3)) * 10 ** rng.uniform(-3, 3, size=(500, 1))
    dots = [torch.tensor((x * y).sum(1)) for x, y in ((g, g), (u, u), (g, u))]
    fused, guided = (w.numpy()[:, None] for w in pareto_weights(Products(*dots), GAMMA))
    h = fused * g + guided * u
    lengths = np.linalg.norm(h, axis=1)
    assert np.all((h * g).sum(1) >= -1e-9 * lengths * np.linalg.norm(g, axis=1))
    assert np.all((h * u).sum(1) >= -1e-9 * lengths * np.linalg.norm(u, axis=1))
    agree = dots[2].numpy() >= 0
    assert 0 < agree.sum() < 500
    assert np.allclose(fused[agree], GAMMA)
    assert np.allclose(guided[agree], GAMMA)


def test_gradients_that_cancel_or_vanish() -> None:
    one, zero = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for products in (Products(one, one, -one), Products(one, zero, zero), Products(zero, zero, zero)):
        weights = pareto_weights(products, GAMMA)
        assert torch.allclose(weights.fused_M, GAMMA * one)
        assert torch.allclose(weights.guided_M, GAMMA * one)


def test_guides_learn_and_resume() -> None:
    net, balance = setting(2, 0)
    inputs, target = linear_inputs(net)
    before = {name: p.clone() for name, p in balance.guides.named_parameters()}
    head = net.fuse(balance.modulate(net.encode(inputs), target))
    (TASK.loss(head.logits, target) + balance.loss(head.logits, head.hidden, target)).backward()
    balance.step()
    assert all(not torch.equal(p, before[name]) for name, p in balance.guides.named_parameters())
    assert all(p.grad is None for p in balance.guides.parameters())
    assert not any("encoder" in name for name in balance.state_dict())


def test_a_modality_that_no_sample_has() -> None:
    net, balance = setting(2, 0)
    inputs, target = linear_inputs(net)
    features = balance.modulate(net.encode(inputs), target, {"a": torch.zeros(7, dtype=torch.bool)})
    head = net.fuse(features)
    (TASK.loss(head.logits, target) + balance.loss(head.logits, head.hidden, target)).backward()
    assert balance.diagnostics["guide_loss"][0] == 0
    assert all(bool(torch.isfinite(p.grad).all()) for p in net.parameters())


def test_one_modality_is_refused() -> None:
    with pytest.raises(UsageError, match="at least two modalities"):
        setting(1, 0)


def test_its_example() -> None:
    result = doctest.testmod(cggm_ray.strategies.mmpareto)
    assert result.attempted > 10
    assert result.failed == 0
