"""Says what a run, a study or a conversion waits for, where nothing goes on for a while."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.placement_group import placement_group_table

from cggm_ray.core.console import show

PATIENCE = 30.0
"""Seconds of waiting before the first line; the next lines come after twice as long each."""
LOOK = 2.0
"""Seconds between two looks at the cluster."""
GONE = ("REMOVED",)
PLACED = "CREATED"


@contextmanager
def saying_what_is_missing() -> Iterator[None]:
    """Prints a line while the block waits for resources of the cluster and nothing of this job has any."""
    done = threading.Event()
    thread = threading.Thread(target=_watch, args=(done,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _watch(done: threading.Event) -> None:
    since, patience = time.monotonic(), PATIENCE
    while not done.wait(min(LOOK, PATIENCE / 2)):
        missing = None
        # The cluster may be busy, or about to end.
        with suppress(Exception):
            missing = what_is_missing()
        if missing is None:
            since, patience = time.monotonic(), PATIENCE
        elif time.monotonic() - since >= patience:
            patience *= 2
            show(f"waits for {missing}")


@dataclass
class Arrivals:
    """Says what is expected of tasks on the cluster, where nothing arrives for a while.

    Attributes:
        what: is expected, such as 'shards'.
        total: how many of them.
        done: how many have arrived.
    """

    what: str
    total: int
    done: int = 0
    _last: float = field(default_factory=time.monotonic)

    def arrived(self, count: int = 1) -> None:
        """Takes note of some that have arrived."""
        self.done, self._last = self.done + count, time.monotonic()

    @contextmanager
    def saying_what_is_expected(self) -> Iterator[None]:
        """Prints a line while the block runs and nothing arrives: after 30 seconds, and then after twice as long each."""
        done = threading.Event()
        thread = threading.Thread(target=self._watch, args=(done,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _watch(self, done: threading.Event) -> None:
        last, patience = self._last, PATIENCE
        while not done.wait(min(LOOK, PATIENCE / 2)):
            if self._last != last:
                last, patience = self._last, PATIENCE
            elif time.monotonic() - last >= patience:
                patience *= 2
                with suppress(Exception):
                    nodes = sum(bool(node["Alive"]) for node in ray.nodes())
                    show(
                        f"{self.done} of {self.total} {self.what} have arrived, none for {time.monotonic() - last:.0f} s; "
                        f"the cluster has {nodes} node{'s' * (nodes != 1)}, free: {_free()}"
                    )


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
