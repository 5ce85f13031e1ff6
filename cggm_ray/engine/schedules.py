"""Schedules of the learning rate, by name."""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cggm_ray.strategies.rates import FACTOR


def set_rate(optimizer: Optimizer, lr: float) -> None:
    """Sets the learning rate of the model; encoders with a factor of their own keep their ratio to it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get(FACTOR, 1.0)


class Schedule:
    """The learning rate of the model over a run. The base class keeps it constant. The loop calls both hooks."""

    def before_step(self, step: int) -> None:
        """Sets the learning rate of a step, counted from 0 over the whole run."""

    def after_epoch(self, valid_loss: float) -> None:
        """Receives the validation loss of an epoch."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state that a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""


class PlateauSchedule(Schedule):
    """Divides the learning rate by ten after more than `when` epochs without a lower validation loss (released code)."""

    def __init__(self, optimizer: Optimizer, *, when: int) -> None:
        self._inner = ReduceLROnPlateau(optimizer, mode="min", factor=0.1, patience=when)

    def after_epoch(self, valid_loss: float) -> None:
        """Divides the learning rate by ten if the validation loss has not fallen for more than `when` epochs."""
        self._inner.step(valid_loss)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of torch's plateau scheduler."""
        return self._inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state of torch's plateau scheduler."""
        self._inner.load_state_dict(state)


class CosineSchedule(Schedule):
    """Linear warm-up, then half a cosine, set before every step (released code).

    The learning rate is a function of the step, so the schedule has no state.

    Args:
        optimizer: of the model.
        total: steps of the run.
        warmup: of these, steps of the warm-up.
        peak, final, start: the highest learning rate, the one that the cosine comes down to, and that of the first step.
    """

    def __init__(
        self, optimizer: Optimizer, *, total: int, warmup: int, peak: float, final: float, start: float
    ) -> None:
        self._optimizer, self._total, self._warmup = optimizer, total, warmup
        self._rates = {"peak": peak, "final": final, "start": start}

    def before_step(self, step: int) -> None:
        """Sets the learning rate of the step on the warm-up line or on the cosine."""
        lr = cosine_with_warmup(step, self._total, self._warmup, **self._rates)
        set_rate(self._optimizer, lr)


class StepSchedule(Schedule):
    """Multiplies the learning rate by a factor after every so many steps, whatever the validation says.

    The learning rate is a function of the step, so the schedule has no state.

    Args:
        optimizer: of the model.
        every: steps between two falls.
        peak: the learning rate of the first step.
        factor: of every fall.
    """

    def __init__(self, optimizer: Optimizer, *, every: int, peak: float, factor: float) -> None:
        self._optimizer, self._every, self._peak, self._factor = optimizer, every, peak, factor

    def before_step(self, step: int) -> None:
        """Sets the learning rate of the step."""
        set_rate(self._optimizer, self._peak * self._factor ** (step // self._every))


def cosine_with_warmup(step: int, total: int, warmup: int, *, peak: float, final: float, start: float) -> float:
    """Returns the learning rate of a step, which rises from `start` to `peak` in `warmup` steps and falls towards `final`."""
    if step < warmup:
        return start + (peak - start) * step / max(1, warmup - 1)
    return final + (peak - final) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


SCHEDULES = ("plateau", "cosine", "step")
"""Schedules by the name that `--schedule` takes."""
