"""Requests to stop: signals, and the agreement of all workers on the step after which they save.

A signal only sets a flag. The loop checks it between two steps, so the saved state is one between two steps. Several workers
compare their flags about once a second, all at the same step, by one small all-reduce.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType

import torch
from torch import Tensor

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Notice(IntEnum):
    """An action that the loop takes between two steps. Of two notices the larger one counts."""

    NONE = 0
    SAVED = 1
    """The save in flight has ended. A runtime takes this action itself and settles it."""
    SAVE = 2
    STOP = 3


SAVING = b"saving after this step; the same signal once more ends at once\n"
LEAVING_OUT = b"the run is finished; what is left is left out; the same signal once more ends at once\n"
"""Lines that answer a signal, before and after the test."""


class StopRequest:
    """Records whether this process is to stop, because a signal came or because the torchrun that started it was killed.

    Attributes:
        signal: number of the signal; 0 while none came.
        answer: printed when it comes.
    """

    def __init__(self) -> None:
        self.signal = 0
        self.answer = SAVING
        self._parent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    def notice(self) -> Notice:
        """Returns STOP if this process is to stop, and NONE otherwise."""
        # Processes without their torchrun would train on beside those of the next start.
        orphan = self._parent is not None and os.getppid() != self._parent
        return Notice.STOP if self.signal or orphan else Notice.NONE


@contextmanager
def stopping_on_signals(stop_request: StopRequest) -> Iterator[None]:
    """Records SIGTERM and the first Ctrl-C as a request to save and stop; a second signal ends the process at once.

    Only the main thread may call it, because Python delivers signals to that thread only.

    Args:
        stop_request: receives the number of the signal.
    """
    # Not print: the signal may have come in the middle of one.
    with _first_signal(stop_request, lambda: os.write(2, stop_request.answer)):
        yield


class Interrupted(BaseException):
    """A signal came in a block of `interrupting`.

    It is no Exception, because a library could take that for an error of its own.
    """


@contextmanager
def interrupting(stop_request: StopRequest) -> Iterator[None]:
    """Ends the block at once at the first SIGTERM or Ctrl-C, for optional work of a single process.

    Args:
        stop_request: receives the number of the signal.

    Raises:
        Interrupted: a signal came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave() -> None:
        raise Interrupted

    with _first_signal(stop_request, leave):
        yield


@contextmanager
def _first_signal(stop_request: StopRequest, then: Callable[[], object]) -> Iterator[None]:
    """Records the first signal in the block and calls `then`; the next one goes to the handlers from before."""
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def take(number: int, frame: FrameType | None) -> None:
        stop_request.signal = number
        restore()
        then()

    for number in SIGNALS:
        signal.signal(number, take)
    try:
        yield
    finally:
        restore()


class Agreement:
    """Combines the notices of all workers, at a step that is the same for all of them.

    Args:
        ask: the notice of this worker.
        world_size: number of workers; one alone need not agree.
        reduce: sums over workers.
        device: of what is reduced.
        period: seconds between two checks; 0 checks at every step. With several workers the number of steps follows from the
            mean time of a step, which is agreed on too.
    """

    def __init__(
        self,
        ask: Callable[[], Notice],
        world_size: int,
        reduce: Callable[[Tensor], Tensor],
        device: torch.device,
        period: float = 1.0,
    ) -> None:
        self._ask, self._world_size, self._reduce, self._device = ask, world_size, reduce, device
        self._period = period
        self._last = time.monotonic()
        self._interval = self._left = 1

    def __call__(self, now: bool = False) -> Notice:
        """Returns the notice for all workers.

        All workers call it after every step, and with `now` between two epochs.
        """
        self._left -= 1
        elapsed = time.monotonic() - self._last
        if not now and (elapsed < self._period if self._world_size == 1 else self._left > 0):
            return Notice.NONE
        self._last = time.monotonic()
        if self._world_size == 1:
            return self._ask()
        totals = torch.zeros(len(Notice), dtype=torch.float64, device=self._device)
        totals[0] = elapsed / max(1, self._interval - self._left)
        notice = self._ask()
        if notice:
            totals[notice] = 1
        seconds, *flags = self._reduce(totals).tolist()
        self._interval = self._left = max(1, min(1000, int(self._period * self._world_size / max(seconds, 1e-6))))
        return max(Notice(number) if flag else Notice.NONE for number, flag in enumerate(flags, start=1))
