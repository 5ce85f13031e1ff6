"""What an input of `fuzz.py` is."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Seed:
    """A whole file.

    Attributes:
        group: row of the table.
        role: of `fuzz_readers.READERS`.
        suffix: of its name.
        content: bytes.
    """

    group: str
    role: str
    suffix: str
    content: bytes


def into(write: Callable[[io.BytesIO], Any]) -> bytes:
    """Returns the bytes that a writer writes."""
    file = io.BytesIO()
    write(file)
    return file.getvalue()
