"""Opens a run: its data, and its state at the beginning or after the last checkpoint."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from cggm_ray.core.arithmetic import choose_arithmetic
from cggm_ray.core.seeding import derive_seed, make_deterministic
from cggm_ray.data.dataset import Dataset
from cggm_ray.data.loading.split import Split
from cggm_ray.data.shards.opening import open_manifest
from cggm_ray.data.shards.shards import Manifest
from cggm_ray.engine.assembly import (
    build_dataset,
    build_network,
    build_task,
    new_state,
    selected_modalities,
    standardised_kinds,
    with_batch_size,
    with_strategy,
)
from cggm_ray.engine.budget import Budget, budget_of, with_window
from cggm_ray.engine.checkpoints import agree
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.inputs import calibrate, fill_inputs
from cggm_ray.engine.refit import joined_splits
from cggm_ray.engine.runtime import Runtime
from cggm_ray.engine.state import TrainState, saved_values
from cggm_ray.engine.step import TrainingStep
from cggm_ray.engine.tracking import Console
from cggm_ray.models.net import check_compiler, compile_parts
from cggm_ray.models.standardise import standardisers
from cggm_ray.strategies.base import Strategy
from cggm_ray.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Training:
    """An open run, which training continues from its state."""

    config: Config
    folder: Path
    runtime: Runtime
    manifest: Manifest
    dataset: Dataset
    task: Task
    modalities: tuple[str, ...]
    class_names: tuple[str, ...] | None
    splits: dict[str, Split]
    budget: Budget
    state: TrainState
    step: nn.Module


def open_training(config: Config, shards: Path, runtime: Runtime, folder: Path) -> Training:
    """Builds a run at its beginning, or after the last epoch that was saved.

    Args:
        config: of the run.
        shards: folder of the converted set.
        runtime: where the loop runs; it knows the checkpoints of an earlier start.
        folder: of the run, the same for all workers.

    Raises:
        DataError: the shards are gone or damaged.
        TrainingError: the checkpoint cannot be used.
    """
    choose_arithmetic(tf32=config.train.precision == "tf32", benchmark=config.train.cudnn_benchmark)
    if config.train.deterministic:
        make_deterministic()
    manifest = open_manifest(shards)
    config = with_batch_size(config, manifest, runtime.world_size)
    dataset = build_dataset(config, manifest.dataset)
    modalities = selected_modalities(config, manifest)
    given, config = config, with_strategy(config, modalities)
    splits = {name: dataset.open_split(shards, manifest, name, modalities, runtime.device) for name in manifest.splits}
    if config.train.refit:
        splits["train"] = joined_splits(splits["train"], splits["valid"])
    task = build_task(config, dataset, manifest, shards)
    budget = _budget(config, manifest, splits["train"])

    checkpoint, damaged = agree(runtime.checkpoints, runtime.rank, runtime.world_size, runtime.reduce(), runtime.device)
    if checkpoint is not None and config.train.find_lr:
        found = saved_values(checkpoint)["config"]["optim"]["lr"]
        config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr=found))
    state, step = first_state(config, dataset, manifest, task, runtime, budget, folder)
    if checkpoint is not None:
        state.load(checkpoint)
    else:
        fill_inputs(config.inputs, state.net, folder, shards, manifest, standardised_kinds(config, manifest))
        calibrate(config.inputs, state.net, splits["train"], config.train)
    if runtime.rank == 0:
        say = Console(folder).say
        if config is not given:
            say(
                f"modulation: {given.modulation.modulation} balances at least two modalities, and there is one, "
                f"{modalities[0]}: it is trained without balancing (--modulation {config.modulation.modulation})"
            )
        for line in damaged:
            say(line)
        if checkpoint is not None or damaged:
            say(f"continues after {state.position} from {checkpoint}" if checkpoint else "starts at the beginning")
    return Training(
        config=config,
        folder=folder,
        manifest=manifest,
        runtime=runtime,
        dataset=dataset,
        task=task,
        modalities=modalities,
        class_names=dataset.class_names(manifest),
        splits=splits,
        budget=budget,
        state=state,
        step=step,
    )


def restarted(training: Training, config: Config, runtime: Runtime) -> Training:
    """Returns a run on the same data and with the same task before its first step, without any checkpoint.

    Args:
        training: whose data is taken.
        config: of the other run; it may differ in everything that concerns neither data nor task.
        runtime: where its loop runs.
    """
    budget = _budget(config, training.manifest, training.splits["train"])
    state, step = first_state(
        config, training.dataset, training.manifest, training.task, runtime, budget, training.folder
    )
    before = standardisers(training.state.net)
    for name, module in standardisers(state.net).items():
        module.load_state_dict(before[name].state_dict())
    return dataclasses.replace(training, config=config, runtime=runtime, budget=budget, state=state, step=step)


def _budget(config: Config, manifest: Manifest, split: Split) -> Budget:
    rows = [shard.rows for shard in manifest.splits["train"]]
    return with_window(budget_of(config.train, len(split)), config.data.window, rows)


def first_state(
    config: Config, dataset: Dataset, manifest: Manifest, task: Task, runtime: Runtime, budget: Budget, folder: Path
) -> tuple[TrainState, nn.Module]:
    """Builds network, strategy and optimizer with the weights of the seed; returns the state and what a step calls."""
    torch.manual_seed(derive_seed(config.train.seed, "weights"))
    net, guides = build_network(config, dataset, manifest, selected_modalities(config, manifest), task)
    state = new_state(config, net, guides, task, runtime, budget)
    step = TrainingStep(net, state.strategy, config.train.precision)
    if config.train.compile:
        check_compiler(runtime.device)
        say = Console(folder).say
        reason = against_one_graph(state.strategy, runtime.world_size, config.train.accumulate)
        if reason is None:
            step.compile_whole(min(budget.batch_size, budget.samples), say)
        else:
            compile_parts(net, guides)
            if runtime.rank == 0:
                say(f"compile: encoders, fusion and guides one by one, because the step cannot be one graph: {reason}")
    return state, runtime.wrap(step)


def against_one_graph(strategy: Strategy, workers: int, parts: int) -> str | None:
    """Returns why a training step cannot be compiled as one graph, or None where it can.

    Args:
        strategy: of the run.
        workers: of the run.
        parts: in which a worker takes its share of a batch.
    """
    if workers > 1:
        return "sums are added over the workers within it"
    if parts > 1:
        return f"a batch is taken in {parts} parts"
    return strategy.against_compile
