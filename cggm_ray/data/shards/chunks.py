"""Splits the rows of a split into chunks, one per shard."""

from __future__ import annotations

from collections.abc import Iterator

SHARD_BYTES = 16 * 2**20
"""Approximate bytes of the samples of a shard."""


def chunks(samples: int, sample_bytes: int) -> Iterator[tuple[int, slice]]:
    """Yields the number and the rows of every shard of a split.

    Args:
        samples: of the split.
        sample_bytes: bytes of one sample in its shard.
    """
    step = max(1, SHARD_BYTES // max(1, sample_bytes))
    for number, start in enumerate(range(0, samples, step)):
        yield number, slice(start, min(start + step, samples))
