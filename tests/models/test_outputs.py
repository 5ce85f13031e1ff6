"""Regression in any unit: loss and steps are those of a standardised target, predictions are in the unit of the target."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cggm_ray.commands.cli import main, parse
from cggm_ray.data.datasets.features import FeatureOptions
from cggm_ray.data.settings import DataConfig
from cggm_ray.engine.configuration import Config
from cggm_ray.models.outputs import ScaledLinear
from cggm_ray.runs.finished import open_finished
from cggm_ray.runs.result import read_summary
from cggm_ray.tasks import Regression

RECIPE = Config(data=DataConfig(dataset="features"), options=FeatureOptions(task="regression"))


def test_the_loss_is_that_of_a_standardised_target() -> None:
    torch.manual_seed(0)
    hidden, target = torch.randn(9, 5), 300 + 40 * torch.randn(9, 2)
    plain = nn.Linear(5, 2)
    scaled = ScaledLinear(plain)
    mean, deviation = target.mean(0), target.std(0, correction=0)
    scaled.fill(mean, deviation)
    task = Regression(2).scaled(mean, deviation)
    loss = task.loss(scaled(hidden), target)
    expected = Regression(2).loss(plain(hidden), (target - mean) / deviation)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, scaled.weight)
    (wanted,) = torch.autograd.grad(expected, plain.weight)
    assert torch.allclose(gradient, wanted, rtol=1e-4, atol=1e-7)


def write_set(path: Path, scale: float, shift: float) -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(90, 6)), random.normal(size=(90, 4))
    value = x[:, 0] - 0.5 * y[:, 1] + 0.1 * random.normal(size=90)
    split = np.array(["train"] * 60 + ["valid"] * 15 + ["test"] * 15)
    np.savez(path, x=x, y=y, value=value * scale + shift, split=split)


def test_the_unit_of_the_target_changes_nothing_but_the_unit(tmp_path: Path) -> None:
    results = {}
    for name, scale, shift in (("metres", 1.0, 0.0), ("other", 1024.0, 65536.0)):
        write_set(tmp_path / f"{name}.npz", scale, shift)
        flags = [
            "--data_path",
            str(tmp_path / f"{name}.npz"),
            "--target",
            "value",
            "--storage_path",
            str(tmp_path / "runs"),
        ]
        flags += [
            "--local",
            "--name",
            name,
            "--standardise",
            "on",
            "--num_epochs",
            "3",
            "--nlevels",
            "3",
            "--report",
            "false",
        ]
        assert main(RECIPE, flags) == 0
        results[name] = read_summary(tmp_path / "runs" / name)
    assert results["other"].test["mae"] / 1024 == pytest.approx(results["metres"].test["mae"], rel=0.02)
    assert results["other"].test["loss"] == pytest.approx(results["metres"].test["loss"], rel=0.02)
    # A finished run scores in the same units.
    run = open_finished(tmp_path / "runs" / "other")
    assert isinstance(run.task, Regression)
    assert run.task.unit is not None
    assert float(run.task.unit) == pytest.approx(1024, rel=0.5)


def test_released_recipes_have_no_scale() -> None:
    assert parse(RECIPE, []).config.inputs.standardise == "off"
