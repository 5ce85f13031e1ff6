"""Metrics, cosines and positions that were recorded from the released code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden import arrays_of
from torch import Tensor

from cggm_ray import Classification, Regression
from cggm_ray.core.batch import Batch
from cggm_ray.models.transformer import SinusoidalPositions, position_table
from cggm_ray.strategies.direction import ReleasedDirection
from cggm_ray.tasks.metrics import ClassificationMetrics, SentimentMetrics, confusion_counts, weighted_f1


@pytest.fixture(scope="module")
def aux() -> dict[str, Tensor]:
    arrays = arrays_of("aux.npz")
    wanted = ("senti.", "iemo.", "food.", "cos.", "pe.")
    return {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays if name.startswith(wanted)}


@pytest.mark.parametrize("name", ["iemo", "food"])
def test_classification_metrics(aux: dict[str, Tensor], name: str) -> None:
    logits, truth = aux[f"{name}.logits"], aux[f"{name}.truth"]
    metrics = ClassificationMetrics(logits.shape[1])
    for part in (slice(0, 30), slice(30, None)):
        metrics.update(logits[part], Batch.of_loop(truth[part]))
    values = metrics.compute(metrics.sums)
    assert values["accuracy"] == pytest.approx(float(aux[f"{name}.acc"]), abs=1e-12)
    assert values["f1"] == pytest.approx(float(aux[f"{name}.f1_weighted"]), abs=1e-12)
    # The guides' utility is the same accuracy.
    hits, count = Classification(logits.shape[1]).utility("accuracy")(logits, Batch.of_loop(truth))
    assert float(hits / count) == pytest.approx(values["accuracy"], abs=1e-12)


def test_sentiment_metrics(aux: dict[str, Tensor]) -> None:
    predicted, truth = aux["senti.preds"], aux["senti.truth"]
    metrics = SentimentMetrics()
    metrics.update(predicted, Batch.of_loop(truth))
    values = metrics.compute(metrics.sums)
    for name, recorded in {"mae": "mae", "corr": "corr", "acc7": "acc7", "acc5": "acc5"}.items():
        assert values[name] == pytest.approx(float(aux[f"senti.{recorded}"]), rel=1e-6), name
    assert values["acc2_nozero"] == pytest.approx(float(aux["senti.acc2_excl_zero"]), abs=1e-12)
    signs = confusion_counts(truth[:, 0] > 0, predicted[:, 0] > 0, 2).reshape(2, 2)
    # The released code swaps prediction and truth here, so the classes are weighted by what was predicted.
    assert weighted_f1(signs.T) == pytest.approx(float(aux["senti.f1_weighted_incl_zero"]), abs=1e-12)
    right, count = Regression().utility("sign")(predicted, Batch.of_loop(truth))
    for recorded in ("train_acc", "acc2_incl_zero"):
        assert float(right / count) == pytest.approx(float(aux[f"senti.{recorded}"]), abs=1e-12), recorded


def test_cosines_and_their_gradient(aux: dict[str, Tensor]) -> None:
    fused, guides = aux["cos.fusion"].double(), aux["cos.cls"].double()
    rule = ReleasedDirection(task=Classification(len(fused)), head_weight=fused, guide_weights=list(guides))
    # L_gm = mean(|B| - B cos): these B make its gradient that of 2 cos_0 - cos_1 + cos_2 / 2.
    coefficient_M = -len(guides) * torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    term = rule(torch.zeros(0), torch.zeros(2), torch.zeros(3, 2), coefficient_M)
    assert term.cosine_M is not None
    torch.testing.assert_close(term.cosine_M, aux["cos.values"], rtol=1e-5, atol=1e-7)
    wanted = aux["cos.grad_fusion_of_2c0_minus_c1_plus_half_c2"].double()
    torch.testing.assert_close(rule.next_gradient, wanted, rtol=1e-4, atol=1e-7)


def test_position_tables(aux: dict[str, Tensor]) -> None:
    sizes = [name for name in aux if name.endswith(".size")]
    assert sizes
    for name in sizes:
        rows, width = aux[name].tolist()
        table = position_table(rows, width).float()
        torch.testing.assert_close(table, aux[name.removesuffix(".size")], rtol=0, atol=2e-5)


def test_positions_skip_exact_zeros(aux: dict[str, Tensor]) -> None:
    channel_NT, wanted = aux["pe.input"], aux["pe.output"]
    assert bool((channel_NT == 0).any())
    assert bool((channel_NT != 0).any())
    x_NTD = torch.ones_like(wanted)
    x_NTD[..., 0] = channel_NT
    torch.testing.assert_close(SinusoidalPositions(wanted.shape[-1])(x_NTD), wanted, rtol=0, atol=1e-5)
