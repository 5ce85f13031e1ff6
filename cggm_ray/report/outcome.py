"""Pictures of what a run came to: subsets of modalities with their Shapley values, and its test predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from cggm_ray.core.optional import require
from cggm_ray.report import html
from cggm_ray.report.curves import scatter
from cggm_ray.report.figures import STYLES, png
from cggm_ray.report.run_record import RunRecord
from cggm_ray.runs.contributions import Contributions, Subset
from cggm_ray.tasks.metrics import confusion_counts

MOST_BARS = 32
"""Beyond it only the subsets of no, one, all but one and all modalities get a bar; the table has all."""
NUMBERED_CLASSES, NAMED_CLASSES = 12, 30
"""Confusion matrices up to these sizes have counts in their cells, and names at their axes."""
MOST_CASES, MOST_SHOWN = 3, 12
"""Test cases in the picture beside the page, and on the page."""
LONGEST = 22
"""Characters of a name in a picture."""


def subset_bars(found: Contributions) -> tuple[Figure, str]:
    """The score of every subset, and the Shapley value of every modality."""
    shown = [subset for subset in found.scores if has_bar(found, subset)]
    shown.sort(key=len)
    height = max(2.6, 0.24 * len(shown) + 1.1)
    figure = _figure(8.4, height)
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    scores = np.array([found.scores[subset] for subset in shown])
    _bars(left, scores, [subset_name(found, subset) for subset in shown], ["" if len(s) % 2 else "///" for s in shown])
    way = "lower" if found.better == "min" else "higher"
    left.set_xlabel(f"{split_name(found)} {found.metric} with only these ({way} is better)")
    values = found.shapley
    numbers = np.array([values[name] for name in found.modalities])
    _bars(right, numbers, [_short(name) for name in found.modalities], ["..."] * len(values))
    right.axvline(0, color="black", linewidth=0.8)
    right.set_xlabel(f"Shapley value ({found.metric})")
    ranked = sorted(values, key=lambda name: -values[name])
    text = (
        f"Bar charts of the {split_name(found)} {found.metric} of {len(shown)} subsets of modalities, from "
        f"{scores[0]:.4g} with none to {scores[-1]:.4g} with all, and of the Shapley values: "
        + ", ".join(f"{name} {values[name]:.4g}" for name in ranked)
        + "."
    )
    return figure, text


def predictions(run: RunRecord) -> tuple[Figure, str] | None:
    """Test predictions: a confusion matrix, a scatter, or the pictures that a segmentation left; None without any."""
    if run.truth is None or run.predicted is None:
        return _cases(run.pictures[:MOST_CASES]) if run.pictures else None
    if not run.classes:
        finite = np.isfinite(run.truth) & np.isfinite(run.predicted)
        return _scatter(run.truth[finite], run.predicted[finite]) if finite.any() else None
    return _confusion(run.truth, run.predicted, run.classes)


def shown_predictions(run: RunRecord) -> dict[str, Any] | None:
    """Returns the test predictions as the page shows them, as points, counts of classes, or cases; None without any."""
    shown: dict[str, Any] = dict.fromkeys(("scatter", "picture", "confusion", "cases"))
    if run.truth is None or run.predicted is None:
        shown["cases"] = cases(run)
    elif not run.classes:
        finite = np.isfinite(run.truth) & np.isfinite(run.predicted)
        shown["scatter"] = scatter(run.truth[finite], run.predicted[finite]) if finite.any() else None
    else:
        figure, words = _confusion(run.truth, run.predicted, run.classes)
        if len(run.classes) > NAMED_CLASSES:
            shown["picture"] = html.Picture(data=png(figure), alternative=words, caption=words)
        else:
            rows = _shaded(run.truth, run.predicted, run.classes)
            shown["confusion"] = {"names": run.classes, "rows": rows, "words": words}
    return shown if any(shown.values()) else None


def cases(run: RunRecord) -> list[html.Case]:
    """Returns the pictures of test cases with what is known of each."""
    return [
        html.Case(
            name=path.stem,
            picture=html.Picture(
                data=path.read_bytes(),
                alternative=f"Image, truth and prediction beside each other for the test case {path.stem}.",
                caption="",
            ),
            dice=run.case_notes.get("dice", {}).get(path.stem, {}),
            legend=tuple((str(name), str(colour)) for name, colour in run.case_notes.get("legend", ())),
        )
        for path in run.pictures[:MOST_SHOWN]
    ]


def _shaded(truth: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> list[list[tuple[int, int]]]:
    """Counts with their share of the true class in percent."""
    counts = _counts(truth, predicted, len(names))
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return [
        [(int(count), round(float(share))) for count, share in zip(row, part, strict=True)]
        for row, part in zip(counts, shares, strict=True)
    ]


def _counts(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    found = confusion_counts(torch.from_numpy(truth), torch.from_numpy(predicted), classes, None)
    counts: np.ndarray = found.reshape(classes, classes).long().numpy()
    return counts


def _scatter(truth: np.ndarray, predicted: np.ndarray) -> tuple[Figure, str]:
    figure = _figure(4.6, 4.2)
    panel = figure.subplots()
    low, high = float(min(truth.min(), predicted.min())), float(max(truth.max(), predicted.max()))
    margin = 0.05 * (high - low) or 0.5
    panel.plot([low, high], [low, high], color="black", linewidth=1, linestyle="--", label="prediction = truth")
    panel.scatter(truth, predicted, s=12, facecolors="none", edgecolors=STYLES[0][0], alpha=0.6, linewidths=0.8)
    panel.set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin), aspect="equal")
    panel.set_xlabel("truth (units of the target)")
    panel.set_ylabel("prediction (units of the target)")
    panel.grid(alpha=0.25, linewidth=0.6)
    figure.legend(loc="outside upper center", fontsize=8, frameon=False)
    error = float(np.abs(truth - predicted).mean())
    return (
        figure,
        f"Scatter of prediction against truth for {len(truth)} test samples; mean absolute error {error:.4g}.",
    )


def _confusion(truth: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> tuple[Figure, str]:
    classes = len(names)
    counts = _counts(truth, predicted, classes)
    totals = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    size = min(8.0, 2.6 + 0.42 * classes)
    figure = _figure(size + 1.6, size)
    panel = figure.subplots()
    shades = panel.imshow(100 * shares, cmap="Greys", vmin=0, vmax=100)
    figure.colorbar(shades, label="share of the true class (%)", shrink=0.8)
    if classes <= NUMBERED_CLASSES:
        for row, column in np.ndindex(*counts.shape):
            colour = "white" if shares[row, column] > 0.5 else "black"
            panel.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=8)
    if classes <= NAMED_CLASSES:
        ticks = [_short(name) for name in names]
        panel.set_xticks(range(classes), ticks, rotation=90 if max(map(len, ticks)) > 3 else 0, fontsize=8)
        panel.set_yticks(range(classes), ticks, fontsize=8)
    panel.set_xlabel("predicted class")
    panel.set_ylabel("true class")
    right = int(counts.diagonal().sum())
    return figure, f"Confusion matrix of {classes} classes: {right} of {int(counts.sum())} test samples are right."


def _cases(pictures: Sequence[Path]) -> tuple[Figure, str]:
    images = require("PIL.Image", extra="images", purpose="pictures")

    figure = _figure(7.2, 2.5 * len(pictures) + 0.2)
    panels = figure.subplots(len(pictures), 1, squeeze=False).flatten()
    for panel, path in zip(panels, pictures, strict=True):
        with images.open(path) as picture:
            panel.imshow(np.asarray(picture.convert("RGB")))
            width = picture.width
        panel.set_xticks([width * part / 6 for part in (1, 3, 5)], ["image", "truth", "prediction"], fontsize=8)
        panel.set_yticks([])
        panel.tick_params(length=0)
        panel.set_ylabel(_short(path.stem), fontsize=8)
    return figure, f"Image, truth and prediction beside each other for {len(pictures)} test cases."


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06))


def _bars(panel: Axes, values: np.ndarray, names: Sequence[str], hatches: Sequence[str]) -> None:
    """Horizontal bars from the top, each with its value."""
    finite = np.where(np.isfinite(values), values, 0.0)
    bars = panel.barh(range(len(names)), finite, color="#c9d6e3", edgecolor="black", linewidth=0.8, height=0.7)
    for bar, hatch in zip(bars, hatches, strict=True):
        bar.set_hatch(hatch)
    panel.bar_label(bars, [f"{v:.3g}" if np.isfinite(v) else "not defined" for v in values], padding=3, fontsize=8)
    panel.set_yticks(range(len(names)), names, fontsize=8)
    panel.invert_yaxis()
    # Room for the numbers at the ends of the bars, on both sides where there are negative ones.
    low, high = min(0.0, float(finite.min())), max(0.0, float(finite.max()))
    room = 0.35 * (high - low) or 1.0
    panel.set_xlim(low - 1.3 * room if low < 0 else 0.0, high + room if high > 0 or low == 0 else 0.0)
    panel.xaxis.set_major_locator(MaxNLocator(5))
    panel.xaxis.label.set_fontsize(9)
    panel.tick_params(axis="x", labelsize=8)


def has_bar(found: Contributions, subset: Subset) -> bool:
    """Returns whether a subset is drawn; of many modalities only some are."""
    edges = (0, 1, len(found.modalities) - 1, len(found.modalities))
    return len(found.scores) <= MOST_BARS or len(subset) in edges


def subset_name(found: Contributions, subset: Subset) -> str:
    """Returns what a subset is called in a picture."""
    names = found.names(subset)
    if len(names) == len(found.modalities):
        return "all"
    if len(names) > 3:
        return "all but " + ", ".join(_short(name) for name in found.modalities if name not in subset)
    return " + ".join(_short(name) for name in names) or "none"


def split_name(found: Contributions) -> str:
    """Returns the split on which subsets were scored, as a word."""
    return {"valid": "validation"}.get(found.split, found.split)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
