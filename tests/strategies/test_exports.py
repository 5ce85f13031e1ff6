"""Every strategy is a name of the package, for loops of a person's own."""

from __future__ import annotations

import cggm_ray
from cggm_ray.strategies.base import Strategy
from cggm_ray.strategies.registry import STRATEGIES

BASES = ("AGMReleased", "Confidence", "Guided", "ResponseStrategy")


def subclasses(kind: type[Strategy]) -> list[type[Strategy]]:
    """All of the package, at any depth."""
    found = [one for one in kind.__subclasses__() if one.__module__.startswith("cggm_ray.")]
    return found + [deeper for one in found for deeper in subclasses(one)]


def test_every_strategy_is_exported() -> None:
    for name in STRATEGIES.names():
        STRATEGIES.get(name)
    classes = [one for one in subclasses(Strategy) if one.__name__ not in BASES]
    assert len(classes) > 10
    for one in classes:
        assert getattr(cggm_ray, one.__name__) is one
        assert one.__name__ in cggm_ray.__all__
