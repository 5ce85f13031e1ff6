"""Says what a run, a study or a conversion waits for, where nothing goes on for a while."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.util.placement_group import placement_group_table

from cggm_ray.core.console import show
from cggm_ray.core.threads import beside

PATIENCE = 30.0
"""Seconds of waiting before the first line, and between two lines of the first `OFTEN` seconds."""
OFTEN = 600.0
LONGER = 1.25
"""After `OFTEN` seconds each line comes after so many times the seconds of the line before: a night of waiting fills no log."""
LOOK = 2.0
"""Seconds between two looks at the cluster."""
ANSWER = 5.0
"""Seconds that the cluster may take to answer a question before it counts as one that does not."""
NO_ANSWER = (
    "the head of the cluster does not answer, nothing was heard for {seconds:.0f} s; if Ray ends this program because of that, "
    "the same command goes on"
)
GONE = ("REMOVED",)
PLACED = "CREATED"


def _next(patience: float) -> float:
    return patience + PATIENCE if patience < OFTEN else patience * LONGER


class Heartbeat:
    """Prints a line about what goes on, or what is waited for, when nothing was heard for a while.

    Args:
        text: returns the line, for the seconds since something was heard. If it raises an error, no line is printed.
    """

    def __init__(self, text: Callable[[float], str]) -> None:
        self._text, self._last = text, time.monotonic()
        self._asking: threading.Thread | None = None

    def heard(self) -> None:
        """Takes note that something was heard."""
        self._last = time.monotonic()

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Prints the line while the block runs: after 30 seconds of silence, and again as long as the silence lasts."""
        self.heard()
        with beside(self._beat):
            yield

    def _beat(self, done: threading.Event) -> None:
        last, patience = self._last, PATIENCE
        while not done.wait(min(LOOK, PATIENCE / 2)):
            if self._last != last:
                last, patience = self._last, PATIENCE
            elif time.monotonic() - last >= patience:
                patience = _next(patience)
                self._say(time.monotonic() - last)

    def _say(self, seconds: float) -> None:
        lines: list[str] = []

        def ask() -> None:
            # The cluster may be about to end.
            with suppress(Exception):
                lines.append(self._text(seconds))

        # A question to a cluster whose head is away comes back when the head does, or never: Ray ends this process before.
        if self._asking is None or not self._asking.is_alive():
            self._asking = threading.Thread(target=ask, daemon=True)
            self._asking.start()
            self._asking.join(ANSWER)
        if lines:
            show(lines[0])
        elif self._asking.is_alive():
            show(NO_ANSWER.format(seconds=seconds))


class Arrivals(Heartbeat):
    """What is expected of tasks on the cluster.

    Args:
        what: is expected, such as 'shards'.
        total: how many of them.
    """

    def __init__(self, what: str, total: int) -> None:
        super().__init__(self._line)
        self._what, self._total, self._done = what, total, 0

    def arrived(self) -> None:
        """Takes note of one that has arrived."""
        self._done += 1
        self.heard()

    def _line(self, seconds: float) -> str:
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        return (
            f"{self._done} of {self._total} {self._what} have arrived, none for {seconds:.0f} s; the cluster has {nodes} "
            f"node{'s' * (nodes != 1)}, free: {_free()}"
        )


def waits() -> str | None:
    """Returns a line about what this job waits for, or None where it waits for no node."""
    missing = what_is_missing()
    return None if missing is None else f"waits for {missing}"


def what_is_missing() -> str | None:
    """Returns what this job waits for, or None where something of it runs or nothing waits.

    Groups without a CPU or a GPU are processes that only look after others.
    """
    job = ray.get_runtime_context().get_job_id()
    # The last four bytes of the number of a group are the number of its job.
    groups = [group for key, group in placement_group_table().items() if key.endswith(job)]
    groups = [group for group in groups if any(map(_counts, group["bundles"].values()))]
    waiting = [group for group in groups if group["state"] not in (PLACED, *GONE)]
    if not waiting or any(group["state"] == PLACED for group in groups):
        return None
    wanted = Counter(_in_words(bundle) for bundle in waiting[0]["bundles"].values() if _counts(bundle))
    parts = [f"a node with {what}" if count == 1 else f"{count} times {what}" for what, count in wanted.items()]
    return f"{', and '.join(parts)}; free on the cluster: {_free()}"


def _free() -> str:
    free, whole = ray.available_resources(), ray.cluster_resources()
    kinds = [kind for kind in ("CPU", "GPU") if whole.get(kind)]
    return ", ".join(f"{free.get(kind, 0):g} of {whole[kind]:g} {kind}s" for kind in kinds) or "no CPU"


def _counts(bundle: Mapping[str, Any]) -> bool:
    return bool(bundle.get("CPU") or bundle.get("GPU"))


def _in_words(bundle: Mapping[str, Any]) -> str:
    return " and ".join(
        f"{bundle[kind]:g} {kind}{'s' * (bundle[kind] != 1)}" for kind in ("CPU", "GPU") if bundle.get(kind)
    )
