"""How a run shows itself in a notebook: its metrics and its curves."""

from __future__ import annotations

import html
import io
import re
from pathlib import Path

from tabulate import tabulate

from cggm_ray.core.figure_texts import without_formulas
from cggm_ray.report.figures import curves
from cggm_ray.report.run_record import read_run_record


def run_html(folder: Path) -> str:
    """Returns the metrics of a run, and the curves of its epochs if it has several, as HTML without scripts.

    Args:
        folder: of the run.

    Raises:
        UsageError: it is no folder of a run, or a file in it is damaged.
    """
    run = read_run_record(folder)
    parts = [f"<p><b>{html.escape(run.label)}</b> <code>{html.escape(str(folder))}</code></p>"]
    if run.result is not None:
        rows = [[name, f"{run.result.valid[name]:.4f}", f"{run.result.test[name]:.4f}"] for name in run.result.test]
        parts.append(tabulate(rows, ["", "valid", "test"], tablefmt="html", disable_numparse=True))
    if len(run.lines) > 1:
        figure, text = curves(run)
        drawn = io.StringIO()
        without_formulas(figure).savefig(drawn, format="svg")
        picture = re.sub(r"^.*?(?=<svg)", "", drawn.getvalue(), flags=re.DOTALL)
        label = html.escape(text, quote=True)
        parts.append(f'<div role="img" aria-label="{label}">{picture}</div>')
    return "\n".join(parts)
