"""Simple models: their inputs against numpy and scikit-learn, and their scores against scikit-learn called directly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes, load_wine
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, mean_absolute_error
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from cggm_ray.core.kinds import IMAGE, SEQUENCE, VECTOR
from cggm_ray.data.loading.split import TensorSplit
from cggm_ray.studies.baseline_inputs import (
    FLAT,
    LIMIT,
    POOLED,
    Rows,
    layouts,
    pixels,
    pooled,
    read_rows,
    standardised,
)
from cggm_ray.studies.baselines import STRENGTHS, best, fitted, linear_models, perceptrons, scored
from cggm_ray.tasks import Classification, Regression


def rows(values: np.ndarray, target: np.ndarray) -> dict[str, Rows]:
    """Two modalities with the columns, and the samples dealt to the splits."""
    half = values.shape[1] // 2
    order = np.random.default_rng(0).permutation(len(target)) % 5
    parts = {"train": order < 3, "valid": order == 3, "test": order == 4}
    return {
        name: Rows(
            inputs={"a": values[kept, :half].astype("f4"), "b": values[kept, half:].astype("f4")},
            target=target[kept],
            available=int(kept.sum()),
        )
        for name, kept in parts.items()
    }


def plain(splits: dict[str, Rows]) -> dict[str, np.ndarray]:
    """What a person would write: standardised on train, and cut."""
    joined = {name: np.hstack([part.inputs["a"], part.inputs["b"]]).astype(float) for name, part in splits.items()}
    scaler = StandardScaler().fit(joined["train"])
    return {name: np.clip(scaler.transform(values), -5, 5) for name, values in joined.items()}


def test_logistic_regression_is_that_of_scikit_learn() -> None:
    data = load_wine()
    splits = rows(data.data, data.target)
    values = plain(splits)
    direct = {}
    for c in STRENGTHS:
        model = LogisticRegression(C=c, max_iter=1000).fit(values["train"], splits["train"].target)
        direct[f"C={c:g}"] = [accuracy_score(splits[s].target, model.predict(values[s])) for s in ("valid", "test")]
    task = Classification(3)
    found = fitted(task, splits, lambda n, d: linear_models(task, n, d))
    for scores in found:
        assert [scores.valid["accuracy"], scores.test["accuracy"]] == pytest.approx(direct[scores.choice])
    chosen = best(found, "accuracy", "max")
    assert chosen.valid["accuracy"] == pytest.approx(max(valid for valid, _ in direct.values()))


def test_ridge_regression_is_that_of_scikit_learn() -> None:
    data = load_diabetes()
    splits = rows(data.data, data.target.astype("f4"))
    values = plain(splits)
    task = Regression()
    found = {f.choice: f for f in fitted(task, splits, lambda n, d: linear_models(task, n, d))}
    model = Ridge(alpha=10.0).fit(values["train"], splits["train"].target)
    for name in ("valid", "test"):
        expected = mean_absolute_error(splits[name].target, model.predict(values[name]))
        assert getattr(found["alpha=10"], name)["mae"] == pytest.approx(expected, rel=1e-4)


def test_more_columns_than_samples_are_turned_without_changing_the_model() -> None:
    rng = np.random.default_rng(1)
    target = np.arange(60) % 3
    values = rng.normal(size=(60, 400)) + target[:, None] * rng.normal(size=400) * 0.2
    splits = rows(values, target)
    task = Classification(3)
    found = {f.choice: f for f in fitted(task, splits, lambda n, d: linear_models(task, n, d))}
    direct = LogisticRegression(C=0.001, max_iter=1000, tol=1e-8).fit(plain(splits)["train"], splits["train"].target)
    expected = direct.predict_log_proba(plain(splits)["test"])
    assert found["C=0.001"].logits["test"].numpy() == pytest.approx(expected, abs=1e-2)


def test_the_perceptron_is_that_of_scikit_learn() -> None:
    data = load_wine()
    splits = rows(data.data, data.target)
    values, task = plain(splits), Classification(3)
    found = fitted(task, splits, lambda n, d: {"alpha=1": perceptrons(task, 3)["alpha=1"]})
    model = MLPClassifier((256,), alpha=1.0, max_iter=200, random_state=3).fit(values["train"], splits["train"].target)
    assert found[0].test["accuracy"] == accuracy_score(splits["test"].target, model.predict(values["test"]))


def test_a_regression_by_a_perceptron_in_units_of_the_target() -> None:
    data = load_diabetes()
    splits = rows(data.data, data.target.astype("f4"))
    task = Regression()
    found = best(fitted(task, splits, lambda n, d: perceptrons(task, 0)), "mae", "min")
    constant = mean_absolute_error(
        splits["test"].target, np.full(len(splits["test"].target), splits["train"].target.mean())
    )
    assert found.test["mae"] < 0.85 * constant


def test_a_class_without_a_training_sample() -> None:
    data = load_wine()
    task = Classification(5)
    found = fitted(task, rows(data.data, data.target + 1), lambda n, d: linear_models(task, n, d))
    assert all(f.logits["test"].shape[1] == 5 for f in found)
    assert best(found, "accuracy", "max").test["accuracy"] > 0.8
    assert all(set(f.logits["test"].argmax(1).tolist()) <= {1, 2, 3} for f in found)


def test_pooling_over_valid_steps_against_numpy() -> None:
    rng = np.random.default_rng(2)
    values, steps = rng.normal(size=(6, 7, 3)).astype("f4") - 4, np.array([7, 1, 3, 0, 2, 7])
    mask = torch.from_numpy(np.arange(7) < steps[:, None])
    found = pooled(torch.from_numpy(values), mask).numpy()
    for row, count in enumerate(steps):
        there = values[row, :count]
        expected = np.concatenate([there.mean(0), there.max(0)]) if count else np.zeros(6)
        assert found[row] == pytest.approx(expected, abs=1e-6)
    assert pooled(torch.from_numpy(values), None).numpy() == pytest.approx(
        np.concatenate([values.mean(1), values.max(1)], axis=1), abs=1e-6
    )


def split_of(values: dict[str, torch.Tensor], masks: dict[str, torch.Tensor]) -> TensorSplit:
    return TensorSplit(values, torch.arange(len(next(iter(values.values())))), masks=masks)


def test_padding_is_not_read_and_missing_samples_are_zeros() -> None:
    torch.manual_seed(0)
    audio, mask = torch.randn(300, 4, 2), torch.arange(4) < torch.randint(0, 5, (300, 1))
    dirty = torch.where(mask[:, :, None], audio, 1e6)
    kinds = {"audio": SEQUENCE, "age": VECTOR}
    inputs = {"audio": dirty, "age": torch.randn(300, 3)}
    for layout, width in ((FLAT, 8), (POOLED, 4)):
        found = read_rows(split_of(inputs, {"audio": mask}), kinds, layout)
        assert found.inputs["audio"].shape == (300, width)
        assert np.array_equal(np.isnan(found.inputs["audio"]).all(1), ~mask.any(1).numpy())
        there = mask.any(1).numpy()
        assert np.abs(found.inputs["audio"][there]).max() < 10
        (joined,) = standardised([found])
        assert not joined[~there, :width].any()
        # Mean and deviation are those of the samples that have the modality.
        raw = found.inputs["audio"][there]
        expected = np.clip((raw - raw.mean(0)) / raw.std(0), -LIMIT, LIMIT)
        assert joined[there, :width] == pytest.approx(expected, abs=1e-4)


def test_layouts_images_and_the_limit_of_samples() -> None:
    kinds = {"long": SEQUENCE, "picture": IMAGE}
    assert layouts({"a": (3,)}, {"a": VECTOR}) == [FLAT]
    assert layouts({"long": (4, 5), "picture": (8, 8)}, kinds) == [FLAT, POOLED]
    assert layouts({"long": (400, 50), "picture": (8, 8)}, kinds) == [POOLED]
    inputs = {"long": torch.randn(9, 400, 50), "picture": torch.rand(9, 64, 40, 3)}
    found = read_rows(split_of(inputs, {}), kinds, FLAT, samples=5)
    assert (found.available, len(found.target)) == (9, 5)
    assert found.inputs["long"].shape == (5, 100)
    assert found.inputs["picture"].shape == (5, 3 * 32 * 20)
    halves = inputs["picture"].numpy().reshape(9, 32, 2, 20, 2, 3).mean((2, 4))
    assert pixels(inputs["picture"]).numpy() == pytest.approx(np.moveaxis(halves, -1, 1), abs=1e-6)


def test_a_constant_and_an_unknown_column() -> None:
    train = Rows(inputs={"a": np.array([[1, np.nan, 2], [1, np.nan, 4]], "f4")}, target=np.zeros(2), available=2)
    test = Rows(inputs={"a": np.array([[3, 7, 3]], "f4")}, target=np.zeros(1), available=1)
    found = standardised([train, test])
    assert found[0].tolist() == [[0, -1], [0, 1]]
    assert found[1].tolist() == [[2, 0]]


def test_the_choice_is_made_on_validation_and_never_on_a_number_that_is_none() -> None:
    task = Regression()
    truth = {"valid": torch.zeros(4), "test": torch.zeros(4)}
    good = scored(task, {"valid": torch.full((4, 1), 0.1), "test": torch.full((4, 1), 9.0)}, truth)
    bad = scored(task, {"valid": torch.full((4, 1), 0.2), "test": torch.zeros(4, 1)}, truth)
    broken = scored(task, {"valid": torch.full((4, 1), float("nan")), "test": torch.zeros(4, 1)}, truth)
    assert best([broken, bad, good], "mae", "min") is good


@pytest.mark.parametrize("layout", [FLAT, POOLED])
def test_rows_keep_the_order_of_the_split(layout: str) -> None:
    values = torch.arange(600.0).reshape(600, 1, 1).expand(-1, 2, 1)
    found = read_rows(split_of({"x": values}, {}), {"x": SEQUENCE}, layout)
    assert found.inputs["x"][:, 0].tolist() == found.target.tolist() == list(range(600))
