"""Interactive curves of a run: what `templates/curves.js` draws with uPlot. Each picture answers one question."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from cggm_ray.report import terms
from cggm_ray.report.figures import WIDE
from cggm_ray.report.run_record import RunRecord
from cggm_ray.studies.store import Outcome

MOST_POINTS = 3000
"""Test samples in a scatter; of more, evenly spread ones are drawn."""
DIGITS = 5
"""Significant digits of a value in the page."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve; numbers of colour and dash begin again after the last."""

    label: str
    values: Sequence[float | None]
    style: int


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Lines, or points, over one axis.

    Attributes:
        title: the question that the picture answers.
        x: places of the values.
        x_label, y_label: of the axes, with units.
        lines: the values; None leaves a gap.
        mark: place of an upright line, and its label.
        low, high: fixed ends of the vertical axis; None follows the values.
        linear: up to this value the axis is linear, beyond it logarithmic; None for a linear axis.
        scatter: draws points without lines, both axes from `low` to `high`, and the diagonal.
        alternative: what the picture shows, in a sentence.
        caption: below it.
    """

    title: str
    x: Sequence[float]
    x_label: str
    y_label: str
    lines: Sequence[Line]
    alternative: str
    caption: str = ""
    mark: tuple[float, str] | None = None
    low: float | None = None
    high: float | None = None
    linear: float | None = None
    scatter: bool = field(default=False)

    @property
    def json(self) -> str:
        """What the script reads."""
        return json.dumps(
            {name: value for name, value in asdict(self).items() if name not in ("alternative", "caption")}
        )


def learning(run: RunRecord) -> list[Curves]:
    """Returns the losses, and the validation metric that selects."""
    epochs, best = _numbers(run.series("epoch")), run.series("best_epoch")[-1]
    fitted = bool(run.config.train.refit)
    mark = (float(best), f"{'last' if fitted else 'best'} epoch, {best:.0f}") if best > 0 else None
    which = "The epoch with the best value is tested."
    if fitted:
        which = "The network was trained on these samples, so this says nothing of others. The last epoch is tested."
    losses = {"training": "train/loss", "validation": "valid/loss"}
    drawn = [
        Curves(
            title="Does the network still learn?",
            x=epochs,
            x_label="epoch",
            y_label="loss, lower is better",
            lines=[
                Line(label=label, values=_numbers(run.series(name)), style=k)
                for k, (label, name) in enumerate(losses.items())
            ],
            mark=mark,
            alternative=f"Training loss ends at {_end(run.series('train/loss'))}, validation loss at "
            f"{_end(run.series('valid/loss'))}.",
            caption="If the validation loss rises while the training loss falls, the network learns the training samples by "
            "heart.",
        )
    ]
    if run.metric != "loss":
        values = run.series(f"valid/{run.metric}")
        name = terms.METRICS.get(run.metric, (run.metric,))[0]
        drawn.append(
            Curves(
                title=f"How good is it? Validation {name}",
                x=epochs,
                x_label="epoch",
                y_label=terms.metric_words(run.metric, run.better),
                lines=[Line(label=f"validation {name}", values=_numbers(values), style=0)],
                mark=mark,
                alternative=f"Validation {name} ends at {_end(values)}; the {'last' if fitted else 'best'} epoch is "
                f"{best:.0f}.",
                caption=which,
            )
        )
    return drawn


def balance(run: RunRecord, shared: Mapping[str, tuple[float, float]] | None = None) -> list[Curves]:
    """Returns what each modality did: score of its guide, gradient norm, cosine, coefficient, clipped steps.

    Args:
        run: with its metrics.
        shared: ends of the vertical axis by quantity, for several runs beside each other.
    """
    rho, wanted = run.config.modulation.rho, _quantities(run)
    drawn = []
    for quantity, (title, label, term, low, high) in wanted.items():
        names = run.recorded(quantity)
        factor = 100 if quantity == "clipped" else 1
        values = {name: factor * run.series(f"{quantity}/{name}") for name in names}
        if not names:
            continue
        low, high = (shared or {}).get(quantity, (low, high))
        wide = quantity == "coefficient" and np.nanmax(np.abs(list(values.values()))) > WIDE * rho
        drawn.append(
            Curves(
                title=title,
                x=_numbers(run.series("epoch")),
                x_label="epoch",
                y_label=label,
                lines=[Line(label=n, values=_numbers(values[n]), style=run.modalities.index(n)) for n in names],
                low=None if wide else low,
                high=None if wide else high,
                linear=rho if wide else None,
                alternative=f"{label}, at the end: " + ", ".join(f"{n} {_end(values[n])}" for n in names) + ".",
                caption=term,
            )
        )
    return drawn


def shared_ends(runs: Sequence[RunRecord]) -> dict[str, tuple[float, float]]:
    """Returns one vertical axis for each quantity of the balance, on which the values of all runs have room."""
    found = {}
    for quantity, (_, _, _, low, high) in _quantities(runs[0]).items():
        parts = [run.series(f"{quantity}/{name}") for run in runs for name in run.recorded(quantity)]
        if not parts or quantity == "clipped":
            continue
        values = np.concatenate(parts)
        values = values[np.isfinite(values)]
        margin = 0.05 * float(values.max() - values.min()) or 0.05
        found[quantity] = (
            float(values.min()) - margin if low is None else low,
            float(values.max()) + margin if high is None else high,
        )
    return found


def compared(runs: Sequence[RunRecord], metric: str) -> list[Curves]:
    """Returns the validation loss and the selecting metric of several runs, one line each."""
    epochs = sorted({float(epoch) for run in runs for epoch in run.series("epoch")})
    drawn = []
    for name in dict.fromkeys(("loss", metric)):
        lines = []
        for number, run in enumerate(runs):
            by_epoch = dict(zip(_numbers(run.series("epoch")), _numbers(run.series(f"valid/{name}")), strict=True))
            lines.append(Line(label=run.label, values=[by_epoch.get(epoch) for epoch in epochs], style=number))
        better = terms.direction(name, runs[0].metric, runs[0].better)
        drawn.append(
            Curves(
                title=f"Which run has the best validation {terms.METRICS.get(name, (name,))[0]}?",
                x=epochs,
                x_label="epoch",
                y_label=f"validation {terms.metric_words(name, better)}",
                lines=lines,
                alternative="At the end: "
                + ", ".join(f"{run.label} {_end(run.series(f'valid/{name}'))}" for run in runs)
                + ".",
            )
        )
    return drawn


def trials(order: Sequence[Outcome], metric: str, better: str) -> Curves:
    """Returns the validation metric by epoch of the best trials of a search.

    Args:
        order: the trials, best first.
        metric: that was searched for.
        better: 'min' or 'max'.
    """
    epochs = sorted({line["epoch"] or 0.0 for outcome in order for line in outcome.lines})
    lines = []
    for number, outcome in enumerate(order):
        values = {line["epoch"]: line.get(f"valid/{metric}") for line in outcome.lines}
        lines.append(Line(label=outcome.record.name, values=[values.get(epoch) for epoch in epochs], style=number))
    return Curves(
        title="How do the best trials learn?",
        x=epochs,
        x_label="epoch",
        y_label=f"validation {terms.metric_words(metric, better)}",
        lines=lines,
        alternative=f"Best validation values of {len(order)} trials: "
        + ", ".join(f"{outcome.record.name} {outcome.best:.4g}" for outcome in order)
        + ".",
        caption="A line that ends early belongs to a trial that was stopped, or that still trains.",
    )


def scatter(truth: np.ndarray, predicted: np.ndarray) -> Curves:
    """Returns test predictions over their truth."""
    error = float(np.abs(truth - predicted).mean())
    order = np.argsort(truth, kind="stable")
    count = min(len(order), MOST_POINTS)
    order = order[np.linspace(0, len(order) - 1, count).round().astype(int)]
    ends = (float(min(truth.min(), predicted.min())), float(max(truth.max(), predicted.max())))
    margin = 0.05 * (ends[1] - ends[0]) or 0.5
    some = f" {count} evenly spread ones of {len(truth)} samples are drawn." if count < len(truth) else ""
    return Curves(
        title="How close are the predictions to the truth?",
        x=_numbers(truth[order]),
        x_label="truth (units of the target)",
        y_label="prediction (units of the target)",
        lines=[Line(label="test samples", values=_numbers(predicted[order]), style=0)],
        low=ends[0] - margin,
        high=ends[1] + margin,
        scatter=True,
        alternative=f"Prediction against truth for {len(truth)} test samples; mean absolute error {error:.4g}.",
        caption=terms.TERMS["scatter"] + some,
    )


def _quantities(run: RunRecord) -> dict[str, tuple[str, str, str, float | None, float | None]]:
    """Question, label, explanation, and ends of the axis of each quantity."""
    weights = run.config.resolved_modulation.direction == "released"
    told = terms.TERMS
    return {
        "score": ("How well does each modality predict alone?", "score of the guide", told["score"], None, None),
        "grad_norm": ("How large is each encoder's gradient?", "gradient norm", told["grad_norm"], 0.0, None),
        "cosine": (
            "Do the gradients agree?",
            f"cosine of the {'weights' if weights else 'gradients'} of guide and fusion",
            told["cosine"],
            -1.0,
            1.0,
        ),
        "coefficient": (
            "How is each encoder's gradient scaled?",
            "coefficient, mean of the epoch",
            told["coefficient"],
            None,
            None,
        ),
        "clipped": (
            "How often was a modality clipped?",
            "share of the steps (%)",
            "A step is clipped for a modality that got worse in it and was counted as unchanged.",
            0.0,
            100.0,
        ),
    }


def _numbers(values: np.ndarray) -> list[Any]:
    return [float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None for value in values]


def _end(values: np.ndarray) -> str:
    return f"{values[-1]:.4g}"
