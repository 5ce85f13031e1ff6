"""Runs whose network is averaged with ridge regression: against scikit-learn, and that whatever follows training uses it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from feature_sets import as_npz
from safetensors.torch import load_file
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cggm_ray.commands.cli import main
from cggm_ray.commands.compare import networks_alone
from cggm_ray.commands.export import TOLERANCE, export
from cggm_ray.commands.predict import predict
from cggm_ray.commands.verify import verify
from cggm_ray.core.errors import TrainingError
from cggm_ray.engine.presets import configured
from cggm_ray.engine.ridge import RIDGE, read_share
from cggm_ray.engine.tracking import LOG
from cggm_ray.recipes.base import RECIPES
from cggm_ray.runs.contributions import BALANCE, Contributions
from cggm_ray.runs.result import read_summary

ROOT = Path(__file__).parents[2]
FEATURES = RECIPES.get("features").config
SHORT = (
    "--max_steps",
    "40",
    "--valid_interval",
    "20",
    "--batch_size",
    "32",
    "--standardise",
    "on",
    "--report",
    "false",
)


def content() -> dict[str, np.ndarray]:
    """A noisy regression, linear but for one number, on a sequence and a vector; every fifth sample lacks its vector."""
    rng = np.random.default_rng(1)
    words, age = rng.normal(size=(120, 4, 3)), rng.normal(size=(120, 6)) * [1, 10, 100, 1, 1, 1]
    there = np.arange(120) % 5 != 0
    linear = words.mean(1) @ [3, -2, 1] + there * (age @ [1, 0.1, 0.02, 0, 0, 0])
    mark = linear + there * np.abs(age[:, 3]) + rng.normal(size=120) + 40
    part = np.array((["train"] * 4 + ["val", "test"]) * 20)
    return {
        "words": words.astype(np.float32),
        "age": age.astype(np.float32),
        "age_present": there,
        "mark": mark,
        "part": part,
    }


def flags(folder: Path, name: str, *more: str) -> list[str]:
    if not (folder / "f.npz").exists():
        as_npz(folder, content())
    given = ["--data_path", str(folder / "f.npz"), "--storage_path", str(folder), "--name", name, "--split", "part"]
    return [*given, "--target", "mark", "--task", "regression", "--modalities", "words,age", *SHORT, *more]


def trained(folder: Path, name: str, *more: str) -> Path:
    assert main(FEATURES, ["--local", *flags(folder, name, *more)]) == 0
    return folder / name


def predictions(path: Path) -> np.ndarray:
    return np.array(pq.read_table(path).column("prediction").to_pylist())


def rows(split: str) -> np.ndarray:
    """What the regression sees, by numpy: standardised on the samples that are there, and 0 where something is not there."""
    data = content()
    train, here = data["part"] == "train", data["part"] == split
    age, there = data["age"].astype(float), data["age_present"]
    age = ((age - age[train & there].mean(0)) / age[train & there].std(0)).clip(-5, 5) * there[:, None]
    known = data["words"][train].reshape(-1, 3)
    words = ((data["words"] - known.mean(0)) / known.std(0)).clip(-5, 5)
    parts = [words.mean(1), words.max(1), np.sqrt(words.var(1) + 1e-6) - 1e-3, age]
    return np.concatenate(parts, 1)[here]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("blended"), "run", "--report", "true")


def test_a_run_predicts_the_average_of_its_network_and_scikit_learns_regression(finished: Path) -> None:
    share = read_share(finished / "best")
    assert share is not None
    assert 0 < share < 1
    alone = trained(finished.parent, "alone", "--ridge_blend", "off")
    assert read_share(alone / "best") is None
    data = content()
    target = data["mark"][data["part"] == "train"].astype(np.float32)
    found = load_file(finished / "best" / RIDGE)["weight"].double().numpy()[0]
    distances = {}
    for alpha in (0.1, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000):
        model = make_pipeline(StandardScaler(), Ridge(alpha=alpha)).fit(rows("train"), target)
        weights = model[-1].coef_ / model[0].scale_
        distances[np.abs(weights - found).max()] = model
    least = min(distances)
    assert least < 1e-5
    expected = (1 - share) * predictions(alone / "predictions.parquet")
    expected += share * distances[least].predict(rows("test")).reshape(expected.shape)
    np.testing.assert_allclose(predictions(finished / "predictions.parquet"), expected, rtol=1e-5)
    assert read_summary(finished).valid["mae"] <= read_summary(alone).valid["mae"]
    assert "averaged with those of ridge regression" in (finished / LOG).read_text()
    assert "ridge" not in (alone / LOG).read_text()


def test_what_follows_training_uses_the_average(finished: Path, tmp_path: Path) -> None:
    verified = verify(finished)
    assert verified.equal, verified.table()
    found = Contributions.load(finished / BALANCE)
    assert found.scores[frozenset(("words", "age"))] == pytest.approx(read_summary(finished).valid["mae"])
    assert export(finished, tmp_path / "m.pt2").difference <= TOLERANCE
    new = {name: values[content()["part"] == "test"] for name, values in content().items()}
    as_npz(tmp_path, {name: values for name, values in new.items() if name not in ("mark", "part")})
    again = predictions(predict(finished, tmp_path / "f.npz", None, tmp_path / "p.parquet").path)
    np.testing.assert_allclose(again, predictions(finished / "predictions.parquet"), rtol=1e-6)
    assert "ridge regression" in (finished / "README.md").read_text()


def test_a_run_that_goes_on_has_the_same_regression(finished: Path, tmp_path: Path) -> None:
    first = trained(tmp_path, "run", "--patience", "100")
    for name in ("summary.json", "best/ridge.safetensors"):
        (first / name).unlink()
    trained(tmp_path, "run", "--patience", "100")
    assert (first / "best" / RIDGE).read_bytes() == (finished / "best" / RIDGE).read_bytes()


def test_a_damaged_regression_is_not_used(tmp_path: Path) -> None:
    run = trained(tmp_path, "run")
    (run / "best" / RIDGE).write_bytes(b"damaged")
    with pytest.raises(TrainingError, match=RIDGE):
        predict(run, tmp_path / "f.npz", None, tmp_path / "p.parquet")


@pytest.mark.slow
def test_two_processes_fit_the_regression_of_one(tmp_path: Path) -> None:
    # Two processes drop other numbers than one does.
    still = ("--dropout", "0", "--input_dropout", "0")
    one = trained(tmp_path, "one", *still)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    program = str(ROOT / "pipelines" / "features.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, program, *flags(tmp_path, "two", *still)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found, expected = (load_file(run / "best" / RIDGE) for run in (tmp_path / "two", one))
    assert found["share"] == expected["share"]
    for name in ("weight", "bias"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-7)


def test_a_run_in_double_precision_has_one(tmp_path: Path) -> None:
    run = trained(tmp_path, "run", "--precision", "fp64")
    assert load_file(run / "best" / RIDGE)["weight"].dtype is torch.float64
    verified = verify(run)
    assert verified.equal, verified.table()


def test_comparisons_leave_it_out_unless_it_is_given() -> None:
    quick = configured(FEATURES, ({"preset": "quick"}, "flag"))
    assert quick.train.ridge_blend == "auto"
    assert networks_alone(quick).train.ridge_blend == "off"
    assert networks_alone(quick.replace({"ridge_blend": "on"})).train.ridge_blend == "on"
    assert configured(FEATURES, ({"preset": "released"}, "flag")).train.ridge_blend == "off"
    assert configured(FEATURES, ({"preset": "quick", "nlevels": 3}, "flag")).train.ridge_blend == "off"


def test_a_classifier_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    as_npz(tmp_path, {**content(), "mark": np.arange(120) % 3})
    given = [*flags(tmp_path, "run", "--ridge_blend", "on"), "--task", "classification"]
    assert main(FEATURES, ["--local", *given]) == 2
    assert "ridge_blend: found on, but this task is no regression; expected auto or off" in capsys.readouterr().err


def test_weight_and_alpha_can_be_given(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    share = read_share(finished / "best")
    wanted = predictions(finished / "predictions.parquet")
    same = []
    for alpha in ("0.1", "1", "3", "10", "30", "100", "300", "1000", "3000", "10000"):
        given = trained(tmp_path, f"alpha-{alpha}", "--ridge_blend", f"{share:g}:{alpha}")
        assert f"has the weight {share:g}, as given" in (given / LOG).read_text()
        same += [alpha] if np.array_equal(predictions(given / "predictions.parquet"), wanted) else []
    assert len(same) == 1
    for wrong in ("1.5:10", "0.5:0", "0.5:x", "0:10", "0.5:inf"):
        assert main(FEATURES, ["--local", *flags(tmp_path, "wrong", "--ridge_blend", wrong)]) == 2
        assert f"ridge_blend: found '{wrong}'; expected auto, on, off, or WEIGHT:ALPHA" in capsys.readouterr().err


def test_with_the_validation_split_it_is_fitted_to_both(tmp_path: Path) -> None:
    run = trained(tmp_path, "refit", "--refit", "1", "--ridge_blend", "1:10")
    alone = trained(tmp_path, "alone", "--refit", "1", "--ridge_blend", "auto")
    assert read_share(alone / "best") is None
    target = {split: content()["mark"][content()["part"] == split].astype(np.float32) for split in ("train", "val")}
    model = make_pipeline(StandardScaler(), Ridge(alpha=10.0))
    model.fit(np.concatenate([rows("train"), rows("val")]), np.concatenate([target["train"], target["val"]]))
    found = predictions(run / "predictions.parquet")
    np.testing.assert_allclose(found, model.predict(rows("test")).reshape(found.shape), rtol=1e-4)
