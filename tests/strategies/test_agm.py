"""AGM against the formulas of the paper, written out."""

from __future__ import annotations

import doctest
import itertools
import math

import numpy as np
import pytest
import torch
from strategy_cases import linear_inputs, linear_net, softmax
from torch import Tensor

import cggm_ray.strategies.agm
from cggm_ray import Classification, Regression
from cggm_ray.models.net import MultimodalNet
from cggm_ray.strategies.agm import AGM

ALPHA = 0.7


class Oracle:
    """The paper, step by step, with lists of permutations for the Shapley values."""

    def __init__(self, net: MultimodalNet) -> None:
        self.names, self.average, self.steps = list(net.encoders), np.zeros(len(net.encoders)), 0

    def said(self, net: MultimodalNet, inputs: dict[str, Tensor], kept: set[str]) -> np.ndarray:
        if not kept:
            return np.zeros((7, net.head.out_features))
        with torch.no_grad():
            features = {name: x * (name in kept) for name, x in net.encode(inputs).items()}
            return net.fuse(features).logits.numpy()

    def responses(self, net: MultimodalNet, inputs: dict[str, Tensor]) -> list[np.ndarray]:
        orders = list(itertools.permutations(self.names))
        found = []
        for name in self.names:
            total = np.zeros((7, net.head.out_features))
            for order in orders:
                before = set(order[: order.index(name)])
                total += self.said(net, inputs, before | {name}) - self.said(net, inputs, before)
            found.append(total / len(orders))
        return found

    def kappa(self, score: np.ndarray) -> np.ndarray:
        self.steps += 1
        t, k = self.steps, len(self.names)
        self.average = self.average * (t - 1) / t + score / t

        def ratio(s: np.ndarray, m: int) -> float:
            return math.exp(sum(s[j] - s[m] for j in range(k) if j != m) / (k - 1))

        return np.array([math.exp(-ALPHA * (ratio(score, m) - ratio(self.average, m))) for m in range(k)])


@pytest.mark.parametrize("modalities", [2, 3, 4])
def test_coefficients_of_several_steps(modalities: int) -> None:
    net, task = linear_net(modalities), Classification(3)
    oracle = Oracle(net)
    balance = AGM(oracle.names, net.fuse, task=task, alpha=ALPHA)
    inputs, target = linear_inputs(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    for number in range(4):
        responses = oracle.responses(net, inputs)
        assert np.allclose(sum(responses), net(inputs).detach().numpy())
        rows = range(len(target))
        score = np.array([-np.mean(np.log(softmax(response)[rows, target])) for response in responses])
        want = oracle.kappa(score)
        optimizer.zero_grad()
        task.loss(net(inputs), target).backward()
        joint = {name: p.grad.clone() for name, p in net.named_parameters()}
        optimizer.zero_grad()
        head = net.fuse(balance.modulate(net.encode(inputs), target))
        (task.loss(head.logits, target) + balance.loss(head.logits, head.hidden, target)).backward()
        assert np.allclose(balance.diagnostics["coefficient"], want, rtol=1e-10)
        assert np.allclose(want, 1) == (number == 0)
        for name, parameter in net.named_parameters():
            m = oracle.names.index(name.split(".")[1]) if name.startswith("encoders") else None
            assert torch.allclose(parameter.grad, (1.0 if m is None else want[m]) * joint[name], rtol=1e-10), name
        optimizer.step()


def test_who_runs_ahead_of_its_own_average_is_slowed_down() -> None:
    balance = AGM(["a", "b"], linear_net().fuse, task=Regression(), alpha=ALPHA)
    seen = torch.tensor([True, True])
    balance.decide(torch.tensor([[1.0, 1.0], [1.0, 1.0]]).double(), seen)
    ahead, behind = balance.decide(torch.tensor([[0.5, 1.0], [1.0, 1.0]]).double(), seen).tolist()
    assert ahead < 1 < behind


def test_a_bad_batch_is_bounded() -> None:
    balance = AGM(["a", "b"], linear_net().fuse, task=Regression(), alpha=ALPHA)
    seen = torch.tensor([True, True])
    balance.decide(torch.tensor([[1.0, 1.0], [60.0, 1.0]]).double(), seen)
    scale = balance.decide(torch.tensor([[60.0, 1.0], [1.0, 1.0]]).double(), seen)
    assert bool((scale <= math.exp(ALPHA * balance.bound) * (1 + 1e-12)).all())
    assert bool(torch.isfinite(scale).all())


def test_a_modality_that_no_sample_has() -> None:
    net = linear_net(3)
    balance = AGM(list(net.encoders), net.fuse, task=Classification(3), alpha=ALPHA)
    inputs, target = linear_inputs(net)
    for there in (True, False):
        present = {"a": torch.full((7,), there)}
        head = net.fuse(balance.modulate(net.encode(inputs), target, present))
        balance.loss(head.logits, head.hidden, target)
    assert balance.diagnostics["coefficient"][0] == 1
    assert balance.steps_M.tolist() == [1, 2, 2]


def test_its_example() -> None:
    result = doctest.testmod(cggm_ray.strategies.agm)
    assert result.attempted > 10
    assert result.failed == 0
