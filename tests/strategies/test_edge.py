"""CGGM at the edge: weights by hand over several validations, and the start as `multiloss` with the projection."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from strategy_cases import LinearGuide, linear_inputs, linear_net

from cggm_ray import Classification
from cggm_ray.strategies.edge import Edge, weights
from cggm_ray.strategies.multiloss import MultiLoss

TASK = Classification(3)


def make(rho: float = 1.5) -> Edge:
    torch.manual_seed(0)
    guides = {name: LinearGuide(4, 3).double() for name in "abc"}
    return Edge(guides, task=TASK, rho=rho, smoothing=0.6, floor=0.02, optimizer=lambda ps: torch.optim.SGD(ps, lr=0.1))


def observed(*losses: float) -> torch.Tensor:
    """What validation adds up: loss and number of samples of each guide, then utilities, which are not read."""
    return torch.tensor([part for loss in losses for part in (7 * loss, 7.0)] + [1.0] * 6, dtype=torch.float64)


def test_weights_over_validations_by_hand() -> None:
    balance = make()
    assert balance.weight_M.tolist() == [1.5] * 3
    history = [(1.0, 2.0, 3.0), (0.5, 1.9, 3.1), (0.4, math.nan, 2.0), (0.4, 1.0, 2.0)]
    gain, before = np.zeros(3), np.full(3, np.nan)
    for losses in history:
        balance.end_epoch({}, {"loss": 1.0}, observed(*losses))
        for m, loss in enumerate(losses):
            if math.isfinite(loss) and math.isfinite(before[m]):
                gain[m] = 0.6 * gain[m] + 0.4 * max(0.0, 1 - loss / before[m])
            if math.isfinite(loss):
                before[m] = loss
        d = gain + 0.02
        want = [1.5 * 3 / 2 * (d.sum() - d[m]) / d.sum() for m in range(3)]
        np.testing.assert_allclose(balance.weight_M.numpy(), want, rtol=1e-12)
        assert float(balance.weight_M.mean()) == pytest.approx(1.5)
        # Who improved most gets the smallest gradient of its own.
        assert int(balance.weight_M.argmin()) == int(d.argmax())


def test_it_starts_as_multiloss_with_the_projection() -> None:
    grads = []
    for kind in ("edge", "multiloss"):
        torch.manual_seed(0)
        net = linear_net(3)
        inputs, target = linear_inputs(net)
        edge = make(1.5)
        if kind == "multiloss":
            balance = MultiLoss(
                dict(edge.guides.items()),
                task=TASK,
                weights=dict.fromkeys("abc", 1.5),
                project=True,
                optimizer=lambda ps: torch.optim.SGD(ps, lr=0.1),
            )
        else:
            balance = edge
        head = net.fuse(balance.modulate(net.encode(inputs), target))
        (TASK.loss(head.logits, target) + balance.loss(head.logits, head.hidden, target)).backward()
        grads.append([p.grad.clone() for p in net.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


def test_a_single_modality_has_rho() -> None:
    assert weights(torch.tensor([0.3]), 0.7).tolist() == pytest.approx([0.7])
