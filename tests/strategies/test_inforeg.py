"""InfoReg: several workers, resume, and other tasks; `test_recorded.py` has its arithmetic."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from strategy_cases import linear_inputs, linear_net
from strategy_runs import assert_resumes, assert_workers_follow_one
from torch import Tensor

from cggm_ray import Classification, Regression
from cggm_ray.commands.cli import parse
from cggm_ray.engine.configuration import Config
from cggm_ray.models.net import MultimodalNet
from cggm_ray.strategies.inforeg import InfoReg


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_two_workers_follow_one(tmp_path: Path, kind: str) -> None:
    one = assert_workers_follow_one(tmp_path, {"modulation": "inforeg"}, kind=kind)
    assert any(float(step["beta"].max()) > 0 for step in one["logged"])


def test_resume(tmp_path: Path) -> None:
    assert_resumes(tmp_path, "--modulation", "inforeg", "--inforeg_mus", "words=0.9,age=0.1,face=0")


def test_an_encoder_that_does_not_grow_any_more_is_free() -> None:
    net = linear_net(2, outputs=1)
    balance = InfoReg(dict(net.encoders.items()), net.fuse, task=Regression())
    inputs, _ = linear_inputs(net)
    target = torch.randn(7, 1).double()
    for growth, held in ((1.0, True), (0.04, False)):
        balance.growth_M.fill_(growth)
        head = net.fuse(balance.modulate(net.encode(inputs), target))
        (balance.task.loss(head.logits, target) + balance.loss(head.logits, head.hidden, target)).backward()
        assert bool((balance.diagnostics["beta"] > 0).any()) == held
        balance.adjust()
        balance.step()


def test_the_reading_of_the_paper() -> None:
    """Equations 8 to 12 and 16, written out, over four epochs of two steps with any number of modalities."""
    net, task, mu, threshold, rate = linear_net(3), Classification(3), 0.9, 0.04, 0.1
    names = list(net.encoders)
    balance = InfoReg(
        dict(net.encoders.items()), net.fuse, task=task, mus=dict.fromkeys(names, mu), threshold=threshold, paper=True
    )
    traces: list[dict[str, float]] = []
    held = 0
    for epoch in range(4):
        balance.begin_epoch(epoch, {})
        before = {name: value.detach().clone() for name, value in net.named_parameters()}
        traces.append(dict.fromkeys(names, 0.0))
        for step in range(2):
            draw = torch.Generator().manual_seed(10 * epoch + step)
            inputs = {name: torch.randn(9, 5, generator=draw, dtype=torch.float64) for name in names}
            target = torch.randint(3, (9,), generator=draw)
            features = net.encode(inputs)
            net.zero_grad()
            task.loss(net.fuse(features).logits, target).backward()
            want = {name: value.grad.clone() for name, value in net.named_parameters()}
            for name in names:
                traces[epoch][name] += float(
                    sum(value.square().sum() for key, value in want.items() if key.startswith(f"encoders.{name}."))
                )
            score = {name: -float(alone(net, features, name, target).detach()) for name in names}
            for name, own in score.items():
                behind = [own - other for other in score.values() if other < own]
                gap = sum(behind) / len(behind) if behind else 0.0
                growth = 0.0
                if epoch >= 2:
                    growth = (traces[epoch - 1][name] - traces[epoch - 2][name]) / traces[epoch - 1][name]
                if gap > 0 and growth > threshold:
                    held += 1
                    for key in (f"encoders.{name}.weight", f"encoders.{name}.bias"):
                        away = net.get_parameter(key).detach() - before[key]
                        want[key] += math.exp(mu * math.tanh(gap)) * away
            net.zero_grad()
            head = net.fuse(balance.modulate(net.encode(inputs), target))
            (task.loss(head.logits, target) + balance.loss(head.logits, head.hidden, target)).backward()
            balance.adjust()
            with torch.no_grad():
                for key, value in net.named_parameters():
                    assert torch.allclose(value.grad, want[key], rtol=1e-9), (epoch, step, key)
                    value -= rate * value.grad
            balance.step()
        balance.end_epoch({}, {}, torch.zeros(0))
    assert held


def alone(net: MultimodalNet, features: dict[str, Tensor], name: str, target: Tensor) -> Tensor:
    """The cross-entropy of a modality by its own part of the linear head, with its share of the bias."""
    width, index = 4, list(net.encoders).index(name)
    weight, bias = net.get_parameter("head.weight"), net.get_parameter("head.bias")
    part = weight[:, width * index : width * (index + 1)]
    return torch.nn.functional.cross_entropy(features[name] @ part.T + bias / len(net.encoders), target)


def test_numbers_by_modality() -> None:
    config = parse(Config(), ["--modulation", "inforeg", "--inforeg_mus", "text=0.5,audio=0"]).config
    assert vars(config.strategy)["inforeg_mus"] == ("text=0.5", "audio=0")
