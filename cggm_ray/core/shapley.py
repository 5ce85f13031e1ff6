"""Shapley values: what each member of a set adds to a score, averaged over all orders in which members can be added."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

Score = TypeVar("Score", bound=Any)
"""A number or a tensor, which can be subtracted, scaled and added."""


def all_subsets(members: Sequence[str]) -> list[frozenset[str]]:
    """Returns all 2^M subsets, the smaller ones first, each size in the order of the members."""
    sizes = range(len(members) + 1)
    return [frozenset(chosen) for size in sizes for chosen in itertools.combinations(members, size)]


def shapley_values(scores: Mapping[frozenset[str], Score], members: Sequence[str]) -> dict[str, Score]:
    """Returns the Shapley value of each member, in units of the score.

    phi_m is the sum over the subsets S without m of |S|! (M - |S| - 1)! / M! times (v(S with m) - v(S)), in the order of
    `scores`.

    Args:
        scores: v by subset; all 2^M of them.
        members: M names.
    """
    m = len(members)
    weights = [math.factorial(size) * math.factorial(m - size - 1) / math.factorial(m) for size in range(m)]
    return {
        name: sum(
            weights[len(subset)] * (scores[subset | {name}] - score)
            for subset, score in scores.items()
            if name not in subset
        )
        for name in members
    }
