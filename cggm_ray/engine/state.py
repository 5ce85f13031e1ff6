"""The training state that a resume needs, written as safetensors and JSON without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from cggm_ray.core.errors import TrainingError
from cggm_ray.engine.averages import Averages
from cggm_ray.engine.ema import MovingAverage
from cggm_ray.engine.finite import DeviceWatch
from cggm_ray.engine.optim import retune
from cggm_ray.engine.schedules import Schedule
from cggm_ray.models.net import MultimodalNet
from cggm_ray.storage.files import copy_files
from cggm_ray.strategies.base import Strategy

BEST = "best"
"""Folder of the tested checkpoint in the folder of a run."""
WEIGHTS = "model.safetensors"
TENSORS = "training.safetensors"
VALUES = "training.json"
PREDICTIONS = "predictions.parquet"
PROGRESS = ("epoch", "step", "samples", "within", "skips")


@dataclass(frozen=True, order=True)
class Position:
    """Position in a run at which a checkpoint was made.

    Attributes:
        epoch: epochs finished.
        steps: of the running epoch; 0 between two epochs.
    """

    epoch: int
    steps: int = 0

    @property
    def name(self) -> str:
        """Name of the checkpoint's folder."""
        return f"epoch-{self.epoch:05d}" + (f"-step-{self.steps:06d}" if self.steps else "")

    def __str__(self) -> str:
        return f"epoch {self.epoch}" + (f" and {self.steps} steps" if self.steps else "")


@dataclass
class Best:
    """The best validation metric so far.

    Attributes:
        metric, mode: the metric and which way it improves.
        value, epoch: the best value and the epoch that reached it.
        latest: of several epochs with the best value, take the last one. A small validation split has many ties, and the
            later network was trained with a lower learning rate.
        last: take every epoch, so that the last one is tested. Its value is no choice, for validation was trained on.
    """

    metric: str
    mode: Literal["min", "max"]
    value: float | None = None
    epoch: int = 0
    latest: bool = False
    last: bool = False

    def update(self, value: float, epoch: int) -> bool:
        """Records the metric of an epoch (counted from 1); returns True if it is the best so far. NaN is never the best."""
        tie = self.latest and value == self.value
        taken = self.last or self.value is None or tie or self._better(value, self.value)
        if value != value or not taken:
            return False
        self.value, self.epoch = value, epoch
        return True

    def _better(self, value: float, than: float) -> bool:
        return value < than if self.mode == "min" else value > than


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a checkpoint holds.

    Attributes:
        weights: of the network that is validated, by name.
        tensors: all other tensors of the state, by their path in the tree of `values`.
        values: the rest of the state, as JSON.
    """

    weights: Mapping[str, Tensor]
    tensors: Mapping[str, Tensor]
    values: str

    def all(self) -> list[Tensor]:
        """Returns the weights and then the other tensors."""
        return [*self.weights.values(), *self.tensors.values()]

    def save(self, folder: Path) -> None:
        """Writes it into an existing folder; tensors must be contiguous, on the host, and share no memory."""
        save_file(dict(self.weights), folder / WEIGHTS)
        save_file(dict(self.tensors), folder / TENSORS)
        (folder / VALUES).write_text(self.values)


@dataclass
class TrainState:
    """The state of a training run between two steps.

    Attributes:
        epoch: epochs finished.
        step: optimizer steps done.
        samples: training samples seen.
        within: of these, samples of the running epoch; 0 between two epochs.
        averages: of the running epoch.
        skips: steps in a row, up to the last one, that were skipped because they were not finite.
        watch: records on the device whether steps were finite; None if every step is checked at once.
        ema: average of the weights over the steps; None where the weights themselves are kept.
    """

    net: MultimodalNet
    strategy: Strategy
    optimizer: Optimizer
    schedule: Schedule
    best: Best
    epoch: int = 0
    step: int = 0
    samples: int = 0
    within: int = 0
    averages: Averages = field(default_factory=Averages)
    skips: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    watch: DeviceWatch | None = None
    ema: MovingAverage | None = None

    @property
    def position(self) -> Position:
        """Current position in the run."""
        return Position(self.epoch, self.averages.steps + self.averages.skipped)

    @property
    def evaluated(self) -> MultimodalNet:
        """The network that is validated and whose weights a checkpoint keeps: the average where there is one."""
        return self.net if self.ema is None else self.ema.net

    def end_epoch(self) -> None:
        """Counts a finished epoch."""
        self.epoch, self.within, self.averages = self.epoch + 1, 0, Averages()

    def content(self) -> Content:
        """Returns what a checkpoint of this moment holds; its tensors are those of the state itself."""
        tensors: dict[str, Tensor] = {}
        tree = _strip(
            {
                "strategy": self.strategy.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "best": vars(self.best),
                "progress": {name: getattr(self, name) for name in PROGRESS},
                "averages": self.averages.state_dict(),
                "config": self.config,
                **({} if self.ema is None else {"trained": self.net.state_dict(), "averaged": self.ema.updates}),
            },
            "",
            tensors,
        )
        return Content(weights=self.evaluated.state_dict(), tensors=tensors, values=json.dumps(tree))

    def load(self, folder: Path) -> None:
        """Restores what a checkpoint holds; learning rates and weight decays follow `config` if it has others.

        Raises:
            TrainingError: a file is missing, damaged, or of another model or strategy.
        """
        try:
            self.evaluated.load_state_dict(load_file(folder / WEIGHTS))
            tree = _merge(json.loads((folder / VALUES).read_text()), load_file(folder / TENSORS))
            if self.ema is not None:
                self.net.load_state_dict(tree["trained"])
                self.ema.updates = int(tree["averaged"])
            self.strategy.load_state_dict(tree["strategy"])
            self.optimizer.load_state_dict(tree["optimizer"])
            self.schedule.load_state_dict(tree["schedule"])
            self.best = Best(**tree["best"])
            for name in PROGRESS:
                setattr(self, name, int(tree["progress"][name]))
            self.averages.load_state_dict(tree["averages"])
            before, now = tree["config"]["optim"], self.config["optim"]
            retune(self.optimizer, before["lr"], now["lr"], now["weight_decay"])
            guides = self.strategy.own_optimizer()
            if guides is not None:
                retune(guides, before["cls_lr"], now["cls_lr"], now["cls_weight_decay"])
        except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise TrainingError(f"{folder}: this checkpoint cannot be used: {error}") from error


def saved_values(folder: Path) -> dict[str, Any]:
    """Returns the plain values of a checkpoint: 'config', 'progress', 'best'.

    Raises:
        TrainingError: the file is missing or damaged.
    """
    try:
        values: dict[str, Any] = json.loads((folder / VALUES).read_text())
    except (OSError, ValueError) as error:
        raise TrainingError(f"{folder}: this checkpoint cannot be used: {error}") from error
    return values


def copy_as_own(source: Path, target: Path) -> None:
    """Copies the checkpoint of another run into an existing folder, for a run that has no best epoch yet."""
    copy_files(source, target)
    values = saved_values(source)
    values["best"] |= {"value": None, "epoch": 0}
    (target / VALUES).write_text(json.dumps(values))


def load_weights(net: MultimodalNet, folder: Path) -> None:
    """Loads the weights of a checkpoint into a network.

    Raises:
        TrainingError: the file is missing, damaged, or of another network.
    """
    try:
        net.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise TrainingError(f"{folder / WEIGHTS}: these weights cannot be used: {error}") from error


_TENSOR, _ITEMS = "$tensor", "$items"


def _strip(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Returns the tree for JSON: tensors move to `tensors` under their path, and dicts with other keys become pairs."""
    if isinstance(value, Tensor):
        tensors[path] = value
        return {_TENSOR: path}
    if isinstance(value, Mapping):
        items = {key: _strip(item, f"{path}/{key}", tensors) for key, item in value.items()}
        return items if all(isinstance(key, str) for key in items) else {_ITEMS: [[k, v] for k, v in items.items()]}
    if isinstance(value, list | tuple):
        return [_strip(item, f"{path}/{number}", tensors) for number, item in enumerate(value)]
    return value


def _merge(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Reverses `_strip`."""
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        if _ITEMS in value:
            return {key: _merge(item, tensors) for key, item in value[_ITEMS]}
        return {key: _merge(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_merge(item, tensors) for item in value]
    return value
