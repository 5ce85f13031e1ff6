"""Means over the steps of an epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Averages:
    """Sums over the steps of the running epoch, kept on the device until they are read.

    They are part of the training state, so an interrupted epoch has the same means as an uninterrupted one.

    Attributes:
        steps: number of steps that were added.
        skipped: number of steps that were skipped, because their loss or gradient was not finite.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self.steps = 0
        self.skipped = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Adds the quantities of a step."""
        self.steps += 1
        for name, value in values.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name].to(value.device) + value if name in self._sums else value

    def read(self, modalities: Sequence[str]) -> dict[str, float]:
        """Returns the means by name; a vector [M] becomes 'name/modality'. The loss is NaN if every step was skipped.

        The dict also has 'skipped_steps', a number.
        """
        record: dict[str, float] = {} if self.steps else {"train/loss": float("nan")}
        for name, total in self._sums.items():
            mean = (total / self.steps).tolist()
            if isinstance(mean, list):
                record |= {f"{name}/{m}": value for m, value in zip(modalities, mean, strict=True)}
            else:
                record[f"train/{name}"] = mean
        record["skipped_steps"] = self.skipped
        return record

    def state_dict(self) -> dict[str, Any]:
        """Returns the sums so far."""
        return {"steps": self.steps, "skipped": self.skipped, "sums": dict(self._sums)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the sums that `state_dict` returned."""
        self.steps, self.skipped = int(state["steps"]), int(state["skipped"])
        self._sums = {name: torch.as_tensor(value) for name, value in state["sums"].items()}
