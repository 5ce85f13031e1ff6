"""Numbers in texts: the decimal mark of a table, marks between thousands, signs of currencies and per cent."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cggm_ray.core.errors import short_repr
from cggm_ray.data.datasets.table.cells import Cells, Rows, is_number, is_text
from cggm_ray.data.datasets.table.kinds import MOSTLY

POINT, COMMA = ".", ","
FEW_ROWS = 10
"""In fewer cells than this all must look like a number."""
LARGEST = float(np.finfo(np.float32).max)
_GAPS = "' \u00a0\u202f\u2019"
"""Spaces and apostrophes that may stand between thousands."""
_CURRENCIES = "$\u20ac\u00a3\u00a5"
_SIGNS = f"[%{_CURRENCIES}]"
_OTHER = {POINT: COMMA, COMMA: POINT}


def number_pattern(decimal: str) -> str:
    """Returns the pattern of a number in a text: 12, -0.5, 1e-3, 1,234.5, $5, 7 %, and with a decimal comma 0,5 and 1.234,5."""
    mark, between = (rf"\{COMMA}", rf"[{POINT}{_GAPS}]") if decimal == COMMA else (rf"\{POINT}", rf"[{COMMA}{_GAPS}]")
    thousands = rf"[1-9]\d{{0,2}}({between}\d{{3}})+({mark}\d*)?"
    before = rf"([+-]?[{_CURRENCIES}]?|[{_CURRENCIES}]\s?[+-])\s?"
    return rf"^\s*{before}({thousands}|\d+{mark}?\d*|{mark}\d+)([eE][+-]?\d+)?\s?{_SIGNS}?\s*$"


def decimal_mark(rows: Rows, left_out: Collection[str]) -> tuple[str, list[str]]:
    """Returns the decimal mark of the numbers in the texts of a table, and lines for the user where it is not plain.

    A comma is the mark where a column has numbers such as 0,5 or 1.234,5, which a decimal point cannot mean, and none has
    such as 0.5. What may be either, as 1,234, is read with the mark of the other columns, or as thousands.

    Args:
        rows: of the table.
        left_out: columns that are not looked at.
    """
    told: dict[str, tuple[str, str]] = {}
    unclear: tuple[str, str] | None = None
    for name in rows.table.column_names:
        values = rows.cells(name).values.drop_null()
        if name in left_out or not is_text(values.type) or not len(values):
            continue
        fits = {mark: pc.match_substring_regex(values, number_pattern(mark)) for mark in (POINT, COMMA)}
        for mark, good in fits.items():
            alone = values.filter(pc.and_not(good, fits[_OTHER[mark]]))
            if mostly(good) and len(alone):
                told.setdefault(mark, (name, alone[0].as_py()))
        both = values.filter(pc.and_(pc.and_(*fits.values()), pc.match_substring_regex(values, r"\d,\d")))
        if len(both) and mostly(fits[COMMA]):
            unclear = unclear or (name, both[0].as_py())
    if COMMA in told and POINT in told:
        (name, text), (other, found) = told[COMMA], told[POINT]
        return POINT, [
            f"decimal point, because of {short_repr(found)} in column {other}; so {short_repr(text)} in column {name} is no "
            f"number (--decimal , reads it as one)"
        ]
    if COMMA in told:
        name, text = told[COMMA]
        return COMMA, [
            f"decimal comma, because of {short_repr(text)} in column {name} (--decimal . reads it as a text)"
        ]
    if unclear is not None and POINT not in told:
        name, text = unclear
        return POINT, [
            f"{short_repr(text)} in column {name} is read as thousands (--decimal , reads the comma as decimal)"
        ]
    return POINT, []


def mostly(good: pa.Array) -> bool:
    """Returns whether so many cells look like a number that the others are wrong cells."""
    return float(pc.mean(good.cast(pa.float64())).as_py()) >= (MOSTLY if len(good) >= FEW_ROWS else 1)


def as_numbers(cells: Cells, decimal: str, instead: str | None = None) -> pa.Array:
    """Returns cells as float64, with nulls for missing ones.

    Args:
        cells: numbers, or texts that mean numbers.
        decimal: mark of the texts, a point or a comma.
        instead: flag that takes other cells, for messages; default the one that makes an input categorical.

    Raises:
        DataError: a cell holds no number, or one that single precision cannot hold.
    """
    values, instead = cells.values, instead or f"--column {cells.name}=categorical"
    if is_text(values.type):
        good = pc.fill_null(pc.match_substring_regex(values, number_pattern(decimal)), True)
        wrong = np.flatnonzero(~good.to_numpy(zero_copy_only=False))
        if len(wrong):
            raise cells.wrong(int(wrong[0]), f"a number (or {instead})")
        sign = sign_of(cells)
        if sign is not None:
            check_sign(cells, sign, instead)
        values = pc.replace_substring_regex(values, rf"[{_OTHER[decimal]}{_GAPS}\s+]|{_SIGNS}", "")
        values = pc.replace_substring(values, COMMA, POINT)
    elif not is_number(values.type) and not pa.types.is_null(values.type):
        raise cells.wrong(int(np.flatnonzero(cells.there)[0]), "a number")
    numbers = (
        values.cast(pa.int8()).cast(pa.float64()) if pa.types.is_boolean(values.type) else values.cast(pa.float64())
    )
    filled = pc.fill_null(numbers, 0.0).to_numpy(zero_copy_only=False)
    large = np.flatnonzero(~(np.abs(filled) <= LARGEST))
    if len(large):
        raise cells.wrong(int(large[0]), "a finite number of at most 3.4e38")
    return numbers


def sign_of(cells: Cells) -> str | None:
    """Returns the sign of a currency or per cent that the numbers of a column have; None where they have none."""
    if not is_text(cells.values.type):
        return None
    signs = _signs(cells).drop_null()
    return str(signs[0].as_py()) if len(signs) else None


def check_sign(cells: Cells, sign: str, instead: str | None = None) -> None:
    """Raises a DataError where some numbers have another sign: 5 of one currency is not 5 of another.

    Args:
        cells: of a column of numbers.
        sign: of the others.
        instead: flag that takes other cells, as `as_numbers` has it.
    """
    if not is_text(cells.values.type):
        return
    differs = pc.fill_null(pc.not_equal(_signs(cells), sign), False).to_numpy(zero_copy_only=False)
    if differs.any():
        or_else = instead or f"--column {cells.name}=categorical"
        raise cells.wrong(int(np.flatnonzero(differs)[0]), f"a number with {sign}, as in other rows (or {or_else})")


def _signs(cells: Cells) -> pa.Array:
    """Returns the sign of each cell, which is null where there is none."""
    return pc.struct_field(pc.extract_regex(cells.values, rf"(?P<sign>{_SIGNS})"), ["sign"])
