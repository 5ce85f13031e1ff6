"""Coefficient rules against plain float64 loops, and their properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cggm_ray.strategies.coefficients import CoefficientRule, PaperRule, ReleasedRule, StableRule

utility = st.floats(-3, 3, allow_nan=False, width=32)
histories = st.integers(2, 5).flatmap(
    lambda m: st.lists(st.lists(utility, min_size=m, max_size=m), min_size=1, max_size=12)
)


def run(rule: CoefficientRule, history: list[list[float]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    seen = torch.ones(len(history[0]), dtype=torch.bool)
    return [tuple(rule(torch.tensor(row, dtype=torch.float64), seen)) for row in history]


def stable_loop(history: list[list[float]], rho: float, smoothing: float, floor: float) -> list[list[float]]:
    """The definition of `stable`, one number at a time."""
    average, last, out = [0.0] * len(history[0]), [0.0] * len(history[0]), []
    for t, row in enumerate(history, start=1):
        progress = []
        for m, value in enumerate(row):
            average[m] = smoothing * average[m] + (1 - smoothing) * value
            u = average[m] / (1 - smoothing**t)
            progress.append(max(u - last[m], 0.0) + floor)
            last[m] = u
        out.append([rho * (1 - p / sum(progress)) for p in progress])
    return out


def paper_loop(history: list[list[float]], rho: float, epsilon: float) -> list[list[float]]:
    """Equations 7 and 8, one number at a time."""
    last, out = [0.0] * len(history[0]), []
    for row in history:
        d = [value - before for value, before in zip(row, last, strict=True)]
        total = sum(d) + epsilon
        out.append([rho * (total - x) / total if total else rho * (len(d) - 1) / len(d) for x in d])
        last = row
    return out


@given(histories, st.floats(0.1, 3), st.floats(0, 0.99), st.floats(1e-4, 1))
def test_stable_is_its_definition(history: list[list[float]], rho: float, smoothing: float, floor: float) -> None:
    rule = StableRule(len(history[0]), rho=rho, smoothing=smoothing, floor=floor)
    want = stable_loop(history, rho, smoothing, floor)
    for (gate, direction), row in zip(run(rule, history), want, strict=True):
        assert np.allclose(gate, row, rtol=1e-9, atol=1e-9)
        assert torch.equal(gate, direction)


@given(histories, st.floats(0.1, 3), st.floats(0, 0.99), st.floats(1e-4, 1))
def test_stable_is_bounded_and_its_sum_is_fixed(
    history: list[list[float]], rho: float, smoothing: float, floor: float
) -> None:
    modalities = len(history[0])
    for gate, _ in run(StableRule(modalities, rho=rho, smoothing=smoothing, floor=floor), history):
        assert (gate >= -1e-12).all()
        assert (gate <= rho + 1e-12).all()
        assert math.isclose(float(gate.sum()), rho * (modalities - 1), rel_tol=1e-9)


@given(st.integers(2, 6), st.floats(0.1, 3), st.floats(0.01, 1))
def test_equal_improvements_are_treated_equally(modalities: int, rho: float, value: float) -> None:
    rule = StableRule(modalities, rho=rho, smoothing=0.5, floor=0.01)
    for gate, _ in run(rule, [[value] * modalities, [2 * value] * modalities]):
        assert np.allclose(gate, rho * (modalities - 1) / modalities)


@given(histories)
def test_stable_without_smoothing_is_the_paper_where_all_improve(history: list[list[float]]) -> None:
    rising = np.cumsum(np.abs(np.asarray(history)) + 0.01, axis=0).tolist()
    modalities = len(rising[0])
    stable = run(StableRule(modalities, rho=1.3, smoothing=0.0, floor=1e-12), rising)
    paper = run(PaperRule(modalities, rho=1.3), rising)
    for (a, _), (b, _) in zip(stable, paper, strict=True):
        assert np.allclose(a, b, rtol=1e-6, atol=1e-6)


@given(histories, st.randoms(use_true_random=False))
@settings(max_examples=50)
@pytest.mark.parametrize("kind", [StableRule, PaperRule, ReleasedRule])
def test_rules_do_not_depend_on_the_order_of_modalities(
    kind: type[CoefficientRule], history: list[list[float]], random: object
) -> None:
    modalities = len(history[0])
    order = list(range(modalities))
    random.shuffle(order)  # type: ignore[attr-defined]
    options = {"smoothing": 0.9, "floor": 0.01} if kind is StableRule else {}
    # Utilities on a grid of 1/8: their differences and sums are exact, so S does not depend on the order of adding.
    grid = [[round(value * 8) / 8 for value in row] for row in history]
    plain = run(kind(modalities, rho=1.1, **options), grid)
    permuted = run(kind(modalities, rho=1.1, **options), [[row[i] for i in order] for row in grid])
    for (a, _), (b, _) in zip(plain, permuted, strict=True):
        assert np.allclose(a[order], b, rtol=1e-9, atol=1e-9)


@given(histories)
def test_paper_and_released_are_their_equations(history: list[list[float]]) -> None:
    modalities, rho = len(history[0]), 1.3
    grid = [[round(value * 8) / 8 for value in row] for row in history]
    for (gate, direction), want in zip(
        run(PaperRule(modalities, rho=rho), grid), paper_loop(grid, rho, 0), strict=True
    ):
        assert np.allclose(gate, want, rtol=1e-9)
        assert torch.equal(gate, direction)
    released = zip(run(ReleasedRule(modalities, rho=rho), grid), paper_loop(grid, 1.0, 1e-8), strict=True)
    for (gate, direction), want in released:
        assert np.allclose(direction, want, rtol=1e-6)
        assert np.allclose(gate, rho * direction, rtol=1e-12)


@pytest.mark.parametrize("kind", [StableRule, PaperRule, ReleasedRule])
def test_a_modality_that_the_batch_lacks_counts_as_unchanged(kind: type[CoefficientRule]) -> None:
    options = {"smoothing": 0.5, "floor": 0.01} if kind is StableRule else {}
    rule = kind(2, rho=1.0, **options)
    both, first = torch.tensor([True, True]), torch.tensor([True, False])
    rule(torch.tensor([0.2, 0.4], dtype=torch.float64), both)
    memory = {name: value[1].clone() for name, value in rule.named_buffers()}
    gate, _ = rule(torch.tensor([0.6, 123.0], dtype=torch.float64), first)
    assert {name: value[1] for name, value in rule.named_buffers()} == memory
    assert gate[0] < gate[1]
