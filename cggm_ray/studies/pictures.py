"""Pictures of a search: the metric against every parameter, rho against lambda, and the learning curves.

They are readable in black and white: finished trials are filled circles, stopped ones open, failed ones crosses.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from cggm_ray.core.figure_texts import without_formulas
from cggm_ray.storage.files import write_folder
from cggm_ray.studies.parameters import Parameter
from cggm_ray.studies.space import Search
from cggm_ray.studies.store import FINISHED, STOPPED, Outcome, ranked

DPI = 150
BEST, OTHERS = "#c1272d", "#3b5b92"
NAMES = {"rho": r"$\rho$", "lam": r"$\lambda$", "lr": "learning rate", "cls_lr": "learning rate of the guides"}


def draw_search(folder: Path, search: Search, found: Sequence[Outcome], metric: str, mode: str) -> None:
    """Writes the pictures of a search.

    Args:
        folder: for the pictures; replaced if it is there.
        search: names the parameters.
        found: the trials.
        metric: validation metric that was searched for.
        mode: 'min' or 'max'.
    """
    order = ranked(found, mode)
    figures = {"parameters.png": _parameters(search, order, metric), "curves.png": _curves(found, order, metric)}
    pair = [p for key in ("rho", "lam") for p in search.space if p.key == key]
    if len(pair) == 2:
        figures["rho_lambda.png"] = _heat_map(pair[0], pair[1], order, metric, mode)

    def write(partial: Path) -> None:
        for name, figure in figures.items():
            without_formulas(figure).savefig(partial / name, dpi=DPI)

    write_folder(folder, write)


def _parameters(search: Search, order: Sequence[Outcome], metric: str) -> Figure:
    """Draws one panel per parameter."""
    columns = min(3, len(search.space))
    rows = -(-len(search.space) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.0 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel in panels[len(search.space) :]:
        panel.set_axis_off()
    for panel, parameter in zip(panels, search.space, strict=False):
        shown = [outcome for outcome in order if parameter.key in outcome.record.values]
        labels = None
        values: Sequence[Any] = [outcome.record.values[parameter.key] for outcome in shown]
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in parameter.values):
            labels = [str(value) for value in parameter.values]
            values = [labels.index(str(value)) for value in values]
            panel.set_xticks(range(len(labels)), labels)
        _marks(panel, values, [outcome.best for outcome in shown], shown, order)
        if labels is None:
            _scale(panel.xaxis, parameter)
        panel.set_xlabel(NAMES.get(parameter.key, parameter.key))
        panel.set_ylabel(f"best validation {metric}")
    _legend(panels[0], order)
    return figure


def _curves(found: Sequence[Outcome], order: Sequence[Outcome], metric: str) -> Figure:
    """Draws the validation metric by epoch, with a mark at the end of a curve that stopped early."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    panel = figure.subplots()
    best = order[0] if order else None
    for outcome in sorted(found, key=lambda o: o is best):
        if not outcome.lines:
            continue
        epochs = np.array([line["epoch"] for line in outcome.lines], dtype=float)
        values = np.array([line[f"valid/{metric}"] for line in outcome.lines], dtype=float)
        colour, width = (BEST, 2.2) if outcome is best else (OTHERS, 0.9)
        panel.plot(epochs, values, color=colour, linewidth=width, alpha=1 if outcome is best else 0.6)
        _marks(panel, [epochs[-1]], [values[-1]], [outcome], order)
    panel.set_xlabel("epoch")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_ylabel(f"validation {metric}")
    # The first epochs of a trial that goes wrong would squeeze all others.
    finite = [v for outcome in found for line in outcome.lines if (v := line[f"valid/{metric}"]) is not None]
    if finite:
        low, high = np.percentile(finite, [0, 98])
        margin = 0.05 * (high - low) or 0.05
        panel.set_ylim(low - margin, high + margin)
    _legend(panel, order)
    return figure


def _heat_map(x: Parameter, y: Parameter, order: Sequence[Outcome], metric: str, mode: str) -> Figure:
    """Draws the metric over two parameters, as cells if both have few values, otherwise as coloured points."""
    figure = Figure(figsize=(5.4, 4.2), layout="constrained")
    panel = figure.subplots()
    # Darker is better, also in black and white.
    shades: ScalarMappable
    colours = "viridis" if mode == "min" else "viridis_r"
    if all(p.kind in ("grid", "choice") for p in (x, y)):
        cells = np.full((len(y.values), len(x.values)), np.nan)
        for row, column in itertools.product(range(len(y.values)), range(len(x.values))):
            point = (x.values[column], y.values[row])
            there = [o.best for o in order if (o.record.values[x.key], o.record.values[y.key]) == point]
            if there:
                cells[row, column] = there[0]
                panel.text(column, row, f"{there[0]:.3f}", ha="center", va="center", fontsize=8, bbox=_PAPER)
        shades = panel.imshow(cells, cmap=colours, origin="lower", aspect="auto")
        panel.set_xticks(range(len(x.values)), [f"{value:g}" for value in x.values])
        panel.set_yticks(range(len(y.values)), [f"{value:g}" for value in y.values])
    else:
        points = [(o.record.values[x.key], o.record.values[y.key]) for o in order]
        across, up = zip(*points, strict=True) if points else ((), ())
        sizes = [110 if outcome.record.status == FINISHED else 35 for outcome in order]
        best = np.array([outcome.best for outcome in order], dtype=float)
        shades = panel.scatter(across, up, c=best, cmap=colours, s=sizes, edgecolors="black")
        for size, label in ((110, "all epochs"), (35, "stopped early")):
            panel.scatter([], [], s=size, facecolors="none", edgecolors="black", label=label)
        panel.scatter(across[:1], up[:1], s=280, facecolors="none", edgecolors=BEST, linewidths=2, label="best")
        figure.legend(loc="outside upper center", ncols=3, fontsize=8)
        _scale(panel.xaxis, x)
        _scale(panel.yaxis, y)
    panel.set_xlabel(NAMES[x.key])
    panel.set_ylabel(NAMES[y.key])
    figure.colorbar(shades, label=f"best validation {metric}")
    return figure


_PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 1.5, "alpha": 0.8}


def _marks(
    panel: Axes, x: Sequence[Any], y: Sequence[Any], outcomes: Sequence[Outcome], order: Sequence[Outcome]
) -> None:
    for across, up, outcome in zip(x, y, outcomes, strict=True):
        colour = BEST if order and outcome is order[0] else OTHERS
        style = {FINISHED: ("o", colour), STOPPED: ("o", "white")}.get(outcome.record.status, ("X", colour))
        panel.plot(across, up, marker=style[0], markerfacecolor=style[1], markeredgecolor=colour, markersize=6, ls="")


def _legend(panel: Axes, order: Sequence[Outcome]) -> None:
    for label, (marker, face) in {"all epochs": ("o", OTHERS), "stopped early": ("o", "white")}.items():
        panel.plot([], [], marker=marker, markerfacecolor=face, markeredgecolor=OTHERS, ls="", label=label)
    if order:
        panel.plot([], [], marker="o", color=BEST, ls="", label=f"best: {order[0].record.name}")
    panel.legend(fontsize=7, framealpha=0.9)


def _scale(axis: Axis, parameter: Parameter) -> None:
    """Sets the axis to the whole range of a parameter, logarithmic if its draws were or if it spans a wide range."""
    low, high = min(parameter.values), max(parameter.values)
    if parameter.kind == "loguniform" or (low > 0 and high / low > 20):
        is_x = axis is axis.axes.xaxis
        (axis.axes.set_xscale if is_x else axis.axes.set_yscale)("log")
        margin = (high / low) ** 0.05
        (axis.axes.set_xlim if is_x else axis.axes.set_ylim)(low / margin, high * margin)
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 30 else (1, 3)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
