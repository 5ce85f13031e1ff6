"""Where lines of a run go: to the terminal, into a bar in a notebook, or nowhere with `--quiet`, which leaves the result."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

EPOCH = re.compile(r"epoch +(\d+)/(\d+)  (.*)")
"""The line at the end of an epoch: its number, their number, and what is said of it."""
STEP = re.compile(r"epoch (\d+)  step (\d+)/(\d+)  (.*)")
"""A line within an epoch."""


@contextmanager
def quiet(wanted: bool = True) -> Iterator[None]:
    """Prints nothing to standard output while the block runs, but for `print_result`; errors are printed as ever.

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
