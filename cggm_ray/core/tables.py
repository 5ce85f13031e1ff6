"""Formats all tables that commands print in a terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from cggm_ray.core.errors import one_line
from cggm_ray.core.mirrored import in_urls


def text_table(rows: Sequence[Sequence[object]], head: Sequence[str] = (), *, markdown: bool = False) -> str:
    """Returns a table of names and numbers in columns that line up, as text without a line break at the end.

    Args:
        rows: cells of the same number in each row; a float is shown with four digits, and None as nothing.
        head: of the columns; empty for none.
        markdown: draws the table in Markdown, columns to the left. Otherwise the first column stands to the left and the
            others to the right.
    """
    # Imported here, because a run prints its first lines sooner without it.
    from tabulate import tabulate

    cells = [["" if c is None else f"{c:.4f}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    if markdown:
        return tabulate(cells, head, tablefmt="github", disable_numparse=True)
    align = ["left", *["right"] * (max(map(len, [*rows, head])) - 1)]
    return tabulate(cells, head, tablefmt="plain", disable_numparse=True, colalign=align)


def markdown_text(text: str) -> str:
    """Returns a text as Markdown for one line, with no markup: no element, link, emphasis, code or cell of a table."""
    return re.sub(r"[&<>`|*~\[\]]", lambda found: f"&#{ord(found[0])};", one_line(text))


def markdown_code(text: str) -> str:
    """Returns a text as code in a line of Markdown; a backtick, which would end the code, becomes an apostrophe."""
    return f"`{one_line(text).replace('`', chr(39))}`"


def listing(places: Mapping[str, object]) -> str:
    """Returns the line of a result: its name and its path or URL. Lines of several calls line up."""
    return "\n".join(f"{what + ':':<19} {in_urls(str(place))}" for what, place in places.items())
