"""Runs to whose network a linear model is added: against scikit-learn, and that whatever follows training uses it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from feature_sets import as_npz
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from cggm_ray.commands.cli import main
from cggm_ray.commands.compare import networks_alone
from cggm_ray.commands.export import TOLERANCE, export
from cggm_ray.commands.predict import predict
from cggm_ray.commands.verify import verify
from cggm_ray.core.errors import TrainingError
from cggm_ray.engine import linear_blend
from cggm_ray.engine.linear_blend import LINEAR, RIDGE, read_shares
from cggm_ray.engine.presets import configured
from cggm_ray.engine.tracking import LOG
from cggm_ray.models.ridge import PRIOR, regression_weight
from cggm_ray.recipes.base import RECIPES
from cggm_ray.runs.contributions import BALANCE, Contributions
from cggm_ray.runs.finished import read_config
from cggm_ray.runs.result import CONFIG, read_summary

ROOT = Path(__file__).parents[2]
FEATURES = RECIPES.get("features").config
SHORT = (
    "--modulation",
    "cggm",
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


def rows(split: str, *, whole: bool = False) -> np.ndarray:
    """What the regression sees, by numpy: standardised on the samples that are there, and 0 where something is not there.

    Args:
        split: of the samples.
        whole: whether the features of a modality share a scale.
    """
    data = content()
    train, here = data["part"] == "train", data["part"] == split
    age, there, limit = data["age"].astype(float), data["age_present"], np.inf if whole else 5

    def spread(known: np.ndarray) -> np.ndarray:
        return np.sqrt(known.var(0).mean(keepdims=True)) if whole else known.std(0)

    known = age[train & there]
    age = ((age - known.mean(0)) / spread(known)).clip(-limit, limit) * there[:, None]
    known = data["words"][train].reshape(-1, 3)
    words = ((data["words"] - known.mean(0)) / spread(known)).clip(-limit, limit)
    parts = [words.mean(1), words.max(1), np.sqrt(words.var(1) + 1e-6) - 1e-3, age]
    return np.concatenate(parts, 1)[here]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("blended"), "run", "--report", "true")


def test_a_run_predicts_the_average_of_its_network_and_scikit_learns_regression(finished: Path) -> None:
    shares = read_shares(finished / "best")
    assert shares is not None
    share = shares[1]
    assert 0 < share < 1
    assert shares[0] == 1 - share
    alone = trained(finished.parent, "alone", "--linear_blend", "off")
    assert read_shares(alone / "best") is None
    data = content()
    target = data["mark"][data["part"] == "train"].astype(np.float32)
    found = load_file(finished / "best" / LINEAR)["weight"].double().numpy()[0]
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
    assert f"and those of ridge regression times {share:.3g}, chosen on validation" in (finished / LOG).read_text()
    assert "ridge" not in (alone / LOG).read_text()


def test_the_weight_of_an_average_is_that_of_least_squares() -> None:
    rng = np.random.default_rng(3)
    target = rng.normal(size=(200, 1))
    first, second = (target + rng.normal(size=(200, 1)) * noise for noise in (0.6, 0.9))

    def loss(share: float) -> float:
        error = np.mean((target - (1 - share) * first - share * second) ** 2)
        return error + PRIOR * target.var() * (share - 0.5) ** 2

    expected = minimize_scalar(loss, bounds=(0, 1), method="bounded", options={"xatol": 1e-10}).x
    assert 0.1 < expected < 0.4
    values = [torch.from_numpy(part) for part in (first, second, target)]
    assert regression_weight(*values) == pytest.approx(expected, abs=1e-6)
    assert regression_weight(values[1], values[0], values[2]) == pytest.approx(1 - expected, abs=1e-6)
    assert regression_weight(values[2], 3 - values[2], values[2]) < 0.01
    assert regression_weight(values[0], values[0] + 5, values[2]) == 0
    assert regression_weight(values[0], values[0], values[2]) == 0.5


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
    assert "those of a linear model on the same inputs times" in (finished / "README.md").read_text()


def test_a_run_that_goes_on_has_the_same_regression(finished: Path, tmp_path: Path) -> None:
    first = trained(tmp_path, "run", "--patience", "100")
    for name in ("summary.json", "best/linear.safetensors"):
        (first / name).unlink()
    trained(tmp_path, "run", "--patience", "100")
    assert (first / "best" / LINEAR).read_bytes() == (finished / "best" / LINEAR).read_bytes()


def test_a_damaged_regression_is_not_used(tmp_path: Path) -> None:
    run = trained(tmp_path, "run")
    (run / "best" / LINEAR).write_bytes(b"damaged")
    with pytest.raises(TrainingError, match=LINEAR):
        predict(run, tmp_path / "f.npz", None, tmp_path / "p.parquet")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["regression", "classification"])
def test_two_processes_fit_the_linear_model_of_one(task: str, tmp_path: Path) -> None:
    # Two processes drop other numbers than one does.
    still = ("--dropout", "0", "--input_dropout", "0")
    one = trained(tmp_path, "one", *still) if task == "regression" else classified(tmp_path, "one", *still)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    program = str(ROOT / "pipelines" / "features.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    given = flags(tmp_path, "two", *still)
    given[given.index("--task") + 1] = task
    done = subprocess.run([*command, program, *given], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, expected = (load_file(run / "best" / LINEAR) for run in (tmp_path / "two", one))
    # Those of a regression are tenths.
    torch.testing.assert_close(found["shares"], expected["shares"], rtol=0, atol=1e-6)
    for name in ("weight", "bias"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-7)


def test_a_run_in_double_precision_has_one(tmp_path: Path) -> None:
    run = trained(tmp_path, "run", "--precision", "fp64")
    assert load_file(run / "best" / LINEAR)["weight"].dtype is torch.float64
    verified = verify(run)
    assert verified.equal, verified.table()


def test_comparisons_leave_it_out_unless_it_is_given() -> None:
    quick = configured(FEATURES, ({"preset": "quick"}, "flag"))
    assert quick.train.linear_blend == "auto"
    assert networks_alone(quick).train.linear_blend == "off"
    assert networks_alone(quick.replace({"linear_blend": "on"})).train.linear_blend == "on"
    assert configured(FEATURES, ({"preset": "released"}, "flag")).train.linear_blend == "off"
    assert configured(FEATURES, ({"preset": "quick", "nlevels": 3}, "flag")).train.linear_blend == "off"


def classes() -> dict[str, np.ndarray]:
    """The same samples with three exclusive classes."""
    given = content()
    third = np.quantile(given["mark"], [1 / 3, 2 / 3])
    return {**given, "mark": np.array(["low", "mid", "top"])[np.searchsorted(third, given["mark"])]}


def class_numbers(*splits: str) -> np.ndarray:
    names, found = classes()["mark"], [classes()["part"] == split for split in splits]
    return np.concatenate([np.unique(names, return_inverse=True)[1][here] for here in found])


def logistic(strength: float, *splits: str) -> Pipeline:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, tol=1e-8, max_iter=5000))
    return model.fit(np.concatenate([rows(split) for split in splits]), class_numbers(*splits))


def classified(folder: Path, name: str, *more: str) -> Path:
    if not (folder / "f.npz").exists():
        as_npz(folder, classes())
    given = flags(folder, name, *more)
    given[given.index("--task") + 1] = "classification"
    assert main(FEATURES, ["--local", *given]) == 0
    return folder / name


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classified(tmp_path_factory.mktemp("classes"), "run")


def test_a_classifier_adds_the_logits_of_scikit_learns_regression(classifier: Path) -> None:
    shares = read_shares(classifier / "best")
    assert shares is not None
    assert min(shares) > 0
    alone = classified(classifier.parent, "alone", "--linear_blend", "off")
    assert read_shares(alone / "best") is None
    network = predictions(alone / "predictions.parquet")
    found = (predictions(classifier / "predictions.parquet") - shares[0] * network) / shares[1]
    # A number that is added to all logits of a sample says nothing.
    found -= found.mean(1, keepdims=True)
    near = 0
    for strength in (1e-4, 1e-3, 0.01, 0.1, 1, 10):
        expected = logistic(strength, "train").decision_function(rows("test"))
        near += np.abs(expected - expected.mean(1, keepdims=True) - found).max() < 2e-3
    assert near == 1
    assert "those of logistic regression times" in (classifier / LOG).read_text()


def test_what_follows_training_of_a_classifier_uses_both(classifier: Path, tmp_path: Path) -> None:
    verified = verify(classifier)
    assert verified.equal, verified.table()
    assert export(classifier, tmp_path / "m.pt2").difference <= TOLERANCE
    new = {name: values[classes()["part"] == "test"] for name, values in classes().items()}
    as_npz(tmp_path, {name: values for name, values in new.items() if name not in ("mark", "part")})
    again = predictions(predict(classifier, tmp_path / "f.npz", None, tmp_path / "p.parquet").path)
    np.testing.assert_allclose(again, predictions(classifier / "predictions.parquet"), rtol=1e-5, atol=1e-6)


def test_a_classifier_of_both_splits_takes_what_is_given(classifier: Path) -> None:
    both = classified(classifier.parent, "refit", "--refit", "1", "--linear_blend", "0:1:0.1")
    found = np.exp(predictions(both / "predictions.parquet"))
    expected = logistic(0.1, "train", "val").predict_proba(rows("test"))
    np.testing.assert_allclose(found / found.sum(1, keepdims=True), expected, atol=1e-3)


def test_a_run_of_an_older_version_keeps_its_average(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    values = load_file(run / "best" / LINEAR)
    save_file({"share": values.pop("shares")[1].clone(), **values}, run / "best" / RIDGE)
    (run / "best" / LINEAR).unlink()
    assert read_shares(run / "best") == pytest.approx(read_shares(finished / "best"))
    text = (run / CONFIG).read_text()
    assert "linear_blend: " in text
    (run / CONFIG).write_text(text.replace("linear_blend: ", "ridge_blend: "))
    assert read_config(run).train.linear_blend == read_config(finished).train.linear_blend


@pytest.mark.parametrize(
    ("task", "limit", "reason"),
    [
        ("regression", "MOST_NUMBERS", "a sample has 15 numbers, more than 14"),
        (
            "classification",
            "MOST_PRODUCTS",
            "80 samples of 15 numbers and 3 classes are too many for logistic regression",
        ),
    ],
)
def test_a_set_that_is_too_large_has_none(
    task: str,
    limit: str,
    reason: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linear_blend, limit, 14)
    as_npz(tmp_path, content() if task == "regression" else classes())
    given = flags(tmp_path, "run", "--linear_blend", "on")
    given[given.index("--task") + 1] = task
    assert main(FEATURES, ["--local", *given]) == 2
    assert f"linear_blend: found on, but {reason}; expected auto or off" in capsys.readouterr().err


def test_numbers_with_one_scale_are_not_standardised_by_themselves(classifier: Path) -> None:
    run = classified(classifier.parent, "whole", "--standardise", "modality")
    alone = classified(classifier.parent, "alone of whole", "--standardise", "modality", "--linear_blend", "off")
    shares = read_shares(run / "best")
    assert shares is not None
    network = predictions(alone / "predictions.parquet")
    found = (predictions(run / "predictions.parquet") - shares[0] * network) / shares[1]
    train = rows("train", whole=True)
    near = 0
    for strength in (1e-4, 1e-3, 0.01, 0.1, 1, 10):
        model = LogisticRegression(C=strength, tol=1e-8, max_iter=5000)
        model.fit(train - train.mean(0), class_numbers("train"))
        expected = model.decision_function(rows("test", whole=True) - train.mean(0))
        difference = expected - expected.mean(1, keepdims=True) - found + found.mean(1, keepdims=True)
        near += np.abs(difference).max() < 2e-3
    assert near == 1


def test_weight_and_alpha_can_be_given(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shares = read_shares(finished / "best")
    assert shares is not None
    wanted = predictions(finished / "predictions.parquet")
    same = []
    for alpha in ("0.1", "1", "3", "10", "30", "100", "300", "1000", "3000", "10000"):
        # A weight and alpha are those of an average.
        wish = f"{shares[1]}:{alpha}" if alpha == "10" else f"{shares[0]}:{shares[1]}:{alpha}"
        given = trained(tmp_path, f"alpha-{alpha}", "--linear_blend", wish)
        assert f"those of ridge regression times {shares[1]:.3g}, as given" in (given / LOG).read_text()
        same += [alpha] if np.array_equal(predictions(given / "predictions.parquet"), wanted) else []
    assert len(same) == 1
    for wrong in ("1.5:10", "0.5:0", "0.5:x", "0:10", "0.5:inf", "1:-1:1", "1:0:1", "1:1:1:1"):
        assert main(FEATURES, ["--local", *flags(tmp_path, "wrong", "--linear_blend", wrong)]) == 2
        assert (
            f"linear_blend: found '{wrong}'; expected auto, on, off, or NETWORK:LINEAR:STRENGTH"
            in capsys.readouterr().err
        )


def test_with_the_validation_split_it_is_fitted_to_both(tmp_path: Path) -> None:
    run = trained(tmp_path, "refit", "--refit", "1", "--linear_blend", "1:10")
    alone = trained(tmp_path, "alone", "--refit", "1", "--linear_blend", "auto")
    assert read_shares(alone / "best") is None
    target = {split: content()["mark"][content()["part"] == split].astype(np.float32) for split in ("train", "val")}
    model = make_pipeline(StandardScaler(), Ridge(alpha=10.0))
    model.fit(np.concatenate([rows("train"), rows("val")]), np.concatenate([target["train"], target["val"]]))
    found = predictions(run / "predictions.parquet")
    np.testing.assert_allclose(found, model.predict(rows("test")).reshape(found.shape), rtol=1e-4)
