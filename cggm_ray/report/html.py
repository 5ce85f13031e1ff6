"""What the templates of the page show. They escape every text that comes from a file."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table, drawn by `templates/parts.html`.

    Attributes:
        caption: of the table.
        head: of the columns.
        rows: cells; the first of a row heads it.
        marked: for every row whether it has the class 'differs'.
        name: id of the table.
        look: its class in the style sheet.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    marked: Sequence[bool] = ()
    name: str | None = None
    look: str | None = None


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture inside the page.

    Attributes:
        data: of a PNG file.
        alternative: what the picture shows, for those who cannot look at it.
        caption: below it.
    """

    data: bytes
    alternative: str
    caption: str

    @property
    def base64(self) -> str:
        """The file in the form that a page holds."""
        return base64.b64encode(self.data).decode()


@dataclass(frozen=True, kw_only=True)
class Case:
    """A test case of a segmentation: image, truth and prediction beside each other.

    Attributes:
        name: of the case.
        picture: of it.
        dice: region to Dice of the slice that is drawn; empty where it was not recorded.
        legend: classes and their colours.
    """

    name: str
    picture: Picture
    dice: Mapping[str, float]
    legend: Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A text that can be copied with a button.

    Attributes:
        title: what it is.
        text: itself.
        of: its form, and what it needs.
    """

    title: str
    text: str
    of: str = ""


def text(value: object) -> str:
    """A value as the text of a cell."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return "not finite"
        return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.4g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    # A value and its deviation stay in one line.
    return "-" if value is None else str(value).replace(" ± ", "\u00a0±\u00a0")


def plain(value: object) -> object:
    """Returns a value that a cell can show: itself, or its text."""
    return value if isinstance(value, str | int | float | bool | list | None) else str(value)


def quantity(value: object) -> bool:
    """Whether a cell is aligned as a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def digest(script: str) -> str:
    """A script as the policy of a page names it, so that a browser runs this one and no other."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def render(template: str, content: Mapping[str, Any]) -> str:
    """A page from its template in the folder `templates`; a name that the content lacks is an error."""
    pages = Environment(loader=PackageLoader(__package__), autoescape=True, undefined=StrictUndefined)
    pages.filters["text"], pages.filters["digest"], pages.tests["quantity"] = text, digest, quantity
    defaults = {"live": "", "plots": False, "sortable": False}
    return pages.get_template(template).render({**defaults, **content}) + "\n"
