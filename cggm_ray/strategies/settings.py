"""The section of the configuration that chooses a strategy and its parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cggm_ray.config.fields import check, one_of, option
from cggm_ray.core.errors import UsageError
from cggm_ray.strategies.coefficients import COEFFICIENT_RULES
from cggm_ray.strategies.direction import DIRECTION_RULES

GATES = ("feature", "body", "update", "off")
PARTS = {"coefficients": tuple(COEFFICIENT_RULES), "direction": tuple(DIRECTION_RULES), "gate": GATES}
"""Parts of a strategy that can be replaced, and what they can be."""

PART_FIELDS = {
    "coefficients": ("coefficients", "rho", "utility", "smoothing", "floor"),
    "direction": ("direction", "lam"),
    "gate": ("gate",),
}
"""Fields of the section that mean something where the strategy has a part."""
JOINT = "none"
"""The strategy that balances nothing."""
CGGM_MULTILOSS = "cggm-multiloss"
"""CGGM with a loss for every modality, which the preset `quick` takes."""


@dataclass(frozen=True, kw_only=True)
class ModulationConfig:
    """The balancing strategy and its parts."""

    modulation: str = option("cggm", "balancing strategy; docs/strategies.md describes them all")
    rho: float = option(1.3, "scale of the coefficients", "rou")
    lam: float = option(0.2, "weight of the direction term", "lambda", "lamda")
    coefficients: str | None = option(None, "coefficient rule in place of the strategy's own: stable, paper, released")
    direction: str | None = option(None, "direction rule in place of the strategy's own: gradient, released, off")
    gate: str | None = option(
        None,
        "what a coefficient scales: feature (the gradient of a whole encoder), body (without its input projection), update "
        "(the encoder's learning rate), off (nothing)",
    )
    utility: str | None = option(
        None, "how well a guide predicts: mae, sign (regression); accuracy, likelihood (classes); dice (segmentation)"
    )
    smoothing: float = option(0.9, "rule stable: decay of the moving average of the utilities")
    floor: float = option(0.01, "rule stable: amount added to the improvement of every modality")

    def __post_init__(self) -> None:
        for name, names in PARTS.items():
            if getattr(self, name) is not None:
                one_of(self, name, names)
        check(self.rho > 0, self, "rho", "a positive number")
        check(self.lam >= 0, self, "lam", "zero or a positive number")
        check(0 <= self.smoothing < 1, self, "smoothing", "a number in [0, 1)")
        check(self.floor > 0, self, "floor", "a positive number")

    def check_parts(self, parts: Mapping[str, str]) -> None:
        """Raises a UsageError where a part is given that the strategy, which has these, does not have."""
        for name in PARTS:
            if getattr(self, name) is not None and name not in parts:
                raise UsageError(f"{name}: the strategy {self.modulation!r} has no such part; leave it out")

    def resolved(self, parts: Mapping[str, str]) -> ModulationConfig:
        """The same with the strategy's own choice, from its parts, in every part that was left open."""
        open_parts: dict[str, Any] = {name: value for name, value in parts.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **open_parts)
