"""What balancing can gain: joint training and a strategy beside single modalities, their late fusion, and simple models.

What is compared is chosen on validation, and the difference is measured on test samples that both predict. A difference
counts where it is larger than its standard error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cggm_ray.core.batch import Batch
from cggm_ray.core.errors import UsageError
from cggm_ray.core.tables import text_table
from cggm_ray.storage.files import write_text
from cggm_ray.tasks import Task

HEADROOM = "headroom.json"
FOLDER = "headroom"
RESAMPLES = 300
SINGLE, LATE, SIMPLE, JOINT, STRATEGY = "single", "late fusion", "simple", "joint", "strategy"
NETWORKS = (SINGLE, LATE, JOINT, STRATEGY)
ALTERNATIVES = (SINGLE, LATE, SIMPLE)
"""Kinds of rows that say what joint training leaves out."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A row of the table, with what it predicts.

    Attributes:
        label: of the row.
        kind: one of the kinds above.
        valid, test: the metric by run (seed and fold).
        logits: of the test samples by run, [N, C]; empty where predictions are maps.
        choice: what validation chose.
    """

    label: str
    kind: str
    valid: Mapping[str, float]
    test: Mapping[str, float]
    logits: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    choice: str = ""


@dataclass(frozen=True, kw_only=True)
class Gain:
    """A difference on test samples; positive is better, whatever the metric.

    Attributes:
        mean: over the runs.
        error: standard error of the mean; None where there is no way to tell.
    """

    mean: float
    error: float | None

    @property
    def certain(self) -> bool:
        """Whether the difference is positive and larger than its standard error."""
        return self.error is not None and self.mean > self.error


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How predictions are scored.

    Attributes:
        task: what is predicted.
        metric: that selects.
        better: 'min' or 'max'.
        truth: targets of the test samples by run, [N]; empty where predictions are maps.
    """

    task: Task
    metric: str
    better: str
    truth: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def sign(self) -> float:
        """1 where a larger metric is better, else -1."""
        return -1.0 if self.better == "min" else 1.0

    def best(self, candidates: Sequence[Candidate]) -> Candidate | None:
        """Returns the candidate with the best mean on validation; None of none."""
        scored = [c for c in candidates if np.isfinite(list(c.valid.values())).all() and c.valid]
        return max(scored, key=lambda c: self.sign * float(np.mean(list(c.valid.values()))), default=None)

    def gain(self, candidate: Candidate, reference: Candidate) -> Gain | None:
        """Returns how much better the first is on test, over the runs that both have; None without any.

        The standard error is that of a paired bootstrap over the test samples, or that of the mean over several runs if it is
        larger.
        """
        runs = [run for run in candidate.test if run in reference.test]
        changes = np.array([self.sign * (candidate.test[run] - reference.test[run]) for run in runs])
        if not runs or not np.isfinite(changes).all():
            return None
        errors = [] if len(runs) == 1 else [float(changes.std(ddof=1) / len(runs) ** 0.5)]
        both = [run for run in runs if run in candidate.logits and run in reference.logits]
        if both:
            errors.append(float(np.mean([self._error(candidate, reference, run) for run in both])))
        return Gain(mean=float(changes.mean()), error=max(errors, default=None))

    def _error(self, candidate: Candidate, reference: Candidate, run: str) -> float:
        """Returns the deviation of the difference over resamples of the test samples, both of them resampled alike."""
        truth = self.truth[run]
        draws = np.random.default_rng(0).multinomial(len(truth), np.full(len(truth), 1 / len(truth)), RESAMPLES)
        changes = []
        for draw in torch.from_numpy(draws).double():
            first, second = (self.value(c.logits[run], truth, draw) for c in (candidate, reference))
            changes.append(first - second)
        return float(np.nanstd(changes))

    def value(self, logits: Tensor, truth: Tensor, weight: Tensor | None = None) -> float:
        """Returns the metric of predictions [N, C], weighted by sample."""
        state = self.task.metrics()
        state.update(logits, Batch.of_loop(truth, weight=weight))
        if self.metric == "loss":
            return float(self.task.loss(logits, truth, weight))
        return state.compute(state.sums)[self.metric]


@dataclass(frozen=True, kw_only=True)
class Headroom:
    """The table, and what follows from it.

    Attributes:
        metric, better: that selects, and its direction.
        rows: label, kind, choice, runs, valid, test, gain over joint training and its standard error.
        notes: what is missing, and why.
        conclusion: sentences.
        learned: whether the best network is not behind the best simple model; None where that cannot be told.
        room: whether the best alternative is better than joint training by more than the standard error, or a strategy is;
            None where that cannot be told, or the network has not learned.
    """

    metric: str
    better: str
    rows: Sequence[Mapping[str, Any]]
    notes: Sequence[str] = ()
    conclusion: Sequence[str] = ()
    learned: bool | None = None
    room: bool | None = None

    def save(self, path: Path) -> None:
        """Writes JSON.

        Raises:
            OSError: it cannot be written.
        """
        write_text(path, json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> Headroom:
        """Reads what `save` wrote.

        Raises:
            UsageError: the file is missing or damaged.
        """
        try:
            found = cls(**json.loads(path.read_text()))
            found.cells()
            return found
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} cannot be read: {error}") from None

    def head(self) -> list[str]:
        """Returns the names of the columns."""
        return ["", f"valid {self.metric}", f"test {self.metric}", "gain over joint", "standard error", "chosen"]

    def cells(self) -> list[list[Any]]:
        """Returns the cells of the table."""
        return [[row[key] for key in ("label", "valid", "test", "gain", "error", "choice")] for row in self.rows]

    def text(self, *, markdown: bool = False) -> str:
        """Returns the table with notes and conclusion."""
        lines = [text_table(self.cells(), self.head(), markdown=markdown), *self.notes, *self.conclusion]
        return ("\n\n" if markdown else "\n").join(lines)


def headroom(measure: Measure, candidates: Sequence[Candidate], notes: Sequence[str] = ()) -> Headroom:
    """Returns the table of the candidates, one of which is joint training.

    Args:
        measure: how they are scored.
        candidates: in the order of the table.
        notes: what is missing, and why.
    """
    joint = next((c for c in candidates if c.kind == JOINT), None)
    singles = [c for c in candidates if c.kind == SINGLE]
    strongest = measure.best(singles) if len(singles) > 1 else None
    rows: list[dict[str, Any]] = []
    for candidate in candidates:
        gain = None if joint is None or candidate is joint else measure.gain(candidate, joint)
        rows.append(
            {
                "label": candidate.label,
                "kind": candidate.kind,
                "choice": "best single modality" if candidate is strongest else candidate.choice,
                "runs": len(candidate.test),
                "valid": _mean(candidate.valid),
                "test": _mean(candidate.test),
                "gain": None if gain is None else gain.mean,
                "error": None if gain is None else gain.error,
            }
        )
    learned, room = (None, None) if joint is None else _learned_and_room(measure, candidates, joint)
    return Headroom(
        metric=measure.metric,
        better=measure.better,
        rows=rows,
        notes=notes,
        conclusion=[] if joint is None else conclusions(measure, candidates, joint),
        learned=learned,
        room=room,
    )


def _learned_and_room(
    measure: Measure, candidates: Sequence[Candidate], joint: Candidate
) -> tuple[bool | None, bool | None]:
    """Returns `Headroom.learned` and `Headroom.room`."""
    simple = measure.best([c for c in candidates if c.kind == SIMPLE])
    network = measure.best([c for c in candidates if c.kind in NETWORKS])
    ahead = measure.gain(simple, network) if simple is not None and network is not None else None
    learned = None if ahead is None or ahead.error is None else not ahead.certain
    if learned is False:
        return learned, None
    best = [measure.best([c for c in candidates if c.kind in kinds]) for kinds in (ALTERNATIVES, (STRATEGY,))]
    gains = [gain for gain in (measure.gain(c, joint) for c in best if c is not None) if gain is not None]
    known = [gain for gain in gains if gain.error is not None]
    return learned, any(gain.certain for gain in known) if known else None


def conclusions(measure: Measure, candidates: Sequence[Candidate], joint: Candidate) -> list[str]:
    """Returns what the table says, in sentences.

    Args:
        measure: how they are scored.
        candidates: all rows.
        joint: that of joint training.
    """
    of_kind = {kind: [c for c in candidates if c.kind == kind] for kind in (*NETWORKS, SIMPLE)}
    simple = measure.best(of_kind[SIMPLE])
    network = measure.best([c for kind in NETWORKS for c in of_kind[kind]])
    lines = []
    ahead = measure.gain(simple, network) if simple is not None and network is not None else None
    if simple is not None and network is not None and ahead is not None and ahead.certain:
        lines.append(
            f"The network has not learned yet: {simple.label} is better on test than {network.label}, the best network by "
            f"validation, by {_said(ahead)}. Compare strategies after more steps, or with other inputs, network or learning "
            "rate."
        )
    strategy = measure.best(of_kind[STRATEGY])
    gained = None if strategy is None else measure.gain(strategy, joint)
    if strategy is not None and gained is not None and gained.certain:
        lines.append(f"{strategy.label} is better on test than joint training by {_said(gained)}.")
    if ahead is not None and ahead.certain:
        return lines
    other = measure.best([c for kind in ALTERNATIVES for c in of_kind[kind]])
    room = None if other is None else measure.gain(other, joint)
    if other is None or room is None:
        return lines
    found = f"{other.label}, the best alternative by validation,"
    if room.error is None:
        return [
            *lines,
            f"{found} differs from joint training by {room.mean:+.4f} on test; one run has no standard error.",
        ]
    if room.certain:
        return [*lines, f"There is room: {found} is better on test than joint training by {_said(room)}."]
    if gained is not None and gained.certain:
        return [*lines, f"Beyond that nothing shows room: {found} differs from joint training by {_said(room)}."]
    return [
        *lines,
        f"Nothing can be gained here by balancing: {found} differs from joint training on test by {_said(room)}, no "
        "improvement beyond the standard error.",
    ]


def _said(gain: Gain) -> str:
    """Returns a difference with its standard error."""
    return f"{gain.mean:.4f} (standard error {gain.error:.4f})"


def _mean(values: Mapping[str, float]) -> float | None:
    """Returns the mean over runs, None if it is not finite."""
    mean = float(np.mean(list(values.values()))) if values else float("nan")
    return mean if np.isfinite(mean) else None
