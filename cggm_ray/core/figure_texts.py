"""Texts of matplotlib figures, which hold names that a person or a data file chose."""

from __future__ import annotations

from typing import Any


def without_formulas(figure: Any) -> Any:
    """Makes a figure show its texts as they are, and returns it.

    By default matplotlib reads what stands between two '$' as a formula, and raises a ValueError for one that it cannot parse.
    Numbers at logarithmic axes stay formulas, because matplotlib writes them so.

    Args:
        figure: a `matplotlib.figure.Figure` that is complete.
    """
    # Imported here, because commands that draw nothing do without it.
    from matplotlib.text import Text
    from matplotlib.ticker import FixedFormatter, FuncFormatter

    axes = [axis for panel in figure.axes for axis in (panel.xaxis, panel.yaxis)]
    numbered = [axis for axis in axes if not isinstance(axis.get_major_formatter(), FixedFormatter | FuncFormatter)]
    numbers = {label for axis in numbered for label in axis.get_ticklabels(which="both")}
    for text in figure.findobj(Text):
        if text not in numbers:
            text.set_parse_math(False)
    return figure
