"""The section of the configuration for options of the loss."""

from __future__ import annotations

from dataclasses import dataclass

from cggm_ray.config.fields import check, one_of, option

EQUAL, BALANCED = "equal", "balanced"


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Options of the loss of a classification; other tasks have none of them."""

    label_smoothing: float = option(0.0, "classification: share of the label that is spread over all classes")
    class_weights: str = option(
        EQUAL,
        "classification: equal, or balanced (weight of a class: samples / (classes * its samples), in the training split)",
    )

    def __post_init__(self) -> None:
        check(0 <= self.label_smoothing < 1, self, "label_smoothing", "a number in [0, 1)")
        one_of(self, "class_weights", (EQUAL, BALANCED))
