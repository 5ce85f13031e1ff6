"""CML: the loss of ever fewer modalities, sample by sample, for all readings; the order of an epoch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from strategy_cases import linear_inputs, linear_net, softmax
from strategy_runs import assert_resumes

from cggm_ray import Classification
from cggm_ray.strategies.cml import CML, READINGS
from cggm_ray.strategies.features import as_in_inference

TASK, WEIGHT = Classification(3), 0.7


@pytest.mark.parametrize("reading", READINGS)
def test_loss(reading: str) -> None:
    net = linear_net(3)
    inputs, target = linear_inputs(net)
    there = torch.tensor([True, False, True, True, False, True, True])
    alone = torch.tensor([True, True, False, True, True, True, True])
    present = {"a": there, "b": alone, "c": alone}
    balance = CML(tuple("abc"), as_in_inference(net), task=TASK, weight=WEIGHT, reading=reading, seed=5)
    features = net.encode(inputs)
    head = net.fuse(balance.modulate(features, target, present))
    extra = balance.loss(head.logits, head.hidden, target)

    h = {name: feature.detach().numpy() for name, feature in features.items()}
    w = dict(zip("abc", np.split(net.head.weight.detach().numpy(), 3, axis=1), strict=True))
    bias = net.head.bias.detach().numpy()

    def says(names: set[str]) -> np.ndarray:
        return softmax(sum((h[name] @ w[name].T for name in names), np.zeros((7, 3))) + bias)

    kept = set("abc")
    losses = [np.mean([-np.log(says(kept)[i, target[i]]) for i in range(7)])]
    growths = []
    for name in balance.removed:
        before, after = says(kept), says(kept - {name})
        kept.discard(name)
        left = [i for i in range(7) if any(present[other][i] for other in kept)]
        losses.append(np.mean([-np.log(after[i, target[i]]) for i in left]))
        grown = []
        for i in left:
            if not present[name][i]:
                continue
            growth, y = after[i].max() - before[i].max(), int(target[i])
            if reading != "benchmark":
                growth = max(0.0, growth)
            if reading == "released" and after[i].argmax() == y and before[i].argmax() != y:
                growth = 0.0
            grown.append(growth)
        growths.append(max(0.0, sum(grown)) if reading == "benchmark" else np.mean(grown))
    want = sum(losses) / 3 + WEIGHT * sum(growths)
    assert (TASK.loss(head.logits, target) + extra).item() == pytest.approx(want, rel=1e-10)
    extra.backward()
    assert all(encoder.weight.grad.abs().max() > 0 for encoder in net.encoders.values())


def test_every_epoch_has_an_order_of_its_own() -> None:
    net = linear_net(3)
    balance, again = (CML(tuple("abc"), as_in_inference(net), task=TASK, seed=3) for _ in range(2))
    orders = []
    for _ in range(8):
        orders.append(balance.branch())
        balance.end_epoch({}, {}, torch.zeros(0))
    assert len(set(orders)) > 2
    again.set_extra_state(balance.get_extra_state())
    assert again.branch() == balance.branch()


@pytest.mark.slow
def test_resume(tmp_path: Path) -> None:
    assert_resumes(tmp_path, "--modulation", "cml")
