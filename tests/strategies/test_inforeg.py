"""InfoReg: several workers, resume, and other tasks; `test_recorded.py` has its arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from strategy_cases import linear_inputs, linear_net
from strategy_runs import assert_resumes, assert_workers_follow_one

from cggm_ray import Regression
from cggm_ray.commands.cli import parse
from cggm_ray.engine.configuration import Config
from cggm_ray.strategies.inforeg import InfoReg


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


def test_numbers_by_modality() -> None:
    config = parse(Config(), ["--modulation", "inforeg", "--inforeg_mus", "text=0.5,audio=0"]).config
    assert vars(config.strategy)["inforeg_mus"] == ("text=0.5", "audio=0")
