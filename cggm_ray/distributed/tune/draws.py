"""Draws from the space of a search, by Ray Tune's own domains."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from ray import tune
from ray.tune.search.sample import Domain

from cggm_ray.engine.configuration import Config
from cggm_ray.studies.parameters import Parameter, Values
from cggm_ray.studies.space import Search, try_values


def domain(parameter: Parameter) -> Domain:
    """What Ray Tune draws a parameter from; both bounds of whole numbers are included."""
    if parameter.kind in ("choice", "grid"):
        return tune.choice(list(parameter.values))
    low, high = parameter.values
    if parameter.whole:
        return (tune.lograndint if parameter.kind == "loguniform" else tune.randint)(low, high + 1)
    return (tune.loguniform if parameter.kind == "loguniform" else tune.uniform)(low, high)


def draw_trials(search: Search, base: Config, source: str) -> list[Values]:
    """What the trials of a search change, each once: `points_to_evaluate`, then the grid's points with `trials` draws for each.

    Raises:
        UsageError: a trial's configuration cannot be; the message names the trial's values.
    """
    random = np.random.default_rng(search.seed)
    grid = [p for p in search.space if p.kind == "grid"]
    drawn: dict[tuple[Any, ...], Values] = {tuple(point.items()): dict(point) for point in search.points_to_evaluate}
    for point in itertools.product(*(p.values for p in grid)):
        fixed = dict(zip((p.key for p in grid), point, strict=True))
        for _ in range(search.trials):
            values: Values = {}
            for p in search.space:
                # Drawn even where it does not apply, so that a condition does not shift what others draw.
                value = fixed[p.key] if p.kind == "grid" else _draw(p, random)
                if p.applies(values):
                    values[p.key] = value
            drawn.setdefault(tuple(values.items()), values)
    for values in drawn.values():
        try_values(base, values, source)
    return list(drawn.values())


def _draw(parameter: Parameter, random: np.random.Generator) -> Any:
    value = domain(parameter).sample(random_state=random)
    if parameter.kind == "choice":
        return value
    # The logarithm of a bound and back is not always the bound.
    low, high = parameter.values
    return min(max(value, low), high)
