"""The loop, from top to bottom: `train` calls `train_epoch`, that calls `train_step`; `finish` tests.

It knows no dataset, no strategy and no Ray; those come in through `Dataset`, `Strategy` and `Runtime`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from cggm_ray.accumulate import backward
from cggm_ray.batch import Batch, HeadOutput
from cggm_ray.checkpoints import agree, check_checkpoint
from cggm_ray.config import Config
from cggm_ray.data.dataset import DATASETS, Dataset, build_network, check_configuration, selected_modalities
from cggm_ray.data.sampler import epoch_order, slices
from cggm_ray.data.shards import Manifest, open_set
from cggm_ray.data.split import Split
from cggm_ray.errors import DataError, StoppedError, TrainingError
from cggm_ray.evaluation import Observer, Predictions, evaluate, write_predictions
from cggm_ray.files import copy_files, write_folder, write_text
from cggm_ray.finite import DeviceWatch
from cggm_ray.guards import look, non_finite, step_or_skip
from cggm_ray.models.batchnorm import global_batch
from cggm_ray.models.net import MultimodalNet, compile_parts
from cggm_ray.modulation.base import STRATEGIES, Strategy, alone
from cggm_ray.optim import build_schedule, clip_by_total_norm, model_optimizer, rescale
from cggm_ray.runtime import Record, Runtime, numbers
from cggm_ray.seeding import derive_seed, make_deterministic, seed_all
from cggm_ray.state import BEST, PREDICTIONS, Best, Position, TrainState, load_weights
from cggm_ray.stopping import Notice
from cggm_ray.tasks import Task
from cggm_ray.tracking import Console, Tracker, check_trackers, default_trackers

SUMMARY = "summary.json"
WORKING_AHEAD = ("cuda",)
"""Devices on which a step is only begun when the next one is."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a finished run is worth.

    Attributes:
        folder: of the run.
        best_epoch: the epoch whose checkpoint was tested, counted from 1.
        valid: its validation metrics.
        test: the test metrics.
    """

    folder: Path
    best_epoch: int
    valid: Record
    test: Record


def read_summary(folder: Path) -> Result:
    """The result that `finish` left in the folder of a run."""
    summary = json.loads((folder / SUMMARY).read_text())
    return Result(folder=folder, best_epoch=summary["best_epoch"], valid=summary["valid"], test=summary["test"])


class TrainingStep(nn.Module):
    """The forward half of a training step, as one module: what DistributedDataParallel wraps.

    It holds the network and the strategy, so the gradients of the guides are averaged over workers with the others.
    """

    def __init__(self, net: MultimodalNet, strategy: Strategy, precision: str) -> None:
        super().__init__()
        self.net = net
        self.strategy = strategy
        self._half = precision == "bf16"

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Task loss and the strategy's term, both of the global batch."""
        return self.strategy.losses(self._head(batch), batch.target, batch.weight)

    def sums(self, batch: Batch) -> Tensor:
        """What the losses are made of, of this batch alone; see `Strategy.local_sums`."""
        return self.strategy.local_sums(self._head(batch), batch.target, batch.weight)

    def _head(self, batch: Batch) -> HeadOutput:
        reduce = self.strategy.reduce
        with (
            torch.autocast(batch.target.device.type, torch.bfloat16, enabled=self._half),
            global_batch(reduce, batch.weight, alone=reduce is alone),
        ):
            self.strategy.see(batch.inputs, batch.masks)
            features = self.net.encode(batch.inputs, batch.masks)
            features = self.strategy.modulate(features, batch.target, batch.present, batch.weight, batch.masks)
            return self.net.fuse(features, batch.masks)


def check(config: Config, shards: Path) -> None:
    """Raises what `open_training` would raise about the configuration, before any worker starts; `prepare` does it before that.

    Raises:
        DataError: the shards are gone.
        UsageError: modalities, strategy, utility or selection metric do not fit the dataset; a tracker is not installed.
    """
    check_trackers(config.run.trackers)
    manifest = open_manifest(shards)
    check_configuration(DATASETS.get(manifest.dataset)(config), manifest)


def open_manifest(shards: Path) -> Manifest:
    """The manifest of a set that must be there.

    Raises:
        DataError: it is not complete.
    """
    manifest = open_set(shards)
    if manifest is None:
        raise DataError(f"{shards}: not a complete set of shards; on several nodes the folder must be shared storage")
    return manifest


@dataclass(frozen=True, kw_only=True)
class Training:
    """A run that is ready to go on from where its state stands."""

    config: Config
    folder: Path
    runtime: Runtime
    dataset: Dataset
    task: Task
    modalities: tuple[str, ...]
    splits: dict[str, Split]
    state: TrainState
    step: nn.Module


def open_training(config: Config, shards: Path, runtime: Runtime, folder: Path) -> Training:
    """A run at its beginning, or after the last epoch that was saved.

    Args:
        config: of the run.
        shards: folder of the converted set.
        runtime: where the loop runs; it knows the checkpoints of an earlier start.
        folder: of the run, the same for all workers.

    Raises:
        DataError: the shards are gone or damaged.
        TrainingError: the checkpoint cannot be used.
    """
    if config.train.deterministic:
        make_deterministic()
    manifest = open_manifest(shards)
    dataset = DATASETS.get(manifest.dataset)(config)
    modalities = selected_modalities(config, manifest)
    splits = {name: dataset.open_split(shards, manifest, name, modalities, runtime.device) for name in manifest.splits}
    task = dataset.task(manifest)

    torch.manual_seed(derive_seed(config.train.seed, "weights"))
    net, guides = build_network(dataset, manifest, modalities)
    if config.train.compile:
        compile_parts(net, guides, runtime.device)
    state = new_state(config, net, guides, task, runtime)
    checkpoint, damaged = agree(runtime.checkpoints, runtime.rank, runtime.world_size, runtime.reduce(), runtime.device)
    if checkpoint is not None:
        state.load(checkpoint)
    if runtime.rank == 0:
        say = Console(folder).say
        for line in damaged:
            say(line)
        if checkpoint is not None or damaged:
            say(f"continues after {state.position} from {checkpoint}" if checkpoint else "starts at the beginning")
    return Training(
        config=config,
        folder=folder,
        runtime=runtime,
        dataset=dataset,
        task=task,
        modalities=modalities,
        splits=splits,
        state=state,
        step=runtime.wrap(TrainingStep(net, state.strategy, config.train.precision)),
    )


def train(training: Training) -> None:
    """Trains up to the last epoch, or until patience runs out; reports every epoch with a checkpoint.

    Raises:
        NonFiniteError: the loss or the gradient stopped being finite.
        StorageError: a checkpoint cannot be written.
        StoppedError: somebody asked for it; the state was saved.
    """
    config, state, runtime, splits = training.config, training.state, training.runtime, training.splits
    console = Console(training.folder) if runtime.rank == 0 else None
    trackers: list[Tracker] = []
    if console is not None:
        metric = state.best.metric
        trackers = default_trackers(config, training.folder, console, training.modalities, metric, state.epoch)
    while state.epoch < config.train.num_epochs and not _out_of_patience(config, state):
        start, seen = time.perf_counter(), state.within
        record = train_epoch(config, state, training.step, splits["train"], training.modalities, runtime, console)
        seconds = time.perf_counter() - start
        observer = Observer(state.strategy) if state.strategy.observes else None
        valid = evaluate(config, state.net, training.task, splits["valid"], runtime, observer=observer)
        state.end_epoch()
        observed = None if observer is None else observer.sums
        state.strategy.end_epoch(record, valid, torch.zeros(0, dtype=torch.float64) if observed is None else observed)
        rescale(state.optimizer, state.strategy.rates())
        state.schedule.after_epoch(valid["loss"])
        # A network that overflows on validation is not the best one, whatever its metric says.
        finite = math.isfinite(valid["loss"])
        state.best.update(valid[state.best.metric] if finite else math.nan, state.epoch)
        if not finite and console is not None:
            console.say(f"epoch {state.epoch}: the validation loss is {valid['loss']}, which is never the best")
        record = numbers(
            {
                "epoch": state.epoch,
                "step": state.step,
                **record,
                **{f"valid/{name}": value for name, value in valid.items()},
                "best_epoch": state.best.epoch,
                "best_value": math.nan if state.best.value is None else state.best.value,
                "lr": state.optimizer.param_groups[0]["lr"],
                "seconds": seconds,
                "samples_per_second": (len(splits["train"]) - seen) / seconds,
            }
        )
        # Logged first: a search may end the run inside the report. A line whose checkpoint was not written is dropped when
        # the run goes on.
        for tracker in trackers:
            tracker.log(record)
        runtime.report(record, state.save)
        if runtime.notice(now=True) is Notice.STOP:
            raise stopped(runtime, state)
    for tracker in trackers:
        tracker.close()


def new_state(
    config: Config, net: MultimodalNet, guides: dict[str, nn.Module], task: Task, runtime: Runtime
) -> TrainState:
    """A run before its first step, on the runtime's device."""
    net.to(runtime.device)
    for guide in guides.values():
        guide.to(runtime.device)
    strategy = STRATEGIES.get(config.modulation.modulation).build(config, net, guides, task, runtime.reduce())
    strategy.is_guarded = True
    optimizer = model_optimizer(config.optim, net.parameters(), dict(net.encoders.items()), strategy.rates())
    metric = config.train.select or task.selection[0]
    # A GPU works ahead of this process as long as nobody asks for a number. To skip a step, somebody must.
    later = runtime.device.type in WORKING_AHEAD and config.train.on_nonfinite == "stop"
    return TrainState(
        net=net,
        strategy=strategy.to(runtime.device),
        watch=DeviceWatch([optimizer, strategy.own_optimizer()], runtime.device) if later else None,
        optimizer=optimizer,
        schedule=build_schedule(config, optimizer),
        best=Best(metric=metric, mode=task.better(metric)),
        config=config.to_dict(),
    )


def train_epoch(
    config: Config,
    state: TrainState,
    step: nn.Module,
    split: Split,
    modalities: Sequence[str],
    runtime: Runtime,
    console: Console | None,
) -> Record:
    """One pass over the training split, or what is left of it; returns the means of the step's quantities.

    Raises:
        StoppedError: see `train`.
    """
    step.train()
    size, seed = config.train.batch_size, config.train.seed
    order = epoch_order(len(split), seed, state.epoch)
    plan = list(slices(order[state.within :], size, runtime.rank, runtime.world_size))
    steps = -(-len(split) // size)
    for part, batch in zip(plan, split.batches(plan, state.epoch), strict=True):
        seed_all(derive_seed(seed, "step", state.step, runtime.rank))
        state.schedule.before_step(state.step, steps)
        take = partial(train_step, config, state, step, batch, runtime)
        values = step_or_skip(config, state, step, console, take)
        if values is not None:
            state.averages.add(values)
        state.step += 1
        state.samples += part.samples
        state.within += part.samples
        number = state.position.steps
        if number % config.train.log_interval == 0 or number == steps:
            look(state, runtime)
        if values is not None and console is not None and number % config.train.log_interval == 0:
            console.say(f"epoch {state.epoch + 1}  step {number}/{steps}  loss {float(values['loss']):.4f}")
        between_steps(config, state, runtime)
    return state.averages.read(modalities)


def between_steps(config: Config, state: TrainState, runtime: Runtime) -> None:
    """Saves where `--save_every` or a notice asks for it.

    Raises:
        StoppedError: after saving, where somebody asked the run to stop.
    """
    notice, every = runtime.notice(), config.train.save_every
    if notice or (every is not None and state.step % every == 0):
        look(state, runtime)
        runtime.save(state.position, state.save)
    if notice is Notice.STOP:
        raise stopped(runtime, state)


def stopped(runtime: Runtime, state: TrainState) -> StoppedError:
    """The line that says where a run stands and how it goes on."""
    return StoppedError(
        f"stopped after {state.position}; saved in {runtime.checkpoints.folder / state.position.name}; the same command "
        "with the same --name goes on from there"
    )


def train_step(config: Config, state: TrainState, step: nn.Module, batch: Batch, runtime: Runtime) -> dict[str, Tensor]:
    """One optimizer step on a global batch: forward, one backward for everything, clip, move.

    Raises:
        NonFiniteError: on all workers alike, before any parameter moved.
    """
    state.optimizer.zero_grad(set_to_none=True)
    task_loss, extra = backward(step, batch, config.train.accumulate)
    state.strategy.adjust()
    total, norms_M = clip_by_total_norm(state.net.parameters(), state.net.encoders.values(), config.optim.clip or None)
    # Loss and norm are those of the global batch, the same on every worker, so all of them stop or none does.
    if state.watch is not None:
        state.watch.note(state.step, batch.index, task_loss, extra, total)
    elif not bool(torch.isfinite(task_loss + extra + total)):
        raise non_finite(state, batch, task_loss, extra, total, runtime)
    if state.strategy.rates_by_step:
        rescale(state.optimizer, state.strategy.rates())
    state.optimizer.step()
    state.strategy.step()
    return {"loss": task_loss, "gradient_norm": total, "grad_norm": norms_M, **state.strategy.diagnostics}


def finish(training: Training) -> Result:
    """Tests the best checkpoint, and leaves its weights, its predictions and a summary in the folder of the run.

    Raises:
        TrainingError: that checkpoint is gone or damaged.
    """
    config, state, runtime, folder = training.config, training.state, training.runtime, training.folder
    task, splits = training.task, training.splits
    if not state.best.epoch:
        raise TrainingError(
            f"{folder}: the validation loss or {state.best.metric} was not a number after each of {state.epoch} epochs, so "
            "there is no best checkpoint to test; try a smaller --lr"
        )
    checkpoint = runtime.checkpoints.of(Position(state.best.epoch))
    if checkpoint is None:
        raise TrainingError(f"{folder}: the checkpoint of the best epoch, {state.best.epoch}, is gone")
    check_checkpoint(checkpoint)
    load_weights(state.net, checkpoint)
    valid = evaluate(config, state.net, task, splits["valid"], runtime)
    collected = None if task.dense else Predictions.empty(len(splits["test"]), task.outputs)
    test = evaluate(config, state.net, task, splits["test"], runtime, collected)
    result = Result(folder=folder, best_epoch=state.best.epoch, valid=numbers(valid), test=numbers(test))
    if runtime.rank == 0:
        write_folder(folder / BEST, lambda partial: copy_files(checkpoint, partial))
        if collected is not None:
            write_predictions(folder / PREDICTIONS, splits["test"].names, collected)
        training.dataset.finish(folder, state.net, splits["test"])
        summary = {"best_epoch": result.best_epoch, "epochs": state.epoch, "valid": result.valid, "test": result.test}
        write_text(folder / SUMMARY, json.dumps(summary, indent=1))
    return result


def _out_of_patience(config: Config, state: TrainState) -> bool:
    patience = config.train.patience
    return patience is not None and state.epoch > 0 and state.epoch - state.best.epoch >= patience
