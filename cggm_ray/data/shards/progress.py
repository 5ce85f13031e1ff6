"""Prints how far a conversion is, where it takes longer than a few seconds."""

from __future__ import annotations

import time
from typing import Protocol, TypeVar

from cggm_ray.core.live import moved

EVERY = 10.0
"""Seconds between two lines."""


class Written(Protocol):
    """A shard that was written."""

    @property
    def bytes(self) -> int:
        """Size of its file."""


W = TypeVar("W", bound=Written)


class Progress:
    """Counts shards.

    Args:
        shards: that will be written.
    """

    def __init__(self, shards: int) -> None:
        self._shards = shards
        self._done = self._bytes = 0
        self._began = self._said = time.monotonic()

    def after(self, shard: W) -> W:
        """Counts a shard that was written, prints a line if the last one is long ago, and returns the shard."""
        self._done, self._bytes = self._done + 1, self._bytes + shard.bytes
        now = time.monotonic()
        moved(
            "conversion", self._done, self._shards, f"{self._done}/{self._shards} shards  {self._bytes / 2**20:.0f} MiB"
        )
        if now - self._said >= EVERY and self._done < self._shards:
            self._said = now
            left = (now - self._began) * (self._shards / self._done - 1)
            print(
                f"converted {self._done} of {self._shards} shards, {self._bytes / 2**20:.0f} MiB, about {left:.0f} s to go",
                flush=True,
            )
        return shard
