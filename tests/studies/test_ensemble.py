"""Greedy forward selection of an ensemble, against cases by hand and numpy, and the folder that it leaves."""

from __future__ import annotations

import dataclasses
import json
import runpy
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import accuracy_score, mean_absolute_error

from cggm_ray import Classification, Regression, load
from cggm_ray.__main__ import main as command
from cggm_ray.commands.cli import main
from cggm_ray.commands.ensembled import open_ensemble_folder
from cggm_ray.data.shards.shards import column_values
from cggm_ray.engine.configuration import Config
from cggm_ray.runs.ensembles import ENSEMBLE, Ensemble, read_ensemble
from cggm_ray.runs.finished import open_finished, read_config
from cggm_ray.runs.result import read_summary
from cggm_ray.studies.ensemble import assemble, scores, select


def test_errors_that_cancel_are_chosen_by_hand() -> None:
    target = torch.zeros(4)
    # The single best is c; with b the error falls to .05.
    values = {"a": 1.0, "b": -1.0, "c": 0.9}
    candidates = {name: torch.full((4, 1), value) for name, value in values.items()}
    steps = select(Regression(), "mae", candidates, target)
    assert [step.run for step in steps[:2]] == ["c", "b"]
    # Every round by a loop of its own.
    counts: Counter[str] = Counter()
    for step in steps:
        errors = {
            name: abs(sum(values[n] * c for n, c in (counts + Counter([name])).items())) / (counts.total() + 1)
            for name in values
        }
        assert errors[step.run] == pytest.approx(min(errors.values()), abs=1e-6)
        assert step.value == pytest.approx(errors[step.run], abs=1e-6)
        counts[step.run] += 1
    assert steps[-1].value == min(step.value for step in steps) < 0.9


@pytest.mark.parametrize("seed", range(5))
def test_never_worse_on_validation_than_the_best_single_one(seed: int) -> None:
    torch.manual_seed(seed)
    target = torch.randint(4, (30,))
    hint = 2.0 * torch.nn.functional.one_hot(target, 4)
    candidates = {f"m{k}": hint + 2 * torch.randn(30, 4) for k in range(6)}
    task = Classification(4)
    steps = select(task, "accuracy", candidates, target)
    singles = [scores(task, each, target)["accuracy"] for each in candidates.values()]
    assert steps[0].value == max(singles)
    assert steps[-1].value >= max(singles)


RECIPE: Config = runpy.run_path(str(Path(__file__).parents[2] / "pipelines" / "features.py"))["RECIPE"]
SHORT = ["--max_steps", "20", "--valid_interval", "10", "--batch_size", "16", "--report", "false", "--local"]
KINDS = {"classes": ["--target", "label"], "values": ["--target", "value", "--task", "regression"]}
DIFFERENT = {"a": ["--width", "32"], "b": ["--encoders", "left:linear,right:linear", "--standardise", "off"], "c": []}
"""Networks that differ in size, encoders and inputs."""


@pytest.fixture(scope="module", params=KINDS)
def ensemble(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an ensemble of three local runs on 90 samples with two vectors."""
    rng = np.random.default_rng(0)
    label = np.arange(90) % 3
    content = {name: rng.normal(size=(3, 6))[label] + 2.5 * rng.normal(size=(90, 6)) for name in ("left", "right")}
    part = np.array((["train"] * 3 + ["valid", "test"]) * 18)
    base = tmp_path_factory.mktemp(request.param)
    np.savez(
        base / "raw.npz",
        **content,
        label=label,
        value=40.0 + 9 * label + rng.normal(size=90),
        part=rng.permutation(part),
    )
    folder = base / "runs" / "both"
    runs = {f"members/{name}": folder / "members" / name for name in DIFFERENT}
    for seed, (name, flags) in enumerate(DIFFERENT.items()):
        data = ["--data_path", str(base / "raw.npz"), "--modalities", "left,right", "--split", "part"]
        place = ["--storage_path", str(folder / "members"), "--shard_path", str(base / "shards"), "--name", name]
        argv = [*data, *KINDS[request.param], *place, *SHORT, "--seed", str(seed), *flags]
        assert main(RECIPE, argv) == 0
    config = read_config(folder / "members" / "c")
    config = dataclasses.replace(
        config, run=dataclasses.replace(config.run, storage_path=str(base / "runs"), name="both")
    )
    shards = open_finished(folder / "members" / "c").shards
    open_ensemble_folder(config, folder, shards)
    assemble(folder, config, runs, shards)
    return folder


def predictions(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    table = pq.read_table(folder / "predictions.parquet")
    return column_values(table.column("target")), column_values(table.column("prediction"))


def by_hand(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Targets of the test split, and what the members predict, averaged by their counts."""
    ensemble = read_ensemble(folder)
    assert ensemble is not None
    total, weight = 0.0, 0
    for member, count in ensemble.folders(folder).items():
        truth, found = predictions(member)
        if found.ndim == 2:
            found = np.exp(found) / np.exp(found).sum(1, keepdims=True)
        total, weight = total + count * found, weight + count
    return truth, total / weight


def test_what_is_tested_is_the_mean_of_the_members(ensemble: Path) -> None:
    truth, mean = by_hand(ensemble)
    target, found = predictions(ensemble)
    assert (target == truth).all()
    result = read_summary(ensemble)
    if found.ndim == 2:
        assert np.exp(found) == pytest.approx(mean, abs=1e-5)
        assert result.test["accuracy"] == pytest.approx(accuracy_score(truth, mean.argmax(1)))
    else:
        assert found == pytest.approx(mean, rel=1e-5)
        assert result.test["mae"] == pytest.approx(mean_absolute_error(truth, mean))
        assert result.test["loss"] == pytest.approx(mean_absolute_error(truth, mean))
    found = read_ensemble(ensemble)
    assert found is not None
    singles = [read_summary(ensemble / name).valid[found.metric] for name in found.candidates]
    assert list(found.candidates.values()) == pytest.approx(singles)
    best = max(singles) if found.mode == "max" else min(singles)
    assert found.steps[0]["value"] == pytest.approx(best)
    assert result.valid[found.metric] == pytest.approx(found.steps[-1]["value"], rel=1e-5)
    assert Counter(step["run"] for step in found.steps) == found.members


def test_every_command_takes_the_folder(ensemble: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["verify", str(ensemble)]) == 0
    assert "equal to the last bit" in capsys.readouterr().out
    assert command(["predict", str(ensemble), "--out", str(tmp_path / "own.parquet")]) == 0
    own = column_values(pq.read_table(tmp_path / "own.parquet").column("prediction"))
    assert own == pytest.approx(predictions(ensemble)[1], rel=1e-6)
    run = load(ensemble)
    found = run.predict(out=tmp_path / "call.parquet")["prediction"]
    assert np.stack(found.to_list()) == pytest.approx(own)
    assert "valid" in run._repr_html_()
    assert command(["export", str(ensemble), "--out", str(tmp_path / "one.pt2")]) == 0
    assert command(["report", str(ensemble), "--out", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page" / "report.html").read_text()
    assert "the mean of" in page
    assert "Shapley" in page


def test_another_machine_predicts_new_data(ensemble: Path, tmp_path: Path) -> None:
    url = tmp_path / "storage"
    assert command(["publish", str(ensemble), str(url)]) == 0
    assert not list(url.rglob("checkpoints"))
    assert command(["fetch", f"{url}/both", str(tmp_path / "both")]) == 0
    raw = dict(np.load(ensemble.parents[1] / "raw.npz"))
    test = raw["part"] == "test"
    np.savez(tmp_path / "new.npz", left=raw["left"][test], right=raw["right"][test])
    flags = ["--data_path", str(tmp_path / "new.npz"), "--out", str(tmp_path / "p.parquet")]
    assert command(["predict", str(tmp_path / "both"), *flags]) == 0
    found = column_values(pq.read_table(tmp_path / "p.parquet").column("prediction"))
    assert found == pytest.approx(predictions(ensemble)[1], rel=1e-5)


def test_a_damaged_ensemble_is_one_line(ensemble: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(ensemble, tmp_path / "e")
    found = read_ensemble(tmp_path / "e")
    assert found is not None
    member = next(iter(found.members))
    shutil.rmtree(tmp_path / "e" / member)
    outside = dataclasses.replace(found, members={"../../x": 1})
    for content, words in (
        (None, f"the member {tmp_path / 'e' / member} is not there"),
        (outside, "expected the folder of a run below"),
        ({"members": {}}, "cannot be read"),
    ):
        if isinstance(content, Ensemble):
            content.save(tmp_path / "e")
        elif content is not None:
            (tmp_path / "e" / ENSEMBLE).write_text(json.dumps(content))
        assert command(["verify", str(tmp_path / "e")]) == 2
        shown = capsys.readouterr().err
        assert words in shown
        assert shown.count("\n") == 1
