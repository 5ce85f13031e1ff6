"""Damaged pickles of sentiment sets: fields that are missing, of other shapes or types, or with values that cannot be."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from fuzz_seeds import Seed

from cggm_ray.data.datasets.mosi import planted_imbalance
from cggm_ray.data.datasets.sentiment_layouts import LAYOUTS


def sentiment_seeds() -> list[Seed]:
    """Whole pickles in every layout of MOSEI and SIMS."""
    content = planted_imbalance(1, samples={"train": 6, "valid": 3, "test": 3}, steps=3)
    return [
        Seed("sentiment", role, ".pkl", pickle.dumps(layout(content)))
        for role in ("mosei", "sims")
        for layout in LAYOUTS.values()
    ]


def sentiment_with_damage(seeds: list[Seed], draw: random.Random) -> Seed:
    """Returns a pickle with fields that are missing, of other shapes or types, or with values that cannot be."""
    chosen = draw.choice(seeds)
    content = pickle.loads(chosen.content)
    for _ in range(draw.choice((1, 1, 2, 3))):
        split = draw.choice(sorted(content, key=str))
        part = content[split]
        if not isinstance(part, dict) or not part:
            continue
        name = draw.choice(sorted(part, key=str))
        kind = draw.random()
        if kind < 0.1:
            del part[name]
        elif kind < 0.15:
            del content[split]
            if not content:
                content[split] = part
        elif kind < 0.2:
            part[name.encode() if isinstance(name, str) else str(name)] = part.pop(name)
        elif kind < 0.3:
            part[name] = draw.choice(list(part.values()))
        elif kind < 0.8:
            part[name] = draw.choice(_ARRAYS)(part[name], draw)
        else:
            part[name] = draw.choice(
                (None, 1, "x", [], {}, [[1], [1, 2]], [None], b"x", (1, 2), 10**20, {"a": 1}, [{}])
            )
    return Seed(chosen.group, chosen.role, chosen.suffix, pickle.dumps(content, protocol=draw.choice((2, 4, 5))))


def _array(values: Any) -> np.ndarray:
    try:
        return np.atleast_1d(np.asarray(values))
    except ValueError:
        # Lists of different lengths, which an earlier damage has left.
        return np.array([None, *values], dtype=object)[1:]


def _shape(values: Any, draw: random.Random) -> Any:
    array = _array(values)
    return draw.choice((array[:-1], array[:0], array[None], array.reshape(-1), array[..., :1], array.T))


def _dtype(values: Any, draw: random.Random) -> Any:
    try:
        return np.asarray(values).astype(
            draw.choice((np.float64, np.int8, np.uint64, bool, object, "U5", "S5", np.complex64))
        )
    except (TypeError, ValueError):
        return values


def _values(values: Any, draw: random.Random) -> Any:
    try:
        array = np.array(values)
    except ValueError:
        return values
    if array.size and array.dtype.kind in "fi":
        worst: tuple[float, ...] = (np.nan, np.inf, -np.inf, 1e300) if array.dtype.kind == "f" else (-1, 2**31 - 1, 0)
        # Which of them it can hold depends on its type.
        with np.errstate(over="ignore"), suppress(OverflowError, ValueError):
            array.flat[draw.randrange(array.size)] = draw.choice(worst)
    elif array.size and array.dtype.kind == "O":
        array.flat[draw.randrange(array.size)] = draw.choice((None, 1, "x" * 9000, "$_$", "a$_$-1", b"x", {}))
    return array


def _list(values: Any, draw: random.Random) -> Any:
    array = _array(values)
    return draw.choice((list, lambda v: v.tolist(), lambda v: dict(enumerate(v))))(array)


_ARRAYS: tuple[Callable[[Any, random.Random], Any], ...] = (_shape, _dtype, _values, _values, _list)
