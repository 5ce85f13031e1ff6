"""Pictures of a run by epoch: learning curves, what modulation saw and did. All can be read in black and white.

Modalities differ by colour, line and marker. The colours differ in lightness too.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cggm_ray.core.figure_texts import without_formulas
from cggm_ray.core.optional import require
from cggm_ray.report.run_record import RunRecord

DPI = 110
STYLES = (
    ("#12355b", "-", "o"),
    ("#d8702a", "--", "s"),
    ("#7fbf9a", "-.", "^"),
    ("#9b9b9b", ":", "D"),
    ("#7b2d6b", (0, (5, 1, 1, 1, 1, 1)), "v"),
    ("#b8a01f", (0, (8, 3)), "P"),
    ("#000000", (0, (1, 1)), "X"),
    ("#5fa8d3", (0, (3, 1, 1, 1)), "*"),
)
"""Colour, line and marker; they begin again after the last."""
MOST_MARKERS = 12
WIDE = 4.0
"""Coefficients beyond so many times rho are drawn on a symmetric logarithmic scale."""
TONES = 64
"""Colours of a picture file: few of them make it a third as large, and lines need no more."""


def png(figure: Figure, tones: int = TONES) -> bytes:
    """The picture as PNG."""
    images = require("PIL.Image", extra="images", purpose="pictures")

    buffer = io.BytesIO()
    without_formulas(figure).savefig(buffer, dpi=DPI, format="png")
    small = io.BytesIO()
    with images.open(buffer) as picture:
        picture.convert("RGB").quantize(tones).save(small, "png", optimize=True)
    return small.getvalue()


def curves(run: RunRecord) -> tuple[Figure, str]:
    """Losses of training and validation, and the validation metric that selects; the tested epoch is marked."""
    figure, (left, right) = _panels(2)
    epochs = run.series("epoch")
    for number, (name, label) in enumerate({"train/loss": "training", "valid/loss": "validation"}.items()):
        _line(left, epochs, run.series(name), label, number)
    left.set_ylabel("loss")
    metric = run.metric
    values = run.series(f"valid/{metric}")
    if metric == "loss":
        metric, values = "learning rate", run.series("lr")
        _line(right, epochs, values, metric, 0)
        right.set_ylabel(metric)
    else:
        _line(right, epochs, values, f"validation {metric}", 0)
        right.set_ylabel(f"validation {metric}")
    best, which = run.series("best_epoch")[-1], "last" if run.config.train.refit else "best"
    for panel in (left, right):
        if best > 0:
            panel.axvline(best, color="#777777", linewidth=1, linestyle=(0, (1, 2)), label=f"{which} epoch, {best:.0f}")
        _epochs(panel)
    _legend(figure, (left,))
    text = (
        f"Line plots over {len(epochs)} epochs. Training loss ends at {_number(run.series('train/loss')[-1])}, "
        f"validation loss at {_number(run.series('valid/loss')[-1])}; {metric} ends at {_number(values[-1])}."
    )
    return figure, text + (f" The {which} epoch is {best:.0f}." if best > 0 else "")


def compared(runs: Sequence[RunRecord], metric: str) -> tuple[Figure, str]:
    """The validation loss and the selecting metric of several runs."""
    figure, panels = _panels(1 if metric == "loss" else 2)
    for panel, name in zip(panels, ("loss", metric), strict=False):
        for number, run in enumerate(runs):
            _line(panel, run.series("epoch"), run.series(f"valid/{name}"), run.label, number)
        panel.set_ylabel(f"validation {name}")
        _epochs(panel)
    _legend(figure, panels[:1])
    return figure, f"Line plots of validation loss and validation {metric} by epoch for {len(runs)} runs."


def balance(run: RunRecord) -> tuple[Figure, str]:
    """By modality: the guide's score, the norm of the encoder's gradient, the cosine to the fused gradient."""
    weights = run.config.resolved_modulation.direction == "released"
    wanted = {
        "score": "score of the guide",
        "grad_norm": "gradient norm of the encoder",
        "cosine": f"cosine, guide's and fused {'weights' if weights else 'gradient'}",
    }
    shown = {quantity: label for quantity, label in wanted.items() if run.recorded(quantity)}
    figure, panels = _panels(max(1, len(shown)))
    epochs, words = run.series("epoch"), []
    for panel, (quantity, label) in zip(panels, shown.items(), strict=False):
        for number, name in enumerate(run.modalities):
            _line(panel, epochs, run.series(f"{quantity}/{name}"), name, number)
        panel.set_ylabel(label)
        if quantity == "cosine":
            panel.axhline(0, color="black", linewidth=0.8)
        if quantity == "grad_norm":
            panel.set_ylim(bottom=0)
        _epochs(panel)
        words.append(f"{label}: {_ends(run, quantity)}")
    _legend(figure, panels[:1])
    return figure, f"Line plots by modality over {len(epochs)} epochs, values at the end. " + "; ".join(words) + "."


def coefficients(run: RunRecord) -> tuple[Figure, str] | None:
    """Coefficients over time, and the share of steps in which a modality was clipped; None where there are none."""
    names = run.recorded("coefficient")
    if not names:
        return None
    clipped = bool(run.recorded("clipped"))
    figure, panels = _panels(2 if clipped else 1)
    epochs, rho = run.series("epoch"), run.config.modulation.rho
    values = [run.series(f"coefficient/{name}") for name in names]
    for number, (name, series) in enumerate(zip(names, values, strict=True)):
        _line(panels[0], epochs, series, name, number)
    equal = rho * (len(names) - 1) / len(names)
    panels[0].axhline(equal, color="#777777", linewidth=1, linestyle=(0, (1, 2)), label="equal improvements")
    if np.nanmax(np.abs(values)) > WIDE * rho:
        panels[0].set_yscale("symlog", linthresh=rho)
    panels[0].set_ylabel("coefficient B (mean of the epoch)")
    text = f"Line plot of the coefficients by modality; at the end {_ends(run, 'coefficient')}."
    if clipped:
        for number, name in enumerate(run.modalities):
            _line(panels[1], epochs, 100 * run.series(f"clipped/{name}"), name, number)
        panels[1].set_ylim(0, 100)
        panels[1].set_ylabel("steps that were clipped (%)")
        text += f" Share of clipped steps at the end: {_ends(run, 'clipped')}."
    for panel in panels:
        _epochs(panel)
    _legend(figure, panels[:1])
    return figure, text


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(3.7 * count if count > 1 else 4.6, 3.1), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False).flatten())


def _line(panel: Axes, epochs: np.ndarray, values: np.ndarray, label: str, number: int) -> None:
    colour, line, marker = STYLES[number % len(STYLES)]
    panel.plot(
        epochs,
        values,
        color=colour,
        linestyle=line,
        marker=marker,
        markersize=4,
        linewidth=1.6,
        markevery=max(1, -(-len(epochs) // MOST_MARKERS)),
        label=label,
    )


def _epochs(panel: Axes) -> None:
    panel.set_xlabel("epoch")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    panel.grid(alpha=0.25, linewidth=0.6)
    panel.xaxis.label.set_fontsize(9)
    panel.yaxis.label.set_fontsize(9)
    panel.tick_params(labelsize=8)


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend above all panels, where it covers nothing."""
    found: dict[str, Artist] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        figure.legend(
            list(found.values()),
            list(found),
            loc="outside upper center",
            ncols=min(5 if len(panels[0].figure.axes) > 1 else 3, len(found)),
            fontsize=8,
            frameon=False,
            handlelength=3.5,
        )


def _ends(run: RunRecord, quantity: str) -> str:
    return ", ".join(f"{name} {_number(run.series(f'{quantity}/{name}')[-1])}" for name in run.recorded(quantity))


def _number(value: float) -> str:
    return f"{value:.4g}"
