"""Splits the rows of a split into chunks, one per shard."""

from __future__ import annotations

from collections.abc import Iterator

SHARD_BYTES = 16 * 2**20
"""What the samples of a shard take, about."""


def chunks(samples: int, sample_bytes: int) -> Iterator[tuple[int, slice]]:
    """Numbers and rows of the shards that so many samples fill.

    Args:
        samples: of the split.
        sample_bytes: what one sample takes in its shard.
    """
    step = max(1, SHARD_BYTES // max(1, sample_bytes))
    for number, start in enumerate(range(0, samples, step)):
        yield number, slice(start, min(start + step, samples))
