"""Charts that the page draws itself, from HTML and SVG: places are in percent of the width, so text keeps its size.

`templates/charts.html` draws them. Each has a sentence for those who cannot look at it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from cggm_ray.report import html
from cggm_ray.studies.importance import is_number
from cggm_ray.studies.parameters import Parameter
from cggm_ray.studies.store import STOPPED, Outcome

HEIGHT, TOP, BOTTOM = 300, 34, 30
"""Of the axes of parallel coordinates, in pixels."""
WIDEST = 96
"""Pixels that an axis of parallel coordinates needs at least."""


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A number at an axis, and where it stands in percent."""

    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis from 0 to 100 percent.

    Attributes:
        low, high: values at its ends.
        ticks: numbers at it.
        label: what it shows, with unit and direction.
        zero: where 0 stands in percent; None where it is outside.
    """

    low: float
    high: float
    ticks: Sequence[Tick]
    label: str
    zero: float | None

    def at(self, value: float) -> float:
        """Returns where a value stands, in percent."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)


def axis(values: Sequence[float], label: str, *, zero: bool = False) -> Axis:
    """Returns an axis on which all values have room.

    Args:
        values: those that are not finite are left out.
        label: what it shows.
        zero: the axis has 0 on it.
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min([*finite, *([0.0] if zero else [])]), max([*finite, *([0.0] if zero else [])])
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    low, high = low - margin, high + margin
    numbers = [float(tick) for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
    made = Axis(low=low, high=high, ticks=(), label=label, zero=None)
    ticks = [Tick(at=made.at(tick), text=f"{tick:.6g}") for tick in numbers]
    return Axis(low=low, high=high, ticks=ticks, label=label, zero=made.at(0.0) if low <= 0 <= high else None)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of a strip: marks on the axis, each with the words that a pointer shows.

    Attributes:
        label: of the row.
        text: beside the marks.
        points: place in percent, and words.
        mean: place of the mean; None for none.
        interval: places of its ends; None for none.
        bar: where a bar begins and how wide it is; None for none.
    """

    label: str
    text: str
    points: Sequence[tuple[float, str]] = ()
    mean: float | None = None
    interval: tuple[float, float] | None = None
    bar: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Strip:
    """Rows over one axis.

    Attributes:
        title: the question that the picture answers.
        axis: of all rows.
        rows: from the top.
        alternative: what it shows, in a sentence.
        caption: below it.
    """

    title: str
    axis: Axis
    rows: Sequence[Row]
    alternative: str
    caption: str = ""


def bars(
    title: str,
    values: Mapping[str, float],
    label: str,
    alternative: str,
    caption: str = "",
    beside: Sequence[float] = (),
    words: Callable[[float], str] = html.text,
) -> Strip:
    """Returns horizontal bars from 0, each with its value; one that is not finite has none.

    Args:
        title: the question that the picture answers.
        values: by name, from the top.
        label: of the axis.
        alternative: what it shows, in a sentence.
        caption: below it.
        beside: values of the same picture of other runs, for which the axis has room too.
        words: makes the text of a value.
    """
    scale = axis([*values.values(), *beside], label, zero=True)
    rows = []
    for name, value in values.items():
        bar = None
        if math.isfinite(value):
            ends = sorted((scale.at(0.0), scale.at(value)))
            bar = (ends[0], round(ends[1] - ends[0], 2))
        rows.append(Row(label=name, text=words(float(value)), bar=bar))
    return Strip(title=title, axis=scale, rows=rows, alternative=alternative, caption=caption)


@dataclass(frozen=True, kw_only=True)
class Coordinate:
    """An axis of parallel coordinates: its name, its place in percent, and ticks with a height in pixels."""

    name: str
    at: float
    ticks: Sequence[Tick]


@dataclass(frozen=True, kw_only=True)
class Path:
    """A trial as a line through all axes.

    Attributes:
        name: of the trial.
        rank: from 1, the best one.
        stopped: whether it was stopped early.
        words: its values.
        pieces: x and y of the ends of each piece, in percent and pixels.
    """

    name: str
    rank: int
    stopped: bool
    words: str
    pieces: Sequence[tuple[float, float, float, float]]


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """Parallel coordinates: an axis for each parameter and one for the metric, which is the last."""

    title: str
    axes: Sequence[Coordinate]
    paths: Sequence[Path]
    alternative: str
    caption: str
    height: int = HEIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM
    width: int = field(default=0)


def parallel(space: Sequence[Parameter], order: Sequence[Outcome], metric: str, caption: str) -> Parallel:
    """Returns the trials of a search as lines through an axis for each parameter.

    A line has a gap where a trial has no such parameter. Numbers over a wide range have a logarithmic axis.

    Args:
        space: the parameters.
        order: trials that have a value, best first.
        metric: name of the last axis.
        caption: below the picture.
    """
    scales = [_scale(parameter, order) for parameter in space]
    results = np.array([outcome.best for outcome in order], dtype=float)
    # A trial that diverged would press all others together: it is drawn at the end of the axis.
    ends = (float(results.min()), float(np.percentile(results, 90)))
    if order[0].best == results.max():
        ends = (float(np.percentile(results, 10)), float(results.max()))
    last = _Scale(key=metric, low=ends[0], high=ends[1])
    step = 100 / (len(scales) + 1)
    places = [round(step * (number + 0.5), 2) for number in range(len(scales) + 1)]
    paths = []
    for rank, outcome in enumerate(order, start=1):
        values = outcome.record.values
        heights = [scale.height(values.get(scale.key)) for scale in scales] + [last.height(outcome.best)]
        corners = list(zip(places, heights, strict=True))
        words = ", ".join(f"{key} {_said(value)}" for key, value in values.items())
        paths.append(
            Path(
                name=outcome.record.name,
                rank=rank,
                stopped=outcome.record.status == STOPPED,
                words=f"{outcome.record.name}: {metric} {_said(outcome.best)}; {words}",
                pieces=[
                    (x1, y1, x2, y2)
                    for (x1, y1), (x2, y2) in itertools.pairwise(corners)
                    if y1 is not None and y2 is not None
                ],
            )
        )
    drawn = [scale.coordinate(place) for scale, place in zip([*scales, last], places, strict=True)]
    best = ", ".join(f"{key} {_said(value)}" for key, value in order[0].record.values.items())
    return Parallel(
        title="Which values lead to a good result?",
        axes=drawn,
        paths=paths,
        alternative=f"Parallel coordinates of {len(order)} trials over {len(scales)} parameters and {metric}. The best trial "
        f"has {best}.",
        caption=caption,
        width=WIDEST * (len(scales) + 1),
    )


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """Where the values of a parameter stand on its axis."""

    key: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    names: tuple[str, ...] = ()

    def height(self, value: Any) -> float | None:
        """Returns where a value stands in pixels from the top; None for no value."""
        if value is None:
            return None
        if self.names:
            part = (self.names.index(str(value)) + 0.5) / len(self.names)
        elif self.log:
            part = math.log(value / self.low) / math.log(self.high / self.low) if self.high > self.low else 0.5
        else:
            part = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(HEIGHT - BOTTOM - min(1.0, max(0.0, part)) * (HEIGHT - TOP - BOTTOM), 1)

    def coordinate(self, place: float) -> Coordinate:
        """Returns the axis with its ticks."""
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        values: Sequence[Any] = self.names or list(dict.fromkeys((self.low, middle, self.high)))
        ticks = [Tick(at=self.height(value) or 0.0, text=_said(value) or "default") for value in values]
        return Coordinate(name=self.key, at=place, ticks=ticks)


def _scale(parameter: Parameter, order: Sequence[Outcome]) -> _Scale:
    if not is_number(parameter):
        return _Scale(key=parameter.key, names=tuple(str(value) for value in parameter.values))
    # Population based training moves values out of the range that the search draws from.
    moved = [outcome.record.values[parameter.key] for outcome in order if parameter.key in outcome.record.values]
    low, high = min([*parameter.values, *moved]), max([*parameter.values, *moved])
    log = low > 0 and (parameter.kind == "loguniform" or high / low > 20)
    return _Scale(key=parameter.key, low=low, high=high, log=log)


def _said(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "none" if value is None else str(value)
