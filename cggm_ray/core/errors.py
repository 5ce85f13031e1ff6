"""Errors whose message is one line: it names the file and the field, the value that was found and the expected one."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable

from cggm_ray.core.mirrored import in_urls

LONGEST = 1000
"""Largest number of characters in a message."""


class CggmError(Exception):
    """A run failed. Programs end with `exit_code`."""

    exit_code = 1

    def __str__(self) -> str:
        """Returns one line, because file names, keys and values may hold line breaks and control codes of a terminal."""
        return one_line(in_urls(super().__str__()))


class UsageError(CggmError):
    """A flag, a configuration value or a combination of them is not valid. It is raised before any long work starts."""

    exit_code = 2


class DataError(UsageError):
    """An input file or array does not follow its format."""


class TrainingError(CggmError):
    """Training cannot continue. Everything that was saved before stays valid."""


class StorageError(TrainingError):
    """The folder of a run cannot be written or read any more, because it is full, read-only or gone."""


class StoppedError(CggmError):
    """The run saved its state and stopped, because a signal came or because its job was stopped.

    Args:
        message: one line that says how to go on.
        code: exit code of the program, 128 plus the signal's number.
    """

    def __init__(self, message: str, code: int = 143) -> None:
        super().__init__(message, code)
        self.exit_code = code

    def __str__(self) -> str:
        return in_urls(str(self.args[0]))


class NonFiniteError(TrainingError):
    """Loss or gradient is not finite. Every worker raises it before the optimizer steps."""


def one_line(text: str) -> str:
    """Removes line breaks and control characters, and shortens the text to `LONGEST` characters."""
    if len(text) > LONGEST:
        # The end says what was expected.
        text = f"{text[: LONGEST * 3 // 4]} [{len(text) - LONGEST:,} characters left out] {text[-LONGEST // 4 :]}"
    text = re.sub(r"\s*[\r\n]\s*", " ", text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def reason(error: OSError) -> str:
    """Returns why the system, or a store, refused something."""
    return error.strerror or one_line(str(error))


class _ShortRepr(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxother = self.maxlong = 80


_SHORT = _ShortRepr()


def short_repr(value: object) -> str:
    """Returns the beginning of the value's representation, for messages; large and recursive values are cut short."""
    return _SHORT.repr(value)


def listed(names: Iterable[object], most: int = 20, longest: int = 80) -> str:
    """Joins the first names and the number of the others; returns 'nothing' if there is no name.

    Args:
        names: texts, or values to be shown.
        most: names that are shown.
        longest: characters of a name that are shown.
    """
    texts = [short_repr(name) if not isinstance(name, str) else name[:longest] for name in names]
    more = len(texts) - most
    return (", ".join(texts[:most]) or "nothing") + (f" and {more} more" if more > 0 else "")
