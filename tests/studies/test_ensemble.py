"""Greedy forward selection of an ensemble, against cases by hand and against numpy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from cggm_ray import Classification, Regression
from cggm_ray.studies.ensemble import averaged, scores, select


def test_errors_that_cancel_are_chosen_by_hand() -> None:
    target = torch.zeros(4)
    # The single best is c, but a and b together are exact, and so is one a with one b only.
    candidates = {name: torch.full((4, 1), value) for name, value in {"a": 1.0, "b": -1.0, "c": 0.9}.items()}
    chosen = select(Regression(), "mae", candidates, target)
    errors = {
        counts: abs(counts[0] - counts[1] + 0.9 * counts[2]) / sum(counts)
        for counts in itertools.product(range(4), repeat=3)
        if sum(counts)
    }
    value = tuple(chosen.get(name, 0) for name in "abc")
    # The greedy order by hand: c (.9), then b (.05), then by turns; the first rounds already beat every single one.
    assert abs(value[0] - value[1] + 0.9 * value[2]) / sum(value) <= errors[(0, 1, 1)] + 1e-6


def test_probabilities_are_averaged() -> None:
    logits = [torch.randn(5, 3), torch.randn(5, 3)]
    found = averaged(Classification(3), logits, [2, 1]).exp().numpy()
    by_hand = [np.exp(each.numpy()) / np.exp(each.numpy()).sum(1, keepdims=True) for each in logits]
    assert found == pytest.approx((2 * by_hand[0] + by_hand[1]) / 3, abs=1e-6)


@pytest.mark.parametrize("seed", range(10))
def test_never_worse_on_validation_than_the_best_single_one(seed: int) -> None:
    torch.manual_seed(seed)
    target = torch.randint(4, (30,))
    hint = 2.0 * torch.nn.functional.one_hot(target, 4)
    candidates = {f"m{k}": hint + 2 * torch.randn(30, 4) for k in range(6)}
    task = Classification(4)
    chosen = select(task, "accuracy", candidates, target)
    found = scores(task, averaged(task, [candidates[m] for m in chosen], list(chosen.values())), target)
    assert found["accuracy"] >= max(scores(task, each, target)["accuracy"] for each in candidates.values())
