"""The training loop: `train` calls `train_epoch`, which calls `train_step`.

It knows no dataset, no strategy and no Ray; `Dataset`, `Strategy` and `Runtime` provide them.
"""

from __future__ import annotations

import math
import time
from functools import partial

import torch
from torch import Tensor

from cggm_ray.core.batch import Batch
from cggm_ray.core.errors import StoppedError, UsageError
from cggm_ray.core.memory import forget_peak, peak_memory
from cggm_ray.core.seeding import derive_seed, seed_all
from cggm_ray.data.loading.sampler import with_given
from cggm_ray.engine.evaluation import Observer, evaluate
from cggm_ray.engine.graph import DeviceRates, GraphStep, TakeStep, Values, against_graph
from cggm_ray.engine.guards import step_or_skip, stop_if_not_finite
from cggm_ray.engine.header import header
from cggm_ray.engine.inputs import unequal_gradients
from cggm_ray.engine.meter import Meter
from cggm_ray.engine.opening import Training
from cggm_ray.engine.phases import begin_epoch, rest_of
from cggm_ray.engine.runtime import Record, Runtime, numbers
from cggm_ray.engine.state import TrainState
from cggm_ray.engine.step import train_step
from cggm_ray.engine.stopping import Notice
from cggm_ray.engine.tracking import Console, Tracker, default_trackers
from cggm_ray.models.composed.pretrained import PretrainedEncoder
from cggm_ray.strategies.rates import rescale


def train(training: Training) -> None:
    """Trains up to the last epoch, or until early stopping; reports every epoch with a checkpoint.

    All checkpoints are written when it returns. Where an error ends it, the one that is being written is waited for.

    Raises:
        NonFiniteError: the loss or the gradient stopped being finite.
        StorageError: a checkpoint cannot be written.
        StoppedError: the run received a request to stop; the state was saved.
    """
    try:
        _train(training)
    except KeyboardInterrupt:
        # A second Ctrl-C ends the process at once.
        raise
    except BaseException:
        training.runtime.wait()
        raise


def _train(training: Training) -> None:
    config, state, runtime, splits = training.config, training.state, training.runtime, training.splits
    budget = training.budget
    console = Console(training.folder) if runtime.rank == 0 else None
    trackers: list[Tracker] = []
    if console is not None:
        console.say(header(training))
        metric = state.best.metric
        trackers = default_trackers(
            config.run.trackers,
            training.folder,
            console,
            training.modalities,
            metric,
            finished=state.epoch,
            epochs=budget.epochs,
            parameters=config.parameters(),
        )
    take = how_to_step(training, console)
    forget_peak(runtime.device)
    while state.epoch < budget.epochs and not _out_of_patience(config.train.patience, state):
        start, seen = time.perf_counter(), state.samples
        record = train_epoch(training, console, take)
        seconds = time.perf_counter() - start
        observer = Observer(state.strategy) if state.strategy.observes else None
        valid = evaluate(config.train, state.evaluated, training.task, splits["valid"], runtime, observer=observer)
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
                "samples_per_second": (state.samples - seen) / seconds,
                **({} if (peak := peak_memory(runtime.device)) is None else {"peak_memory": peak}),
            }
        )
        # The epoch before is reported before this one is logged, and this one is logged before it is reported, because a
        # search may end the run inside a report. A line whose checkpoint was not written is dropped when the run goes on.
        runtime.settle()
        for tracker in trackers:
            tracker.log(record)
        runtime.report(record, state.content)
        if runtime.notice(now=True) is Notice.STOP:
            raise stopped(runtime, state)
    runtime.settle()
    for tracker in trackers:
        tracker.close()


def how_to_step(training: Training, console: Console | None) -> TakeStep:
    """Returns what takes a step of a run: `train_step`, on a GPU recorded as a graph where that is possible and wanted.

    On a GPU the learning rates are float32 tensors either way, so that both have the same bits.

    Raises:
        UsageError: `--step graph`, and a step of this run cannot be recorded.
    """
    config, state, runtime = training.config, training.state, training.runtime

    def eager(batch: Batch, largest: int | None) -> Values:
        parts, clip = config.train.accumulate, config.optim.clip
        return train_step(state, training.step, batch, runtime, accumulate=parts, clip=clip, largest=largest)

    network = config.model.network or training.dataset.network
    options, strategy = config.network_options(network), state.strategy
    pretrained = any(isinstance(part, PretrainedEncoder) for part in state.net.modules())
    reason = against_graph(
        config.train, network, options, strategy, runtime.device, runtime.world_size, pretrained=pretrained
    )
    if config.train.step == "graph" and reason is not None:
        raise UsageError(f"step: found graph; {reason}, so take --step eager")
    if runtime.device.type != "cuda" or strategy.rates_by_step:
        return eager
    rates = DeviceRates([state.optimizer, strategy.own_optimizer()], runtime.device)
    records = reason is None and config.train.step != "eager"
    if console is not None and config.train.step == "auto":
        console.say(
            f"a step is {'recorded as one CUDA graph' if records else f'not recorded as a CUDA graph: {reason}'}"
        )
    if records:
        return GraphStep(eager, state, rates)

    def with_rates(batch: Batch, largest: int | None) -> Values:
        with rates.applied():
            return eager(batch, largest)

    return with_rates


def train_epoch(training: Training, console: Console | None, take: TakeStep | None = None) -> Record:
    """Trains for one epoch, or for the rest of an interrupted one; returns the means of the steps.

    Args:
        training: the run.
        console: of rank 0.
        take: see `how_to_step`; by default what it returns.

    Raises:
        StoppedError: the run received a request to stop; the state was saved.
    """
    settings, state, runtime, split = training.config.train, training.state, training.runtime, training.splits["train"]
    take = how_to_step(training, console) if take is None else take
    seed, samples = settings.seed, begin_epoch(training)
    training.step.train()
    plan, steps = (
        rest_of(samples, state.within, settings.batch_size, runtime),
        -(-len(samples.order) // settings.batch_size),
    )
    meter = Meter(runtime)
    for part, plain in zip(plan, meter.waiting(split.batches(plan, state.epoch)), strict=True):
        batch = with_given(plain, part)
        seed_all(derive_seed(seed, "step", state.step, runtime.rank))
        state.schedule.before_step(state.step)
        values = step_or_skip(settings.on_nonfinite, state, training.step, console, partial(take, batch, part.largest))
        if state.watch is not None:
            state.watch.remember(state.step, batch.index)
        if values is not None:
            if console is not None and state.epoch == 0 and not state.averages.steps:
                say_unequal_gradients(training, console, values["grad_norm"])
            state.averages.add(values)
            if state.ema is not None:
                state.ema.update(state.net)
        state.step += 1
        state.samples += part.samples
        state.within += part.samples
        meter.samples += part.samples
        if console is not None:
            console.step = state.step
        number = state.position.steps
        if number == 1:
            # The optimizer has its state from here on, so the size of a checkpoint is known.
            runtime.reserve(state.content)
        if number % settings.log_interval == 0 or number == steps:
            stop_if_not_finite(state, runtime)
        if values is not None and console is not None and number % settings.log_interval == 0:
            console.say(f"epoch {state.epoch + 1}  step {number}/{steps}  loss {float(values['loss']):.4f}")
        if number % settings.log_interval == 0 or number == steps:
            meter.tell(state, training.modalities)
        meter.show(state, training.modalities, steps, training.budget.epochs)
        with meter.saving():
            between_steps(settings.save_every, state, runtime)
    return state.averages.read(training.modalities)


def say_unequal_gradients(training: Training, console: Console, norms_M: Tensor) -> None:
    """Prints a line after the first step of a run if the encoders get gradients of very different size."""
    line = unequal_gradients(training.config.inputs, training.modalities, norms_M)
    if line is not None:
        console.say(line)


def between_steps(every: int | None, state: TrainState, runtime: Runtime) -> None:
    """Saves if `--save_every` or a notice requires it.

    Raises:
        StoppedError: after saving, if the run received a request to stop.
    """
    notice = runtime.notice()
    if notice or (every is not None and state.step % every == 0):
        stop_if_not_finite(state, runtime)
        runtime.save(state.position, state.content)
    if notice is Notice.STOP:
        raise stopped(runtime, state)


def stopped(runtime: Runtime, state: TrainState) -> StoppedError:
    """Returns the line that says where a run stopped and how to continue it, when its last checkpoint is written.

    Raises:
        StorageError: it cannot be written.
    """
    runtime.settle()
    return StoppedError(
        f"stopped after {state.position}; saved in {runtime.checkpoints.folder / state.position.name}; the same command "
        "with the same --name goes on from there"
    )


def _out_of_patience(patience: int | None, state: TrainState) -> bool:
    return patience is not None and state.epoch > 0 and state.epoch - state.best.epoch >= patience
