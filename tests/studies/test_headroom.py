"""The table of the head-room: differences with their standard errors, and the sentences that follow from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from cggm_ray.core.errors import UsageError
from cggm_ray.models.averaged import mean_prediction
from cggm_ray.studies.headroom import (
    JOINT,
    LATE,
    SIMPLE,
    SINGLE,
    STRATEGY,
    Candidate,
    Headroom,
    Measure,
    headroom,
)
from cggm_ray.tasks import Classification, Regression

SAMPLES = 400
TRUTH = torch.arange(SAMPLES) % 4


def row(label: str, kind: str, right: float, *, valid: float | None = None, seed: int = 0, runs: int = 1) -> Candidate:
    """A classifier that is right on a share of the test samples, the first ones or, with a seed, any."""
    order = np.arange(SAMPLES) if seed == 0 else np.random.default_rng(seed).permutation(SAMPLES)
    hit = torch.from_numpy(order < round(right * SAMPLES))
    logits = torch.nn.functional.one_hot(torch.where(hit, TRUTH, (TRUTH + 1) % 4), 4).double()
    names = [f"seed-{number}" for number in range(runs)]
    return Candidate(
        label=label,
        kind=kind,
        valid=dict.fromkeys(names, right if valid is None else valid),
        test=dict.fromkeys(names, round(right * SAMPLES) / SAMPLES),
        logits=dict.fromkeys(names, logits),
    )


def measure(runs: int = 1) -> Measure:
    truth = {f"seed-{number}": TRUTH for number in range(runs)}
    return Measure(task=Classification(4), metric="accuracy", better="max", truth=truth)


def test_the_standard_error_is_that_of_paired_differences() -> None:
    first, second = row("a", SIMPLE, 0.7, seed=1), row("b", JOINT, 0.6, seed=2)
    gain = measure().gain(first, second)
    right = [(c.logits["seed-0"].argmax(1) == TRUTH).double().numpy() for c in (first, second)]
    assert gain is not None
    assert gain.mean == pytest.approx((right[0] - right[1]).mean())
    assert gain.error == pytest.approx((right[0] - right[1]).std() / SAMPLES**0.5, rel=0.15)
    assert gain.certain
    turned = measure().gain(second, first)
    assert turned is not None
    assert (turned.mean, turned.certain) == (pytest.approx(-gain.mean), False)


def test_an_error_that_shall_be_small() -> None:
    truth = torch.linspace(-2, 2, 500)
    rng = np.random.default_rng(0)
    noise = [torch.from_numpy(rng.normal(0, s, 500)) for s in (0.5, 1.0)]
    rows = [
        Candidate(
            label=name,
            kind=SIMPLE,
            valid={"": 1.0},
            test={"": float(part.abs().mean())},
            logits={"": (truth + part)[:, None]},
        )
        for name, part in zip("ab", noise, strict=True)
    ]
    by_mae = Measure(task=Regression(), metric="mae", better="min", truth={"": truth})
    gain = by_mae.gain(*rows)
    changes = (noise[1].abs() - noise[0].abs()).numpy()
    assert gain is not None
    assert (gain.mean, gain.certain) == (pytest.approx(changes.mean()), True)
    assert gain.error == pytest.approx(changes.std() / 500**0.5, rel=0.15)


def test_several_runs_count_where_they_differ_more_than_samples() -> None:
    joint = row("joint training", JOINT, 0.6, runs=4)
    other = row("late fusion", LATE, 0.6, runs=4)
    values = [0.9, 0.5, 0.7, 0.3]
    spread = Candidate(**{**vars(other), "test": dict(zip(other.test, values, strict=True))})
    gain = measure(4).gain(spread, joint)
    assert gain is not None
    assert gain.error == pytest.approx(np.std(np.array(values) - 0.6, ddof=1) / 2)
    # Runs that only one of them has are left out, and without any there is no difference.
    alone = Candidate(label="x", kind=LATE, valid={}, test={"seed-9": 1.0})
    assert measure(4).gain(alone, joint) is None
    fewer = measure(4).gain(row("y", LATE, 0.8, runs=1), joint)
    assert fewer is not None
    assert fewer.mean == pytest.approx(0.2)


def test_the_network_has_not_learned() -> None:
    rows = [row("audio alone", SINGLE, 0.3), row("logistic regression", SIMPLE, 0.9), row("joint training", JOINT, 0.5)]
    (line,) = headroom(measure(), rows).conclusion
    assert line.startswith("The network has not learned yet: logistic regression is better on test than joint training")
    assert "by 0.4000 (standard error 0.02" in line


def test_there_is_room() -> None:
    rows = [
        row("text alone", SINGLE, 0.5),
        row("late fusion", LATE, 0.7),
        row("ridge", SIMPLE, 0.6),
        row("joint training", JOINT, 0.6),
    ]
    (line,) = headroom(measure(), rows).conclusion
    assert line.startswith(
        "There is room: late fusion, the best alternative by validation, is better on test than joint"
    )


def test_nothing_can_be_gained() -> None:
    rows = [
        row("text alone", SINGLE, 0.5),
        row("late fusion", LATE, 0.61, seed=3),
        row("joint training", JOINT, 0.6, seed=4),
    ]
    (line,) = headroom(measure(), rows).conclusion
    assert line.startswith("Nothing can be gained here by balancing: late fusion")
    gained = headroom(measure(), [*rows, row("cggm", STRATEGY, 0.8)]).conclusion
    assert gained[0].startswith("cggm is better on test than joint training by 0.2000")
    assert gained[1].startswith("Beyond that nothing shows room: late fusion")


def test_the_choice_is_made_on_validation() -> None:
    """The alternative that is best on test, but not on validation, decides nothing."""
    rows = [
        row("late fusion", LATE, 0.9, valid=0.5),
        row("text alone", SINGLE, 0.4, valid=0.6),
        row("joint training", JOINT, 0.6, valid=0.7),
    ]
    (line,) = headroom(measure(), rows).conclusion
    assert line.startswith("Nothing can be gained here by balancing: text alone, the best alternative by validation")


def test_maps_of_one_run_have_no_standard_error() -> None:
    dense = [
        Candidate(label=label, kind=kind, valid={"": value}, test={"": value})
        for label, kind, value in (("t1 alone", SINGLE, 0.7), ("joint training", JOINT, 0.5))
    ]
    found = headroom(measure(), dense)
    assert found.rows[0]["error"] is None
    assert "one run has no standard error" in found.conclusion[0]
    assert "Nothing can be gained" not in found.conclusion[0]


def test_without_joint_training_there_is_a_table_and_no_sentence() -> None:
    found = headroom(measure(), [row("text alone", SINGLE, 0.5)], ["joint is missing: it failed"])
    assert (found.rows[0]["gain"], list(found.conclusion)) == (None, [])
    assert "joint is missing: it failed" in found.text()


def test_the_file_and_the_table(tmp_path: Path) -> None:
    rows = [row("a alone", SINGLE, 0.5), row("b alone", SINGLE, 0.55), row("joint training", JOINT, 0.6)]
    found = headroom(measure(), rows, ["a note"])
    found.save(tmp_path / "headroom.json")
    assert Headroom.load(tmp_path / "headroom.json").text() == found.text()
    cells = {line.split("  ")[0]: line.split() for line in found.text().splitlines()}
    assert cells["b alone"][2:4] == ["0.5500", "0.5500"]
    assert cells["b alone"][-3:] == ["best", "single", "modality"]
    assert "| joint training |" in found.text(markdown=True)
    for damage in ("{", json.dumps({"metric": "mae"}), json.dumps({"metric": 1, "better": 2, "rows": [{}]})):
        (tmp_path / "headroom.json").write_text(damage)
        with pytest.raises(UsageError, match=r"headroom.json cannot be read"):
            Headroom.load(tmp_path / "headroom.json")


def test_late_fusion_is_the_mean_of_probabilities() -> None:
    rng = np.random.default_rng(5)
    logits = [rng.normal(size=(20, 3)) * 3 for _ in range(2)]
    half = torch.full([2], 0.5)
    found = mean_prediction(torch.from_numpy(np.stack(logits)), half, classes=True).numpy()
    mean = np.mean([softmax(each, axis=1) for each in logits], axis=0)
    assert log_softmax(found, axis=1) == pytest.approx(np.log(mean))
    values = mean_prediction(torch.from_numpy(np.stack(logits)[:, :, :1]), half, classes=False).numpy()
    assert values == pytest.approx((logits[0][:, :1] + logits[1][:, :1]) / 2)
