"""MBSD: its loss sample by sample, in plain Python, and gradients by finite differences."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from strategy_cases import LinearGuide, linear_inputs, linear_net, softmax

from cggm_ray import Classification
from cggm_ray.strategies.mbsd import MBSD

TASK, WEIGHT = Classification(3), 0.4


@pytest.mark.parametrize("modalities", [2, 3])
def test_loss(modalities: int) -> None:
    net = linear_net(modalities)
    guides = {name: LinearGuide(4, 3).double() for name in net.encoders}
    inputs, target = linear_inputs(net)
    there = torch.tensor([True, False, True, True, False, True, True])
    balance = MBSD(guides, task=TASK, weight=WEIGHT, optimizer=lambda ps: torch.optim.SGD(ps, lr=0.1))

    def term() -> torch.Tensor:
        features = balance.modulate(net.encode(inputs), target, {"a": there})
        head = net.fuse(features)
        return balance.loss(head.logits, head.hidden, target)

    logits = {name: guides[name](net.encode(inputs)[name]).logits.detach().numpy() for name in guides}
    rows = {name: there.tolist() if name == "a" else [True] * 7 for name in guides}
    want = 0.0
    for name, z in logits.items():
        losses = [-np.log(softmax(z)[i, target[i]]) for i in range(7) if rows[name][i]]
        want += sum(losses) / len(losses)
    apart = []
    for one, other in itertools.combinations(guides, 2):
        total, count = 0.0, 0
        for i in range(7):
            if not (rows[one][i] and rows[other][i]):
                continue
            count += 1
            y, z = int(target[i]), (logits[one][i], logits[other][i])
            p = [softmax(values[None])[0] for values in z]
            if y not in (p[0].argmax(), p[1].argmax()):
                continue
            strong, weak = max(p[0][y], p[1][y]), min(p[0][y], p[1][y])
            left, right = z if modalities == 2 else p
            total += (strong - weak) * (((left - right) ** 2).mean() + weak * (np.log(weak) - strong))
        apart.append(total / count)
    assert any(apart)
    want += WEIGHT * sum(apart) / len(apart)
    found = term()
    assert found.item() == pytest.approx(want, rel=1e-12)
    found.backward()
    weight, step = net.encoders["b"].weight, 1e-6
    with torch.no_grad():
        weight[1, 2] += step
        above = term().item()
        weight[1, 2] -= 2 * step
        below = term().item()
    assert weight.grad[1, 2].item() == pytest.approx((above - below) / (2 * step), rel=1e-6)
