"""Decisions that a run takes before its first step, on short trials of its own training.

A trial is the run itself, with the same data, seed and workers, for a small part of its steps. It is selected on validation and
leaves nothing behind: no checkpoint, and no trained weight. All workers see the same sums, so they decide alike. A run that
goes on from a checkpoint finds the decisions in it and takes none.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from torch import Tensor, nn
from torch.optim import Optimizer

from cggm_ray.core.errors import NonFiniteError, StoppedError
from cggm_ray.core.reduction import Reduction
from cggm_ray.engine.averages import Averages
from cggm_ray.engine.checkpoints import Checkpoints
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.evaluation import evaluate
from cggm_ray.engine.inputs import share_scales
from cggm_ray.engine.loop import train_epoch
from cggm_ray.engine.opening import Training, open_training, restarted
from cggm_ray.engine.runtime import Record, Runtime
from cggm_ray.engine.schedules import Schedule, set_rate
from cggm_ray.engine.state import Content, Position
from cggm_ray.engine.stopping import Notice
from cggm_ray.engine.tracking import Console
from cggm_ray.models.net import MultimodalNet
from cggm_ray.models.standardise import AUTO, MODALITY, ON
from cggm_ray.storage.files import write_text
from cggm_ray.strategies.settings import JOINT, ModulationConfig

DECISIONS = "decisions.json"
"""File in the folder of a run: what was decided, and the validation metrics that decided it."""
SHARE, FEWEST, MOST = 0.1, 100, 400
"""A trial has this share of the run's steps, within these bounds."""
RATES = 100
"""Steps of the learning-rate range test."""
RANGE = (1e-5, 1.0)
"""Lowest and highest learning rate of the range test."""
SAFE = 10.0
"""The chosen learning rate is that of the lowest loss divided by this."""
MEMORY = 0.9
"""Decay of the moving average of the losses in the range test."""


def open_decided(config: Config, shards: Path, runtime: Runtime, folder: Path) -> Training:
    """Opens a run as `open_training` does and takes the decisions that its configuration leaves open.

    Args:
        config: of the run.
        shards: folder of the converted set.
        runtime: where the loop runs.
        folder: of the run, the same for all workers.

    Raises:
        DataError: the shards are gone or damaged.
        TrainingError: the checkpoint cannot be used.
        StoppedError: the run received a request to stop.
    """
    training = open_training(config, shards, runtime, folder)
    if training.state.step:
        return training
    decisions: dict[str, object] = {}
    if config.inputs.standardise == AUTO and training.state.net.inputs:
        decisions["standardise"] = decide_standardise(training)
    if config.train.find_lr:
        training, decisions["lr"] = with_found_lr(training)
    if decisions and runtime.rank == 0:
        write_text(folder / DECISIONS, json.dumps(decisions, indent=1))
    return training


def decide_standardise(training: Training) -> Mapping[str, object]:
    """Trains shortly with features that are standardised each by itself, and with one scale for each modality.

    The second is kept where it validates better by more than chance.

    Returns:
        The choice, 'on' or 'modality', and both values of the selection metric.
    """
    metric, mode = training.state.best.metric, training.state.best.mode
    steps = min(max(FEWEST, round(SHARE * training.budget.total)), MOST, training.budget.total)
    values = {ON: _tried(training, steps, lambda net: None), MODALITY: _tried(training, steps, share_scales)}
    gain = (values[MODALITY] - values[ON]) * (1 if mode == "max" else -1)
    # A smaller gain is no reason, because features in other units need a scale each.
    choice = MODALITY if gain > chance_of(values[ON], mode, len(training.splits["valid"])) else ON
    if choice == MODALITY:
        share_scales(training.state.net)
    _say(
        training,
        f"standardise auto: {choice}, because {steps} steps reach valid {metric} {values[ON]:.4f} with a scale for each "
        f"feature (on) and {values[MODALITY]:.4f} with one for each modality (modality)",
    )
    return {"choice": choice, "metric": metric, "steps": steps, **values}


def chance_of(value: float, mode: str, samples: int) -> float:
    """Returns by how much a validation metric moves by chance: about one standard error.

    A share of samples, such as accuracy, has the standard error sqrt(value (1 - value) / samples), with half a sample added on
    either side, so that it is not 0 where all samples are right. For an error it is about value / sqrt(samples).

    Args:
        value: of the metric.
        mode: 'min' or 'max', which of two values is better.
        samples: of validation.
    """
    if not math.isfinite(value):
        return 0.0
    if mode == "max" and 0 <= value <= 1:
        share = (value * samples + 0.5) / (samples + 1)
        return math.sqrt(share * (1 - share) / samples)
    return abs(value) / math.sqrt(samples)


def with_found_lr(training: Training) -> tuple[Training, Mapping[str, object]]:
    """Chooses the learning rate by a range test (Smith 2017, "Cyclical Learning Rates for Training Neural Networks").

    The rate rises exponentially over `RATES` steps. The choice is a tenth of the rate at which the moving average of the loss
    is lowest.

    Returns:
        The run with that learning rate, before its first step, and the rate with the steps of the test.
    """
    config = training.config
    probe = _probe(training, RATES)
    ramp, losses = Ramp(probe.state.optimizer), Losses()
    probe.state.schedule, probe.state.averages = ramp, losses
    # Where the loss stops being finite, the rates up to that one were measured.
    with suppress(NonFiniteError):
        train_epoch(probe, None)
    smooth, lowest, best = 0.0, math.inf, 0
    for number, loss in enumerate(losses.values):
        smooth = MEMORY * smooth + (1 - MEMORY) * loss
        value = smooth / (1 - MEMORY ** (number + 1))
        if value < lowest:
            lowest, best = value, number
    found = ramp.rate(best) / SAFE
    _say(
        training,
        f"find_lr: learning rate {found:.3g}; the loss of {RATES} rising rates is lowest at {SAFE * found:.3g}",
    )
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr=found))
    return restarted(training, config, training.runtime), {"choice": found, "steps": RATES}


class Ramp(Schedule):
    """A learning rate that rises exponentially over `RANGE` in `RATES` steps.

    Args:
        optimizer: of the model.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    def rate(self, step: int) -> float:
        """Returns the learning rate of a step."""
        low, high = RANGE
        return float(low * (high / low) ** (step / (RATES - 1)))

    def before_step(self, step: int) -> None:
        """Sets the learning rate of a step."""
        set_rate(self._optimizer, self.rate(step))


class Losses(Averages):
    """Averages that also keep the loss of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[float] = []

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Adds a step."""
        super().add(values)
        self.values.append(float(values["loss"]))


class ProbeRuntime:
    """The runtime of a trial: it saves and reports nothing, and a request to stop ends the run without a checkpoint."""

    def __init__(self, inner: Runtime) -> None:
        self._inner = inner
        self.rank, self.world_size, self.device = inner.rank, inner.world_size, inner.device

    def reduce(self) -> Reduction:
        """Returns the sum over the workers of the run."""
        return self._inner.reduce()

    def wrap(self, module: nn.Module) -> nn.Module:
        """Returns the module with gradients that are averaged over the workers."""
        return self._inner.wrap(module)

    def reserve(self, content: Callable[[], Content]) -> None:
        """Does nothing."""

    def save(self, position: Position, content: Callable[[], Content]) -> None:
        """Does nothing."""

    def report(self, record: Record, content: Callable[[], Content]) -> None:
        """Does nothing."""

    def settle(self) -> None:
        """Does nothing."""

    def wait(self) -> None:
        """Does nothing."""

    @property
    def checkpoints(self) -> Checkpoints:
        """Checkpoints of the run."""
        return self._inner.checkpoints

    def notice(self, now: bool = False) -> Notice:
        """Returns NONE, or raises a StoppedError where the workers agree to stop."""
        if self._inner.notice(now) is Notice.STOP:
            raise StoppedError("stopped before the first step; nothing was to be saved, the same command starts again")
        return Notice.NONE

    def stop_requested(self) -> bool:
        """Returns whether a stop was requested, as far as this worker knows."""
        return self._inner.stop_requested()

    measures = False

    def measure(self, values: Mapping[str, float]) -> None:
        """Does nothing."""


def _probe(training: Training, steps: int) -> Training:
    """Returns a run of one epoch with so many steps, on the data of another and by joint training.

    With joint training the decisions of a seed are the same for all strategies, so that a comparison stays one of strategies.
    """
    config = dataclasses.replace(training.config, modulation=ModulationConfig(modulation=JOINT))
    settings = dataclasses.replace(
        config.train, num_epochs=1, min_steps=steps, max_steps=steps, valid_interval=steps, save_every=None, ema=0.0
    )
    return restarted(training, dataclasses.replace(config, train=settings), ProbeRuntime(training.runtime))


def _tried(training: Training, steps: int, change: Callable[[MultimodalNet], None]) -> float:
    """Returns the validation metric after a short training of a changed network; the worst value if it is not finite."""
    probe = _probe(training, steps)
    state = probe.state
    change(state.net)
    worst = -math.inf if state.best.mode == "max" else math.inf
    try:
        train_epoch(probe, None)
    except NonFiniteError:
        return worst
    valid = evaluate(probe.config.train, state.net, probe.task, probe.splits["valid"], probe.runtime)
    value = valid[state.best.metric]
    return value if math.isfinite(value) and math.isfinite(valid["loss"]) else worst


def _say(training: Training, line: str) -> None:
    if training.runtime.rank == 0:
        Console(training.folder).say(line)
