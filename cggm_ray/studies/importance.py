"""How much of a search's result goes along with each parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cggm_ray.studies.parameters import Parameter
from cggm_ray.studies.store import Outcome

FEWEST = 5
"""Smallest number of trials with an importance, because fewer say nothing about a parameter."""


@dataclass(frozen=True, kw_only=True)
class Importance:
    """What a parameter alone explains of the metric.

    Attributes:
        key: field of the configuration.
        share: of the variance of the trials' ranks, less what chance explains, from 0 to 1; None where there are too few
            trials with different values.
        direction: which values are better: 'larger', 'smaller', the best choice, or nothing where the share is 0.
        trials: that have the parameter and a value of the metric.
    """

    key: str
    share: float | None
    direction: str
    trials: int


def importances(space: Sequence[Parameter], order: Sequence[Outcome]) -> list[Importance]:
    """Returns the parameters of a search, the most important one first.

    The metric is replaced by its rank among the trials, so that a single trial that diverged does not decide. The share is
    the adjusted coefficient of determination: of a straight line in the ranks of a number (Spearman's correlation), or of
    the means of a choice. It describes one parameter at a time; two that matter only together both get little.

    Args:
        space: the parameters.
        order: trials that have a value, best first.
    """
    found = [_importance(parameter, order) for parameter in space]
    return sorted(found, key=lambda each: -1.0 if each.share is None else each.share, reverse=True)


def _importance(parameter: Parameter, order: Sequence[Outcome]) -> Importance:
    key = parameter.key
    with_key = [outcome for outcome in order if key in outcome.record.values]
    values = pd.Series([outcome.record.values[key] for outcome in with_key], dtype=object)
    # Equal values of the metric share a rank; the smallest rank is the best one.
    ranks = pd.Series([outcome.best for outcome in with_key], dtype=float).rank()
    if with_key and (with_key[0].best or 0) > (with_key[-1].best or 0):
        ranks = len(with_key) + 1 - ranks
    count, different = len(with_key), values.astype(str).nunique()
    total = float(((ranks - ranks.mean()) ** 2).sum())
    if count < FEWEST or different < 2 or total == 0:
        return Importance(key=key, share=None, direction="", trials=count)
    if is_number(parameter):
        slope = float(np.corrcoef(values.astype(float).rank(), ranks)[0, 1])
        explained, freedom, direction = slope**2, 1, "smaller" if slope > 0 else "larger"
    else:
        means = ranks.groupby(values.astype(str)).mean()
        residual = float(((ranks - values.astype(str).map(means)) ** 2).sum())
        explained, freedom, direction = 1 - residual / total, different - 1, str(means.idxmin()) or "default"
    if count - freedom - 1 <= 0:
        return Importance(key=key, share=None, direction="", trials=count)
    share = max(0.0, 1 - (1 - explained) * (count - 1) / (count - freedom - 1))
    return Importance(key=key, share=share, direction=direction if share > 0 else "", trials=count)


def is_number(parameter: Parameter) -> bool:
    """Returns whether the values of a parameter are numbers, so that they have an order."""
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in parameter.values)
