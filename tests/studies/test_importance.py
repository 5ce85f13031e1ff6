"""How much a parameter explains, compared with scipy and a least squares fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from cggm_ray.studies.importance import importances
from cggm_ray.studies.parameters import Parameter
from cggm_ray.studies.store import FINISHED, Outcome, Record, ranked

SPACE = (
    Parameter(key="lr", kind="loguniform", values=(1e-4, 1e-1)),
    Parameter(key="rho", kind="uniform", values=(0.5, 2.0)),
    Parameter(key="gate", kind="choice", values=("a", "b", "c")),
)


def trial(number: int, values: dict[str, Any], best: float) -> Outcome:
    line: dict[str, float | None] = {"epoch": 1.0, "best_value": best, "best_epoch": 1.0}
    record = Record(number=number, name=f"trial-{number}", values=values, status=FINISHED)
    return Outcome(record=record, folder=Path(), lines=[line])


@pytest.fixture
def trials() -> list[Outcome]:
    """Forty trials in which lr decides, gate adds something, and rho does nothing."""
    random = np.random.default_rng(0)
    made = []
    for number in range(40):
        lr, gate = float(10 ** random.uniform(-4, -1)), "abc"[int(random.integers(3))]
        best = np.log10(lr) + 0.5 * "abc".index(gate) + 0.3 * random.normal()
        made.append(trial(number, {"lr": lr, "rho": float(random.uniform(0.5, 2)), "gate": gate}, float(best)))
    return made


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_share_is_the_adjusted_fit_of_ranks(trials: list[Outcome], mode: str) -> None:
    found = {each.key: each for each in importances(SPACE, ranked(trials, mode))}
    ranks = stats.rankdata([each.best for each in trials])
    lr = stats.spearmanr([each.record.values["lr"] for each in trials], ranks).statistic
    assert found["lr"].share == pytest.approx(1 - (1 - lr**2) * 39 / 38)
    design = np.array([[each.record.values["gate"] == name for name in "abc"] for each in trials], dtype=float)
    residual = ranks - design @ np.linalg.lstsq(design, ranks, rcond=None)[0]
    explained = 1 - (residual**2).sum() / ((ranks - ranks.mean()) ** 2).sum()
    assert found["gate"].share == pytest.approx(1 - (1 - explained) * 39 / 37)
    assert found["lr"].share > 0.5 > 0.2 > (found["rho"].share or 0)
    assert found["lr"].direction == ("smaller" if mode == "min" else "larger")
    assert found["gate"].direction == ("a" if mode == "min" else "c")


def test_too_few_trials_and_equal_results_have_no_share(trials: list[Outcome]) -> None:
    assert all(each.share is None for each in importances(SPACE, trials[:4]))
    same = [trial(number, each.record.values, 1.0) for number, each in enumerate(trials)]
    assert all(each.share is None for each in importances(SPACE, same))
    assert all(each.share is None for each in importances(SPACE, []))
