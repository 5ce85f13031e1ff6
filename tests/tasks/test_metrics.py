"""Metrics against sklearn and numpy, and their additivity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden import FOLDER
from sklearn.metrics import accuracy_score, f1_score, recall_score

from cggm_ray.core.batch import Batch
from cggm_ray.tasks.metrics import ClassificationMetrics, DiceMetrics, Metrics, SentimentMetrics
from cggm_ray.tasks.regression import sign_accuracy


@pytest.fixture
def sentiment() -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    truth = np.clip(np.round(rng.normal(size=200) * 5) / 3, -3, 3)
    return torch.tensor(truth + rng.normal(size=200))[:, None], torch.tensor(truth)[:, None]


def computed(metrics: Metrics, *batches: tuple[torch.Tensor, ...]) -> dict[str, float]:
    for logits, target, *weight in batches:
        metrics.update(logits, Batch.of_loop(target, weight=weight[0] if weight else None))
    return metrics.compute(metrics.sums)


def test_sentiment_metrics_are_those_of_sklearn(sentiment: tuple[torch.Tensor, torch.Tensor]) -> None:
    got = computed(SentimentMetrics(), sentiment)
    p, y = (values.numpy()[:, 0] for values in sentiment)
    some = y != 0
    want = {
        "mae": np.abs(p - y).mean(),
        "corr": np.corrcoef(p, y)[0, 1],
        "acc7": (np.round(np.clip(p, -3, 3)) == np.round(np.clip(y, -3, 3))).mean(),
        "acc5": (np.round(np.clip(p, -2, 2)) == np.round(np.clip(y, -2, 2))).mean(),
        "acc2_nonneg": accuracy_score(y >= 0, p >= 0),
        "f1_nonneg": f1_score(y >= 0, p >= 0, average="weighted"),
        "acc2_nozero": accuracy_score(y[some] > 0, p[some] > 0),
        "f1_nozero": f1_score(y[some] > 0, p[some] > 0, average="weighted"),
    }
    assert (y == 0).any()
    assert got == pytest.approx(want, rel=1e-9)


def test_classification_metrics_are_those_of_sklearn() -> None:
    torch.manual_seed(0)
    logits, truth = torch.randn(150, 5), torch.randint(4, (150,))
    logits[torch.arange(100), truth[:100]] += 1
    got = computed(ClassificationMetrics(5), (logits, truth))
    p, y = logits.argmax(1).numpy(), truth.numpy()
    recalls = recall_score(y, p, average=None, labels=range(5), zero_division=0)[:4]
    assert got["accuracy"] == pytest.approx(accuracy_score(y, p))
    assert got["f1"] == pytest.approx(f1_score(y, p, average="weighted"))
    assert got["unweighted_accuracy"] == pytest.approx(recalls.mean())


@pytest.mark.parametrize("kind", ["sentiment", "classes", "dice"])
def test_sums_add_up_and_samples_without_weight_do_not_count(kind: str) -> None:
    torch.manual_seed(0)
    make, logits, target = {
        "sentiment": (SentimentMetrics, torch.randn(12, 1), torch.randint(-3, 4, (12, 1)).float()),
        "classes": (lambda: ClassificationMetrics(4), torch.randn(12, 4), torch.randint(4, (12,))),
        "dice": (DiceMetrics, torch.randn(12, 4, 6, 6), torch.randint(4, (12, 6, 6))),
    }[kind]
    whole = computed(make(), (logits, target))
    weight = torch.tensor([1.0] * 5 + [0.0])
    again = torch.cat([logits[:5], logits[:1]]), torch.cat([target[:5], target[:1]]), weight
    parts = computed(make(), again, (logits[5:], target[5:]))
    assert parts == pytest.approx(whole, rel=1e-12)


@pytest.mark.skipif(not (FOLDER / "aux.npz").exists(), reason=f"no aux.npz in {FOLDER}")
def test_recorded_sentiment_metrics() -> None:
    aux = np.load(FOLDER / "aux.npz")
    p, y = (torch.tensor(aux[f"senti.{name}"]).reshape(-1, 1) for name in ("preds", "truth"))
    got = computed(SentimentMetrics(), (p, y))
    names = {"mae": "mae", "corr": "corr", "acc7": "acc7", "acc5": "acc5", "acc2_nozero": "acc2_excl_zero"}
    want = {mine: float(aux[f"senti.{recorded}"]) for mine, recorded in names.items()}
    assert {name: got[name] for name in want} == pytest.approx(want, rel=1e-5)
    hits, count = sign_accuracy(p, Batch.of_loop(y))
    assert float(hits / count) == pytest.approx(float(aux["senti.train_acc"]))
