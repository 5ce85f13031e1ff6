"""The head-room at the end of runs and comparisons: its rows against the runs themselves, numpy and scikit-learn."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from programs import ROOT
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from cggm_ray.commands.cli import main
from cggm_ray.commands.headroom import write_headroom
from cggm_ray.core.errors import TrainingError, UsageError
from cggm_ray.data.datasets.features import FeatureOptions
from cggm_ray.data.settings import DataConfig
from cggm_ray.data.shards.shards import column_values
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.stopping import StopRequest
from cggm_ray.runs.result import read_summary
from cggm_ray.studies.headroom import HEADROOM, Headroom
from cggm_ray.studies.headroom_rows import MOST_SAMPLES
from conftest import SMALL, small_set, write_pickle

RECIPE = Config(data=DataConfig(dataset="features"), options=FeatureOptions())


def arrays(samples: int = 120) -> dict[str, np.ndarray]:
    """Two vectors of which both say something about the class, in unlike units."""
    rng = np.random.default_rng(0)
    label = rng.integers(3, size=samples)
    return {
        "near": (label[:, None] == np.arange(3)) * 2.0 + rng.normal(size=(samples, 3)),
        "far": ((label[:, None] == np.arange(3)) + rng.normal(size=(samples, 3))) * 1000,
        "label": label,
        "split": np.array(["train", "train", "train", "train", "valid", "test"] * (samples // 6)),
    }


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    np.savez(tmp_path / "f.npz", **arrays())
    return tmp_path / "f.npz"


def flags(data: Path, storage: Path, *more: str) -> list[str]:
    places = ["--data_path", str(data), "--storage_path", str(storage), "--name", "run", "--local"]
    return [*SMALL, "--nlevels", "3", *places, *more]


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["label"]: dict(row) for row in Headroom.load(folder / HEADROOM).rows}


def predictions(run: Path) -> tuple[np.ndarray, np.ndarray]:
    table = pq.read_table(run / "predictions.parquet")
    return column_values(table.column("prediction")), column_values(table.column("target"))


def test_a_run_has_its_rows_and_what_is_finished_is_not_run_again(
    npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = flags(npz, tmp_path, "--headroom", "--report", "true", "--modulation", "cggm")
    assert main(RECIPE, argv) == 0
    run = tmp_path / "run"
    trials = run / "headroom" / "trials"
    found = rows_of(run)
    assert list(found) == [
        *("near alone", "far alone", "late fusion", "logistic regression", "perceptron of scikit-learn"),
        *("joint training", "cggm"),
    ]
    folders = {"near alone": "only-near", "far alone": "only-far", "joint training": "joint"}
    for label, folder in {**{k: trials / v for k, v in folders.items()}, "cggm": run}.items():
        summary = read_summary(folder)
        assert found[label]["valid"] == summary.valid["accuracy"]
        assert found[label]["test"] == summary.test["accuracy"]
    assert (found["joint training"]["gain"], found["joint training"]["error"]) == (None, None)

    logits = [predictions(trials / name) for name in ("only-near", "only-far")]
    mean = np.mean([softmax(values, axis=1) for values, _ in logits], axis=0)
    assert found["late fusion"]["test"] == pytest.approx((mean.argmax(1) == logits[0][1]).mean())

    content = arrays()
    values = np.hstack([content["near"], content["far"]])
    parts = {name: content["split"] == name for name in ("train", "valid", "test")}
    scaler = StandardScaler().fit(values[parts["train"]])
    strength = float(found["logistic regression"]["choice"].split(",")[0].removeprefix("C="))
    model = LogisticRegression(C=strength, max_iter=1000)
    model.fit(scaler.transform(values[parts["train"]]), content["label"][parts["train"]])
    for part in ("valid", "test"):
        score = model.score(scaler.transform(values[parts[part]]), content["label"][parts[part]])
        assert found["logistic regression"][part] == pytest.approx(score)

    printed = capsys.readouterr().out
    assert "logistic regression" in printed
    assert "Head-room" in (run / "report" / "report.html").read_text()

    # Again: the trials stay as they are, and with more epochs they go on.
    assert main(RECIPE, argv) == 0
    assert rows_of(run) == found
    starts = [len(json.loads(path.read_text())["starts"]) for path in sorted(trials.glob("*/trial.json"))]
    assert starts == [1, 1, 1]
    assert main(RECIPE, [*argv, "--num_epochs", "3"]) == 0
    lines = [path.read_text().splitlines() for path in sorted(trials.glob("*/metrics.jsonl"))]
    assert [len(each) for each in lines] == [3, 3, 3]


def test_a_run_does_without_it_unless_told(npz: Path, tmp_path: Path) -> None:
    argv = [flag for flag in flags(npz, tmp_path) if flag != "--headroom"]
    argv.remove("false")
    assert main(RECIPE, [*argv, "--report", "false"]) == 0
    assert not (tmp_path / "run" / HEADROOM).exists()


@pytest.mark.slow
def test_a_comparison_has_one_over_its_seeds(npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = flags(npz, tmp_path, "--compare", "cggm,ogm-ge", "--seeds", "1,2", "--headroom", "true", "--num_epochs", "1")
    assert main(RECIPE, argv) == 0
    run = tmp_path / "run"
    found = rows_of(run)
    assert [found[label]["runs"] for label in ("near alone", "joint training", "cggm", "ogm-ge")] == [2] * 4
    joint = [read_summary(run / "headroom" / "trials" / f"joint-seed-{seed}") for seed in (1, 2)]
    assert found["joint training"]["test"] == pytest.approx(np.mean([each.test["accuracy"] for each in joint]))
    ours = [read_summary(run / "trials" / f"cggm-seed-{seed}").test["accuracy"] for seed in (1, 2)]
    changes = [mine - other.test["accuracy"] for mine, other in zip(ours, joint, strict=True)]
    assert found["cggm"]["gain"] == pytest.approx(np.mean(changes))
    assert "Head-room:" in (run / "comparison.md").read_text()
    assert "measuring the head-room" in capsys.readouterr().out


def test_samples_without_a_modality_leave_its_row_out(tmp_path: Path) -> None:
    content = arrays()
    present = np.ones(len(content["label"]), bool)
    present[::7] = False
    np.savez(tmp_path / "f.npz", **content, far_present=present)
    argv = flags(tmp_path / "f.npz", tmp_path, "--headroom", "true", "--modalities", "near,far", "--modulation", "none")
    assert main(RECIPE, argv) == 0
    found = Headroom.load(tmp_path / "run" / HEADROOM)
    labels = [row["label"] for row in found.rows]
    assert labels == ["near alone", "logistic regression", "perceptron of scikit-learn", "joint training"]
    (note,) = found.notes
    assert note.startswith("only-far is missing: ")
    assert "has none of the modalities far" in note


@pytest.mark.slow
def test_a_regression_and_a_single_modality(tmp_path: Path) -> None:
    pickle = write_pickle(tmp_path / "small.pkl", small_set())
    argv = [*flags(pickle, tmp_path), "--headroom", "true", "--modulation", "none"]
    assert main(Config(), [*argv, "--modalities", "text"]) == 0
    assert list(rows_of(tmp_path / "run")) == ["ridge regression", "perceptron of scikit-learn", "joint training"]
    assert main(Config(), [*argv, "--name", "all"]) == 0
    found = rows_of(tmp_path / "all")
    assert len(found) == 7
    trials = tmp_path / "all" / "headroom" / "trials"
    values = [predictions(trials / f"only-{name}") for name in ("text", "audio", "vision")]
    error = np.abs(np.mean([each for each, _ in values], axis=0) - values[0][1]).mean()
    assert found["late fusion"]["test"] == pytest.approx(error)
    assert MOST_SAMPLES == 20_000


def test_time_that_is_up_is_said(npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The start, and before the first of two trials; the clock of the loop is another.
    moments = iter([0.0, 1.0])
    monkeypatch.setattr("cggm_ray.commands.headroom.time", SimpleNamespace(monotonic=lambda: next(moments, 10.0)))
    argv = flags(npz, tmp_path, "--headroom", "true", "--headroom_seconds", "5", "--modulation", "none")
    assert main(RECIPE, argv) == 0
    found = Headroom.load(tmp_path / "run" / HEADROOM)
    assert [row["label"] for row in found.rows] == ["near alone", "joint training"]
    assert any("only-far is missing: time was up (--headroom_seconds)" in note for note in found.notes)
    assert any("before all simple models" in note for note in found.notes)


def test_several_processes_of_torchrun_are_refused(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(RECIPE, flags(npz, tmp_path, "--headroom", "true")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: headroom: found several processes of torchrun; expected one process or Ray")
    assert not (tmp_path / "run").exists()


def test_a_signal_leaves_it_out(npz: Path, tmp_path: Path) -> None:
    program = [sys.executable, "-u", str(ROOT / "pipelines" / "features.py")]
    command = [*program, *flags(npz, tmp_path, "--preset", "released", "--headroom", "true", "--report", "true")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert any(line.startswith("measuring the head-room") for line in process.stdout)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "the head-room was left out; the same command goes on with it" in out
    assert "drawing the report" not in out
    assert not (tmp_path / "run" / HEADROOM).exists()


def test_a_signal_that_a_library_turns_into_an_error_leaves_it_out_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Ray's wait does this in the middle of a trial.
    def measured(*_: object) -> Headroom:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException as error:
            raise TrainingError(f"the study failed: {type(error).__name__}") from error
        raise AssertionError("no signal came")

    monkeypatch.setattr("cggm_ray.commands.headroom.measured", measured)
    request = StopRequest()
    assert write_headroom(RECIPE, tmp_path, [], request) is None
    assert request.signal == signal.SIGTERM
    out = capsys.readouterr().out
    assert "the head-room was left out; the same command goes on with it" in out
    assert "failed" not in out


def test_seconds_below_one(npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(RECIPE, flags(npz, tmp_path, "--headroom_seconds", "0")) == 2
    assert "headroom_seconds: found 0; expected a whole number of at least 1" in capsys.readouterr().err
    with pytest.raises(UsageError, match="cannot be read"):
        Headroom.load(tmp_path / "none.json")
