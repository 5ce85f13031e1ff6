"""Whole shards that stay in memory while the samples of a window are taken from them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Generic, TypeVar

from cggm_ray.core.errors import UsageError
from cggm_ray.storage.places import local_copy

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Held(Generic[K, V]):
    """Values that are loaded when they are needed first, by one thread each; those that were used last stay.

    Args:
        load: makes the value of a key.
        most: values that stay.
    """

    def __init__(self, load: Callable[[K], V], most: int) -> None:
        self._load, self._most = load, most
        self._lock = threading.Lock()
        self._values: dict[K, Future[V]] = {}

    def get(self, key: K) -> V:
        """Returns the value of a key; an error of its loading is raised for all who wait for it."""
        with self._lock:
            known = self._values.pop(key, None)
            future: Future[V] = Future() if known is None else known
            self._values[key] = future
            while len(self._values) > self._most:
                del self._values[next(iter(self._values))]
        if known is None:
            try:
                future.set_result(self._load(key))
            except BaseException as error:
                future.set_exception(error)
        return future.result()


class FetchAhead:
    """Copies files of a store into the cache of the node, in a thread, a few before they are needed.

    Args:
        paths: in the order in which they are needed; one that came before is passed over.
        depth: files that are copied ahead.
    """

    def __init__(self, paths: Iterable[Path], depth: int) -> None:
        self._paths, self._depth = iter(paths), depth
        self._places: dict[Path, int] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fetch")

    def needs(self, path: Path) -> None:
        """Says that a file is needed now."""
        with self._lock:
            while path not in self._places or len(self._places) <= self._places[path] + self._depth:
                following = next(self._paths, None)
                if following is None:
                    return
                if following not in self._places:
                    self._places[following] = len(self._places)
                    # An error is that of whoever reads the file.
                    self._pool.submit(local_copy, following)

    def close(self) -> None:
        """Begins no further copy."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def check_window(window: int, budget: int, sizes: Sequence[int]) -> None:
    """Raises a UsageError if the shards of two windows do not fit into memory.

    Args:
        window: shards.
        budget: bytes.
        sizes: bytes of the shards.
    """
    needed = 2 * sum(sorted(sizes)[-window:])
    if needed > max(budget, 2 * max(sizes)):
        raise UsageError(
            f"window: {window} shards, of which two windows stay in memory, are {-(-needed // 2**20)} MiB; expected at most "
            f"memory_budget, {budget // 2**20} MiB"
        )
