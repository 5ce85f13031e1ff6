"""The choice among the leaders of a search, against means by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cggm_ray.core.errors import UsageError
from cggm_ray.engine.evaluation import Predictions
from cggm_ray.engine.prediction_file import write_predictions
from cggm_ray.runs.finishing import LINEAR_CHOICE, VALID_PREDICTIONS, VALIDATION
from cggm_ray.studies.choice import Candidate, candidates_of, decide, read_choice, run_name
from cggm_ray.studies.store import FAILED, FINISHED, STOPPED, WAITING, Outcome, Record
from cggm_ray.tasks import Classification

TASK = Classification(2)
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
    ("found", "metric", "chosen", "compared"),
    [
        # Means .6, .7, .65; the best single value is no reason.
        ({"a": [0.4, 0.8], "b": [0.7, 0.7], "c": [0.5, 0.8]}, "accuracy", "b", [1, 2]),
        ({"a": [0.4, 0.8], "b": [0.7, 0.7], "c": [0.5, 0.8]}, "loss", "a", [1, 2]),
        # Of equal ones the first.
        ({"a": [0.7, 0.7], "b": [0.6, 0.8], "c": [0.5, 0.9]}, "accuracy", "a", [1, 2]),
        # Only seeds that all of them have.
        ({"a": [0.7, 0.7], "b": [0.6, 0.9], "c": [0.5, STOPPED]}, "accuracy", "a", [1]),
        ({"a": [0.6, None], "b": [0.7, None], "c": [STOPPED, None]}, "accuracy", "b", [1]),
        # A run that failed takes its configuration out.
        ({"a": [0.6, 0.6], "b": [0.5, 0.5], "c": [0.9, FAILED]}, "accuracy", "a", [1, 2]),
        # Too few: the search decides, whose best one is c, or b where c fails.
        ({"a": [0.6, None], "b": [STOPPED, None], "c": [None, None]}, "accuracy", "c", []),
        ({"a": [None, None], "b": [None, None], "c": [FAILED, None]}, "accuracy", "b", []),
    ],
)
def test_the_best_mean_wins_where_the_search_started_from_none_of_them(
    found: dict[str, list], metric: str, chosen: str, compared: list[int], tmp_path: Path
) -> None:
    choice = decide(TASK, metric, [A, B, C], [1, 2], runs(**found), 1.5)
    assert (choice.chosen, choice.compared) == (chosen, compared)
    assert choice.values == {"lr": "abc".index(chosen)}
    choice.save(tmp_path)
    assert read_choice(tmp_path) == choice
    assert chosen in choice.basis()
    assert len(choice.table().splitlines()) == 4


def validated(folder: Path, hits: np.ndarray) -> Outcome:
    """A finished run that left predictions of two classes: which samples it hits."""
    folder.mkdir(parents=True)
    target = np.arange(len(hits)) % 2
    said = np.where(hits, target, 1 - target)
    logits = torch.nn.functional.one_hot(torch.from_numpy(said), 2).double()
    predictions = Predictions(
        logits, torch.from_numpy(target)[:, None].double(), torch.ones(len(hits), dtype=torch.bool)
    )
    write_predictions(folder / VALID_PREDICTIONS, None, predictions)
    (folder / VALIDATION).write_text(json.dumps({"accuracy": float(hits.mean())}))
    return Outcome(record=Record(number=0, name=folder.name, values={}, status=FINISHED), folder=folder, lines=[])


@pytest.mark.parametrize(
    ("more", "other", "chosen"),
    [
        # One or three of 200 samples more, the same in both runs, with as many or no samples less.
        (1, 0, "a"),
        (3, 0, "a"),
        (12, 0, "b"),
        # Sixteen more and four less: a lead of 12 of 200 is .06, its standard error .022.
        (16, 4, "b"),
        (30, 24, "a"),
    ],
)
def test_a_trial_must_be_ahead_of_the_start_by_more_than_chance(
    tmp_path: Path, more: int, other: int, chosen: str
) -> None:
    hits = np.arange(200) < 150
    better = hits.copy()
    better[150 : 150 + more] = True
    better[:other] = False
    found = [
        validated(tmp_path / run_name(each, seed), which) for each, which in ((A, hits), (B, better)) for seed in (1, 2)
    ]
    choice = decide(TASK, "accuracy", [A, B], [1, 2], found, 1.5, "a")
    assert choice.chosen == chosen
    assert choice.leads["b"].mean == pytest.approx((more - other) / 200)
    # Of n samples that differ, the error of the share is that of a sum of n signs (McNemar), but for the bootstrap's chance.
    differ, ahead = more + other, more - other
    wanted = np.sqrt(differ / 200 - (ahead / 200) ** 2) / np.sqrt(200)
    assert choice.leads["b"].error == pytest.approx(wanted, rel=0.2)
    choice.save(tmp_path)
    assert read_choice(tmp_path) == choice
    said = "a, where the search started, is kept" if chosen == "a" else "it is ahead of a"
    assert said in choice.basis()
    assert "ahead of a by" in choice.table()


def test_the_chance_of_the_seeds_counts_too(tmp_path: Path) -> None:
    """Far ahead with one seed and behind with the other: the mean over seeds says little."""
    hits = np.arange(200) < 150
    found = [validated(tmp_path / run_name(A, seed), hits) for seed in (1, 2)]
    found += [validated(tmp_path / run_name(B, seed), np.arange(200) < count) for seed, count in ((1, 195), (2, 145))]
    choice = decide(TASK, "accuracy", [A, B], [1, 2], found, 1.5, "a")
    assert choice.leads["b"].mean == pytest.approx(0.1)
    assert choice.leads["b"].error == pytest.approx(0.125)
    assert choice.chosen == "a"


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


def test_the_choice_says_how_its_runs_ended(tmp_path: Path) -> None:
    found = []
    for seed, (epoch, share, strength) in enumerate([(4.0, 0.2, 10.0), (8.0, 0.5, 100.0)], start=1):
        run = validated(tmp_path / run_name(A, seed), np.arange(20) < 15)
        (run.folder / LINEAR_CHOICE).write_text(json.dumps({"shares": [1.0 - share, share], "strength": strength}))
        # The loss is least in epoch 5.
        lines: list[dict[str, float | None]] = [
            {"epoch": n, "best_epoch": min(n, epoch), "best_value": 0.7, "valid/loss": abs(n - 5)} for n in range(1, 10)
        ]
        found.append(dataclasses.replace(run, lines=lines))
    choice = decide(TASK, "accuracy", [A], [1, 2], found, epochs=10)
    assert choice.share == pytest.approx((0.5 + 0.8) / 2)
    without = [dataclasses.replace(run, lines=[{**run.lines[-1], "valid/loss": None}]) for run in found]
    assert decide(TASK, "accuracy", [A], [1, 2], without, epochs=10).share == pytest.approx((0.4 + 0.8) / 2)
    assert choice.linear == [0.65, 0.35, 10.0]
    choice.save(tmp_path)
    assert read_choice(tmp_path) == choice
    text = (tmp_path / "choice.json").read_text()
    older = {name: value for name, value in json.loads(text).items() if name != "linear"}
    (tmp_path / "choice.json").write_text(json.dumps({**older, "ridge": [0.35, 10.0]}))
    assert read_choice(tmp_path) == choice
    (found[0].folder / LINEAR_CHOICE).unlink()
    assert decide(TASK, "accuracy", [A], [1, 2], found, epochs=10).linear is None
    assert decide(TASK, "accuracy", [A], [1, 2], [], epochs=10).share is None
