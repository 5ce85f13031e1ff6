"""Detects steps that are not finite without waiting for a GPU in every step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer


@dataclass(frozen=True)
class BadStep:
    """The first step that was not finite.

    Attributes:
        step: of the run, counted from 0.
        index: int64, the samples of this worker.
        values: task loss, the strategy's term and gradient norm.
    """

    step: int
    index: list[int]
    values: list[float]


class DeviceWatch:
    """Records on the device whether a step was not finite, so that the host need not wait after every step.

    From the first bad step on the optimizers change no parameter, so a later check loses nothing. The optimizers must be
    fused, because only those take the flag of mixed precision (`found_inf`).

    Args:
        optimizers: of the model and of the strategy.
        device: of the run.
    """

    def __init__(self, optimizers: Iterable[Optimizer | None], device: torch.device) -> None:
        self._bad = torch.zeros((), device=device)
        self._steps = torch.zeros((), dtype=torch.int64, device=device)
        self._first = torch.zeros((), dtype=torch.int64, device=device)
        self._values = torch.zeros(3, dtype=torch.float64, device=device)
        self._recent: list[tuple[int, Tensor]] = []
        for optimizer in optimizers:
            if optimizer is not None:
                optimizer.found_inf = self._bad  # type: ignore[attr-defined]
                optimizer.grad_scale = None  # type: ignore[attr-defined]

    def note(self, task_loss: Tensor, extra: Tensor, total: Tensor, *, ends_step: bool = True) -> None:
        """Records a step on the device, before its optimizers act.

        Args:
            task_loss, extra, total: task loss, the strategy's term and gradient norm, scalars.
            ends_step: whether it is the last turn of a step.
        """
        values = torch.stack([value.detach().double() for value in (task_loss, extra, total)])
        is_first = (self._bad == 0) & ~torch.isfinite(values).all()
        self._first.copy_(torch.where(is_first, self._steps, self._first))
        self._values.copy_(torch.where(is_first, values, self._values))
        self._bad.add_(is_first)
        if ends_step:
            self._steps.add_(1)

    def remember(self, step: int, index: Tensor) -> None:
        """Keeps, on the host, what `poll` says about a step that was noted.

        Args:
            step: of the run, counted from 0.
            index: int64 on the CPU, the samples of this worker.
        """
        self._recent.append((step, index))

    def poll(self) -> BadStep | None:
        """Waits for the device and returns the first bad step since the last call, or None."""
        recent, self._recent = self._recent, []
        bad = bool(self._bad)
        first = int(self._first) if bad else 0
        self._steps.zero_()
        if not bad:
            return None
        step, index = recent[first]
        return BadStep(step, index.tolist(), self._values.tolist())
