"""A loss that is not finite stops the run before anything is moved or saved."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cggm_ray.commands.cli import main
from cggm_ray.commands.train import check_finite
from cggm_ray.core.errors import NonFiniteError
from cggm_ray.engine.assembly import new_state
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.state import WEIGHTS, TrainState
from cggm_ray.engine.tracking import JsonLines, read_metrics
from cggm_ray.runs.result import read_summary
from conftest import SMALL, small_set, tamper, write_pickle


def test_the_message_names_step_rank_samples_and_checkpoint(
    tmp_path: Path, small_pickle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*SMALL, "--local", "--data_path", str(small_pickle), "--storage_path", str(tmp_path), "--name", "run"]
    assert main(Config(), [*argv, "--num_epochs", "1"]) == 0
    checkpoint = tmp_path / "run" / "checkpoints" / "epoch-00001"
    tamper(checkpoint, WEIGHTS, lambda weights: weights["head.weight"][0, 0].fill_(torch.inf))
    capsys.readouterr()
    assert main(Config(), argv) == 1
    (line,) = capsys.readouterr().err.splitlines()
    for text in ("step 6 (epoch 2)", "task loss inf", "rank 0", "no parameter was moved", f"checkpoint: {checkpoint}"):
        assert text in line
    assert sorted(folder.name for folder in checkpoint.parent.iterdir()) == ["epoch-00001"]


def test_overflow_in_the_first_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = small_set()
    content["train"]["text"] = np.full_like(content["train"]["text"], 3e38)
    path = write_pickle(tmp_path / "huge.pkl", content)
    argv = [*SMALL, "--local", "--data_path", str(path), "--storage_path", str(tmp_path), "--name", "run"]
    assert main(Config(), argv) == 1
    assert "step 1 (epoch 1): not finite: task loss nan" in capsys.readouterr().err


def run(tmp_path: Path, content: dict[str, dict[str, object]], *flags: str) -> int:
    path = write_pickle(tmp_path / "set.pkl", content)
    places = ["--data_path", str(path), "--storage_path", str(tmp_path), "--name", "run"]
    return main(Config(), [*SMALL, "--local", *places, *flags])


def test_a_bad_sample_is_skipped_and_leaves_no_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = small_set()
    content["train"]["text"][3] = 3e38
    assert run(tmp_path, content, "--on_nonfinite", "skip") == 0
    skipped = [line for line in capsys.readouterr().out.splitlines() if line.startswith("skipped step ")]
    assert len(skipped) == 2
    assert all(re.search(r"samples on rank 0: \[.*\b3\b.*\]", line) for line in skipped)
    metrics = read_metrics(tmp_path / "run")
    assert [line["skipped_steps"] for line in metrics] == [1, 1]
    # The forward pass of a bad batch changes the strategy's averages; they are put back.
    assert all(value is not None for line in metrics for value in line.values())


def test_skipping_ends_where_it_is_not_a_bad_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = small_set()
    content["train"]["text"] = np.full_like(content["train"]["text"], 3e38)
    assert run(tmp_path, content, "--on_nonfinite", "skip", "--num_epochs", "4") == 1
    assert "10 steps in a row were not finite; the last one: step 10 (epoch 2)" in capsys.readouterr().err
    assert [line["train/loss"] for line in read_metrics(tmp_path / "run")] == [None]


def test_a_validation_loss_that_is_not_finite_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = small_set()
    content["valid"]["text"][2] = 3e38
    assert run(tmp_path, content) == 1
    told = capsys.readouterr()
    assert told.out.count("the validation loss is nan, which is never the best") == 2
    assert "was not a number after each of 2 epochs, so there is no best checkpoint" in told.err


def test_a_run_that_diverged_at_its_end_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, small_set()) == 0
    found = read_summary(tmp_path / "run")
    check_finite(found)
    lines = JsonLines(tmp_path / "run", 1)
    lines.log({"epoch": 2, "valid/loss": float("nan")})
    with pytest.raises(NonFiniteError, match="after epoch 2, the last one, was not finite"):
        check_finite(found)


def test_a_test_loss_that_is_not_finite_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = small_set()
    content["test"]["text"][2] = 3e38
    assert run(tmp_path, content) == 1
    assert "the test loss of the best epoch" in capsys.readouterr().err


@pytest.mark.parametrize("modulation", ["none", "cggm"])
def test_a_device_that_works_ahead_is_asked_later_and_moves_nothing_meanwhile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, modulation: str
) -> None:
    content = small_set()
    content["train"]["text"][3] = 3e38
    said, weights = [], []
    for devices in ((), ("cpu",)):
        folder = tmp_path / f"{len(devices)}"
        folder.mkdir()
        seen = []

        def kept(*arguments: Any, seen: list[Any] = seen, **options: Any) -> TrainState:
            seen.append(new_state(*arguments, **options))
            return seen[0]

        monkeypatch.setattr("cggm_ray.engine.assembly.WORKING_AHEAD", devices)
        monkeypatch.setattr("cggm_ray.engine.opening.new_state", kept)
        assert run(folder, content, "--modulation", modulation, "--log_interval", "100") == 1
        said.append(re.sub(r"; seen on rank 0", "", capsys.readouterr().err))
        weights.append({**seen[0].net.state_dict(), **dict(seen[0].strategy.named_parameters())})
    assert "not finite" in said[0]
    assert "samples on rank 0" in said[0]
    # The same step is named, and the weights are those from before it.
    assert said[0] == said[1]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
