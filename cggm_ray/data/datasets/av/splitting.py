"""Divides clips into train, valid and test: as the lists say, and what they lack by speakers or source videos."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cggm_ray.data.datasets.av.layouts import Clip, kind_of_source
from cggm_ray.data.datasets.av.options import AvOptions
from cggm_ray.data.datasets.feature_splits import drawn
from cggm_ray.data.datasets.table.splitting import by_groups
from cggm_ray.data.split_names import SPLITS

LEAST_SOURCES = 3
"""Speakers or videos that it takes to draw by them."""


def divide(clips: Sequence[Clip], options: AvOptions) -> tuple[dict[str, list[Clip]], str]:
    """Returns the clips of every split in their order, and how they were divided.

    A split that the lists lack is drawn from train, and never from test. Where the names of all clips tell a speaker or a
    source video, and not each clip has one of its own, those are drawn as a whole; else clips are, so that classes keep their
    shares.

    Args:
        clips: of the set.
        options: shares and seed.
    """
    splits: dict[str, list[Clip]] = {split: [] for split in SPLITS}
    for clip in clips:
        splits[clip.split or "train"].append(clip)
    given = [split for split in SPLITS if splits[split]]
    lacking = [split for split in SPLITS[1:] if not splits[split]]
    about = f"{', '.join(given)} by the lists" if any(clip.split for clip in clips) else "no list says splits"
    if lacking and splits["train"]:
        shares = (options.valid_share * ("valid" in lacking), options.test_share * ("test" in lacking))
        train = splits["train"]
        rows, how = _drawn(train, shares, options.split_seed)
        for split in ("train", *lacking):
            splits[split] = [train[row] for row in rows[split]]
        about += f"; {' and '.join(lacking)} drawn from train {how}, split_seed {options.split_seed}"
    return splits, about + _shared(splits)


def _drawn(clips: Sequence[Clip], shares: tuple[float, float], seed: int) -> tuple[dict[str, np.ndarray], str]:
    sources = [clip.source for clip in clips]
    distinct = set(sources)
    if None in distinct or not LEAST_SOURCES <= len(distinct) < len(clips):
        labels = np.unique([str(clip.label) for clip in clips], return_inverse=True)[1]
        return drawn(labels, shares, seed), "so that classes keep their shares"
    return by_groups(np.array(sources), shares, seed), f"by {kind_of_source(clips[0].name)}"


def _shared(splits: dict[str, list[Clip]]) -> str:
    """Returns a text about sources of test that are in train as well, which a reader of the result must know."""
    sources = [{clip.source for clip in splits[split]} - {None} for split in ("train", "test")]
    shared = sources[0] & sources[1]
    if not shared:
        return ""
    return f"; {len(shared)} of {len(sources[1])} sources of test are in train too"
