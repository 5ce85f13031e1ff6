"""Waiting in tests: for events. What ends a wait in vain is the limit for a whole test, `timeout` in pyproject.toml."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
PERIOD = 0.1
"""Seconds between two checks."""


def wait_for(holds: Callable[[], T], what: str, by: subprocess.Popen[bytes] | subprocess.Popen[str] | None = None) -> T:
    """The first true value of a condition.

    Args:
        holds: the condition.
        what: is wrong where it never holds.
        by: the process that brings it about. Once that has ended without, there is nothing to wait for.

    Raises:
        AssertionError: the process has ended.
    """
    while True:
        over = by is not None and by.poll() is not None
        found = holds()
        if found:
            return found
        assert not over, f"{what}: the process ended with {by and by.returncode}"
        time.sleep(PERIOD)


def let_time_pass(path: Path) -> None:
    """Returns when what changes now gets another time than the last change of a file: clocks of file systems are coarse."""
    other = path.with_name(f".{path.name}.clock")

    def now() -> int:
        other.touch()
        return other.stat().st_ctime_ns

    wait_for(lambda: now() > path.stat().st_ctime_ns, "the clock of the file system stands still")
    other.unlink()
