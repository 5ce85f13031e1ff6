"""Where lines of a run go: to the terminal, into a bar in a notebook, or nowhere with `--quiet`, which leaves the result.

With `--log_format json` every line is an object with time, run, rank, step and message.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TextIO

EPOCH = re.compile(r"epoch +(\d+)/(\d+)  (.*)")
"""The line at the end of an epoch: its number, their number, and what is said of it."""
STEP = re.compile(r"epoch (\d+)  step (\d+)/(\d+)  (.*)")
"""A line within an epoch."""


TEXT, JSON = "text", "json"
FORMATS = (TEXT, JSON)


@dataclass(frozen=True)
class Form:
    """How lines of a process are written.

    Attributes:
        format: one of `FORMATS`.
        run: name of the run.
        rank: of the process among the workers; None for the process that the user started.
    """

    format: str = TEXT
    run: str | None = None
    rank: int | None = None

    def line(self, message: str, step: int | None = None) -> str:
        """Returns a line in this form; one that has it already stays as it is."""
        if self.format == TEXT or _is_object(message):
            return message
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        return json.dumps({"time": time, "run": self.run, "rank": self.rank, "step": step, "message": message})


_form = Form()


def form() -> Form:
    """Returns the form of the lines of this process."""
    return _form


def use_form(wanted: Form) -> None:
    """Sets the form of the lines that this process writes from now on."""
    global _form
    _form = wanted


def _is_object(line: str) -> bool:
    try:
        return line.startswith("{") and "message" in json.loads(line)
    except ValueError:
        return False


@contextmanager
def printing(silent: bool, wanted: Form) -> Iterator[None]:
    """Prints lines in a form while the block runs.

    Args:
        silent: as `quiet`.
        wanted: the form.
    """
    before = form()
    use_form(wanted)
    try:
        if wanted.format == TEXT or isinstance(sys.stdout, _InForm | _Silence):
            with quiet(silent):
                yield
            return
        with redirect_stdout(_InForm(sys.stdout)), quiet(silent):
            yield
    finally:
        use_form(before)


class _InForm(io.TextIOBase):
    """A standard output whose lines have the form of the process."""

    def __init__(self, behind: TextIO) -> None:
        self._behind, self._begun = behind, ""

    def write(self, text: str) -> int:
        """Writes the lines that are complete."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            if line:
                self._behind.write(form().line(line) + "\n")
        return len(text)

    def flush(self) -> None:
        """Flushes what lies behind."""
        self._behind.flush()


@contextmanager
def quiet(wanted: bool = True) -> Iterator[None]:
    """Prints nothing to standard output while the block runs, but for `print_result`; errors are still printed.

    Args:
        wanted: False for a block that prints.
    """
    if not wanted or isinstance(sys.stdout, _Silence):
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(_Silence(nowhere, sys.stdout)):
        yield


def print_result(text: str) -> None:
    """Prints the result of a command, with `--quiet` too."""
    print(text, file=sys.stdout.behind if isinstance(sys.stdout, _Silence) else sys.stdout, flush=True)


def is_silent() -> bool:
    """Returns whether `--quiet` keeps the lines of a run back."""
    return isinstance(sys.stdout, _Silence)


class _Silence:
    """A standard output that keeps nothing, and knows the one that it stands for."""

    def __init__(self, nowhere: TextIO, behind: TextIO) -> None:
        self._nowhere, self.behind = nowhere, behind

    def __getattr__(self, name: str) -> Any:
        return getattr(self._nowhere, name)


_bars: list[Any] = []
"""The bar that moves in this process, if there is one."""


def show(line: str) -> None:
    """Prints a line of a run; in a notebook those of its epochs move one bar, which the next other line ends."""
    epoch, step = EPOCH.fullmatch(line), STEP.fullmatch(line)
    if isinstance(sys.stdout, _Silence):
        return
    line = form().line(line)
    if not in_notebook() or not (epoch or step):
        while _bars:
            _bars.pop().close()
        print(line, flush=True)
    elif epoch is not None:
        if not _bars:
            # Imported here: a terminal does without it.
            from tqdm.auto import tqdm

            _bars.append(tqdm(total=int(epoch[2]), unit="epoch"))
        _bars[0].n = int(epoch[1])
        _bars[0].set_postfix_str(epoch[3])
    elif step is not None and _bars:
        _bars[0].set_postfix_str(f"step {step[2]} of {step[3]}  {step[4]}")


def in_notebook() -> bool:
    """Returns whether a Jupyter kernel runs this process."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None
