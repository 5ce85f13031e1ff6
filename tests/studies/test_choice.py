"""The choice among the leaders of a search, against means by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from cggm_ray.core.errors import UsageError
from cggm_ray.studies.choice import Candidate, candidates_of, decide, read_choice, run_name
from cggm_ray.studies.store import FAILED, FINISHED, STOPPED, WAITING, Outcome, Record

A, B, C = (Candidate(trial=name, values={"lr": k}, searched=k / 10) for k, name in enumerate("abc"))


def outcome(name: str, value: float | None, status: str = FINISHED, **values: float) -> Outcome:
    lines = [] if value is None else [{"epoch": 1.0, "best_value": value, "best_epoch": 1.0}]
    return Outcome(record=Record(number=0, name=name, values=values, status=status), folder=Path(name), lines=lines)


def runs(**values: list[float | str | None]) -> list[Outcome]:
    """Runs with seeds 1, 2, ...: a value, None for one that did not start, or its status."""
    found = []
    for name, by_seed in values.items():
        each = next(candidate for candidate in (A, B, C) if candidate.trial == name)
        for seed, value in enumerate(by_seed, start=1):
            status = value if isinstance(value, str) else WAITING if value is None else FINISHED
            # What was stopped had the best value so far.
            found.append(outcome(run_name(each, seed), 99.0 if isinstance(value, str) else value, status))
    return found


@pytest.mark.parametrize(
    ("found", "mode", "chosen", "compared"),
    [
        # Means .6, .7, .65; the best single value is no reason.
        ({"a": [0.4, 0.8], "b": [0.7, 0.7], "c": [0.5, 0.8]}, "max", "b", [1, 2]),
        ({"a": [0.4, 0.8], "b": [0.7, 0.7], "c": [0.5, 0.8]}, "min", "a", [1, 2]),
        # Of equal ones the first, which is the configuration that the search started from.
        ({"a": [0.7, 0.7], "b": [0.6, 0.8], "c": [0.5, 0.9]}, "max", "a", [1, 2]),
        # Only seeds that all of them have.
        ({"a": [0.7, 0.7], "b": [0.6, 0.9], "c": [0.5, STOPPED]}, "max", "a", [1]),
        ({"a": [0.6, None], "b": [0.7, None], "c": [STOPPED, None]}, "max", "b", [1]),
        # A run that failed takes its configuration out.
        ({"a": [0.6, 0.6], "b": [0.5, 0.5], "c": [0.9, FAILED]}, "max", "a", [1, 2]),
        # Too few: the search decides, whose best one is c, or b where c fails.
        ({"a": [0.6, None], "b": [STOPPED, None], "c": [None, None]}, "max", "c", []),
        ({"a": [None, None], "b": [None, None], "c": [FAILED, None]}, "max", "b", []),
    ],
)
def test_the_best_mean_wins(
    found: dict[str, list], mode: str, chosen: str, compared: list[int], tmp_path: Path
) -> None:
    choice = decide("accuracy", mode, [A, B, C], [1, 2], runs(**found), 1.5)
    assert (choice.chosen, choice.compared) == (chosen, compared)
    assert choice.values == {"lr": "abc".index(chosen)}
    choice.save(tmp_path)
    assert read_choice(tmp_path) == choice
    assert chosen in choice.basis()
    assert len(choice.table().splitlines()) == 4


def test_the_first_trial_is_always_compared() -> None:
    first = outcome("trial-000", 0.1, lr=1)
    order = [outcome(f"trial-{k:03d}", 1 - k / 10, STOPPED, lr=k) for k in (2, 3, 4, 5)]
    assert [each.trial for each in candidates_of(first, order)] == ["trial-000", "trial-002", "trial-003", "trial-004"]
    again = outcome("trial-007", 0.95, lr=1)
    assert [each.trial for each in candidates_of(first, [again, first, *order])] == ["trial-000", "trial-002"]
    failed = outcome("trial-000", None, FAILED, lr=1)
    assert [each.trial for each in candidates_of(failed, order[:1])] == ["trial-002"]


def test_a_damaged_choice_is_one_line(tmp_path: Path) -> None:
    assert read_choice(tmp_path) is None
    for text in ("{", "{}", '{"candidates": [{}]}', "[]"):
        (tmp_path / "choice.json").write_text(text)
        with pytest.raises(UsageError, match=r"choice.json cannot be read: .*; remove it to choose again"):
            read_choice(tmp_path)
