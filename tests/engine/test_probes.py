"""Decisions before the first step: how inputs are standardised, and the learning rate."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cggm_ray.commands.cli import main, parse
from cggm_ray.core.errors import StoppedError
from cggm_ray.data.datasets.features import FeatureOptions
from cggm_ray.data.settings import DataConfig
from cggm_ray.data.shards.shards import write_shards_here
from cggm_ray.engine.assembly import prepare_data
from cggm_ray.engine.checkpoints import Checkpoints
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.opening import open_training
from cggm_ray.engine.probes import DECISIONS, chance_of, decide_standardise
from cggm_ray.engine.runtime import LocalRuntime
from cggm_ray.engine.stopping import Notice
from cggm_ray.engine.tracking import read_metrics

RECIPE = Config(data=DataConfig(dataset="features"), options=FeatureOptions())
SMALL = [
    "--nlevels",
    "3",
    "--cls_layers",
    "1",
    "--proj_dim",
    "8",
    "--num_heads",
    "2",
    "--batch_size",
    "16",
    "--report",
    "false",
]


def write_set(path: Path, *, scale: float, noise: float, columns: int) -> Path:
    """Three classes in the first features of two modalities, beside columns of noise; both are multiplied."""
    random = np.random.default_rng(0)
    label = random.integers(3, size=150)
    parts = {}
    for name in ("x", "y"):
        signal = np.eye(3)[label] * 3 + random.normal(size=(150, 3))
        parts[name] = np.concatenate([signal * scale, random.normal(size=(150, columns)) * noise], 1)
    split = np.array(["train"] * 90 + ["valid"] * 30 + ["test"] * 30)
    np.savez(path, **parts, label=label, split=split)
    return path


def run(data: Path, folder: Path, name: str, *flags: str) -> Path:
    common = ["--local", "--data_path", str(data), "--storage_path", str(folder), "--name", name, *SMALL]
    assert main(RECIPE, [*common, "--num_epochs", "4", *flags]) == 0
    return folder / name


def decided(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / DECISIONS).read_text())
    return found


@pytest.mark.parametrize(
    ("choice", "scale", "noise", "columns"),
    [("on", 1e-3, 1e-3, 4), ("modality", 1.0, 1e-3, 200)],
    ids=["features of a small unit", "noise of a small unit beside the signal"],
)
def test_validation_decides_and_the_trial_leaves_nothing_behind(
    choice: str, scale: float, noise: float, columns: int, tmp_path: Path
) -> None:
    data = write_set(tmp_path / "set.npz", scale=scale, noise=noise, columns=columns)
    auto = run(data, tmp_path, "auto", "--standardise", "auto")
    found = decided(auto)["standardise"]
    assert found["choice"] == choice
    # Thirty validation samples: one scale for each modality must be better by more than chance.
    assert (found["modality"] - found["on"] > chance_of(found["on"], "max", 30)) == (choice == "modality")
    # The run is to the bit the one that was told so from the start.
    told = run(data, tmp_path, choice, "--standardise", choice)
    for mine, other in zip(read_metrics(auto), read_metrics(told), strict=True):
        timing = {"seconds", "samples_per_second", "peak_memory"}
        assert {k: v for k, v in mine.items() if k not in timing} == {k: v for k, v in other.items() if k not in timing}


def test_chance_is_a_standard_error() -> None:
    assert chance_of(0.9, "max", 100) == pytest.approx(0.03, abs=1e-3)
    assert 0 < chance_of(1.0, "max", 100) < 0.01
    assert chance_of(46.0, "min", 100) == 4.6
    # Training with standardised inputs failed.
    assert chance_of(-math.inf, "max", 100) == 0


def test_a_run_that_goes_on_keeps_its_decisions(tmp_path: Path) -> None:
    data = write_set(tmp_path / "set.npz", scale=1e-3, noise=1e-3, columns=4)
    flags = ("--standardise", "auto", "--find_lr", "--lr", "1e-5")
    whole = run(data, tmp_path, "whole", *flags)
    lr = decided(whole)["lr"]["choice"]
    # Far from the 1e-5 of the command line, with which nothing is learned.
    assert 1e-4 < lr < 1e-1
    assert [line["lr"] for line in read_metrics(whole)] == [lr] * 4

    run(data, tmp_path, "parts", *flags, "--num_epochs", "2")
    (tmp_path / "parts" / DECISIONS).unlink()
    parts = run(data, tmp_path, "parts", *flags)
    # The second start took no decision.
    assert not (parts / DECISIONS).exists()
    assert [line["valid/loss"] for line in read_metrics(parts)] == [line["valid/loss"] for line in read_metrics(whole)]
    a, b = (load_file(folder / "best" / "model.safetensors") for folder in (whole, parts))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("strategy", ["cggm", "ume"])
def test_strategies_of_a_comparison_decide_alike(strategy: str, tmp_path: Path) -> None:
    data = write_set(tmp_path / "set.npz", scale=1e-3, noise=1e-3, columns=4)
    flags = ("--standardise", "auto", "--find_lr", "--num_epochs", "1")
    found = [decided(run(data, tmp_path, name, *flags, "--modulation", name)) for name in ("none", strategy)]
    assert found[0] == found[1]


def _again(data: Path, folder: Path, name: str, *flags: str) -> list[str]:
    common = ["--local", "--data_path", str(data), "--storage_path", str(folder), "--name", name, *SMALL]
    return [*common, "--num_epochs", "4", *flags]


class Stopping(LocalRuntime):
    """A runtime whose workers agree to stop."""

    def notice(self, now: bool = False) -> Notice:
        return Notice.STOP


def test_a_request_to_stop_ends_a_trial_without_a_checkpoint(tmp_path: Path) -> None:
    data = write_set(tmp_path / "set.npz", scale=1.0, noise=1.0, columns=4)
    flags = _again(data, tmp_path, "stopped", "--standardise", "auto")
    config = parse(RECIPE, flags).config
    shards = prepare_data(config, write_shards_here)
    folder = tmp_path / "stopped"
    folder.mkdir()
    runtime = Stopping(folder, config.run)
    training = open_training(config, shards, runtime, folder)
    with pytest.raises(StoppedError, match="stopped before the first step"):
        decide_standardise(training)
    assert Checkpoints(folder).newest() is None
