"""Errors that a person can act on: one line that names the file, the field, what was found and what was expected."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable

LONGEST = 1000
"""Characters of a message."""


class CggmError(Exception):
    """A failure of a run. Programs end with `exit_code`."""

    exit_code = 1

    def __str__(self) -> str:
        """One line: file names, keys and values may hold line breaks and codes that move a terminal's cursor."""
        return one_line(super().__str__())


class UsageError(CggmError):
    """A flag, a configuration value or a combination of them cannot work. Raised before any long work starts."""

    exit_code = 2


class DataError(UsageError):
    """An input file or array is not what its format promises."""


class TrainingError(CggmError):
    """Training cannot go on. What was saved before stays valid."""


class StorageError(TrainingError):
    """The folder of a run cannot be written or read any more: full, read-only, or gone."""


class StoppedError(CggmError):
    """Somebody asked a run to stop, and it saved its state: a signal, or a job that is ended.

    Args:
        message: one line that says how to go on.
        code: exit code of the program, 128 plus the signal's number.
    """

    def __init__(self, message: str, code: int = 143) -> None:
        super().__init__(message, code)
        self.exit_code = code

    def __str__(self) -> str:
        return str(self.args[0])


class NonFiniteError(TrainingError):
    """Loss or gradient stopped being finite; raised on every worker before the optimizer steps."""


def one_line(text: str) -> str:
    """A text without line breaks and control characters, of at most `LONGEST` characters."""
    if len(text) > LONGEST:
        # The end says what was expected.
        text = f"{text[: LONGEST * 3 // 4]} [{len(text) - LONGEST:,} characters left out] {text[-LONGEST // 4 :]}"
    text = re.sub(r"\s*[\r\n]\s*", " ", text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _Shown(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxother = self.maxlong = 80


_SHOWN = _Shown()


def shown(value: object) -> str:
    """A value as messages show it: the beginning of it, however large it is and however often it holds itself."""
    return _SHOWN.repr(value)


def listed(names: Iterable[object], most: int = 20, longest: int = 80) -> str:
    """The first of some names, and how many there are more; 'nothing' where there is none.

    Args:
        names: texts, or values to be shown.
        most: names that are shown.
        longest: characters of a name that are shown.
    """
    texts = [shown(name) if not isinstance(name, str) else name[:longest] for name in names]
    more = len(texts) - most
    return (", ".join(texts[:most]) or "nothing") + (f" and {more} more" if more > 0 else "")
