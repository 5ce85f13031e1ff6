"""The bar of a run on a terminal, drawn by rich. Log files, pipes, notebooks and jobs have no bar.

Whatever works tells how far it is by `moved`, which does nothing where nobody looks. A worker on another machine tells it to a
file, which the driver reads.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from cggm_ray.core.console import TEXT, form, in_notebook, is_silent

FILE = ".progress.json"
"""In the folder of a run while a driver looks; hidden files are not copied to a URL."""
PERIOD = 0.5
"""Seconds between two looks at the numbers of a step: reading them waits for the device."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """How far a phase of a run is.

    Attributes:
        phase: its name, such as 'training' or 'test'.
        done, total: parts of it; a total of 0 is not known.
        text: numbers of the moment.
        below: numbers of each modality, in a line of their own.
    """

    phase: str
    done: float
    total: float
    text: str = ""
    below: str = ""


_sink: Callable[[Moment], None] | None = None
"""Who looks in this process."""


def looked_at() -> bool:
    """Returns whether somebody looks."""
    return _sink is not None


def moved(phase: str, done: float, total: float, text: str = "", below: str = "") -> None:
    """Tells how far a phase is, to whoever looks."""
    if _sink is not None:
        _sink(Moment(phase=phase, done=done, total=total, text=text, below=below))


@contextmanager
def told_to(sink: Callable[[Moment], None] | None) -> Iterator[None]:
    """Lets a function look while the block runs; None lets nobody."""
    global _sink
    before, _sink = _sink, sink
    try:
        yield
    finally:
        _sink = before


def to_file(folder: Path) -> Callable[[Moment], None]:
    """Returns a function that replaces `FILE` in a folder; where that cannot be written, nothing happens."""

    def write(moment: Moment) -> None:
        with suppress(OSError):
            partial = folder / f"{FILE}.part"
            partial.write_text(json.dumps(asdict(moment)))
            os.replace(partial, folder / FILE)

    return write


def from_file(folder: Path) -> None:
    """Tells what `to_file` wrote last, if anything."""
    with suppress(OSError, ValueError, TypeError):
        moved(**json.loads((folder / FILE).read_text()))


@contextmanager
def bar() -> Iterator[None]:
    """Shows the bar at the bottom of the terminal while the block runs; elsewhere the block only runs."""
    if _sink is not None or not sys.stdout.isatty() or is_silent() or form().format != TEXT or in_notebook():
        yield
        return
    with _Bar() as shown, told_to(shown.move):
        yield


class _Bar:
    """A line with a bar and the numbers of the moment, and one with those of each modality."""

    def __init__(self) -> None:
        # Imported here: a job does without it.
        from rich.console import Console
        from rich.live import Live
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[text]}", markup=False),
            TimeRemainingColumn(compact=True),
        )
        self._progress = Progress
        self._console = Console(file=sys.stdout)
        self._live = Live(console=self._console, transient=True, refresh_per_second=4, redirect_stdout=False)
        self._shown: Any = None
        self._phase = ""

    def __enter__(self) -> _Bar:
        self._live.start()
        self._above = redirect_stdout(_Above(sys.stdout, self._console))
        self._above.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._above.__exit__(None, None, None)
        self._live.stop()

    def move(self, moment: Moment) -> None:
        """Moves the bar; another phase begins a new one."""
        from rich.console import Group
        from rich.text import Text

        new = moment.phase != self._phase
        if new:
            self._phase, self._shown = moment.phase, self._progress(*self._columns, expand=True)
            self._shown.add_task(moment.phase, total=moment.total or None, text="")
        (task,) = self._shown.task_ids
        self._shown.update(task, completed=moment.done, total=moment.total or None, text=moment.text)
        below = [Text(moment.below, style="dim")] if moment.below else []
        # What has a phase of its own is seen, however short it is.
        self._live.update(Group(self._shown, *below), refresh=new)


class _Above:
    """A standard output whose lines appear above the bar, as long as they are: a path can be copied whole."""

    def __init__(self, behind: TextIO, console: Any) -> None:
        self._behind, self._console, self._begun = behind, console, ""

    def write(self, text: str) -> int:
        """Prints the lines that are complete."""
        from rich.text import Text

        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._console.print(Text(line), soft_wrap=True)
        return len(text)

    def flush(self) -> None:
        """Flushes what lies behind."""
        self._behind.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._behind, name)


class Clock:
    """Says when the numbers of a step are read again."""

    def __init__(self) -> None:
        self._last = 0.0

    def due(self) -> bool:
        """Returns whether `PERIOD` has passed since it last did, and somebody looks."""
        if _sink is None:
            return False
        now = time.monotonic()
        if now - self._last < PERIOD:
            return False
        self._last = now
        return True
