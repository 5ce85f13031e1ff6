"""The composition root: builds the parts of a run from its configuration, and checks that they fit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from cggm_ray.core.errors import UsageError
from cggm_ray.core.registry import nearest
from cggm_ray.data.loading.split import Split
from cggm_ray.data.shards.opening import open_manifest
from cggm_ray.data.shards.shards import (
    Manifest,
)
from cggm_ray.data.split_names import SPLITS as SPLITS
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.step import TrainingStep
from cggm_ray.models.net import MultimodalNet
from cggm_ray.strategies.registry import STRATEGIES
from cggm_ray.tasks import Task

if TYPE_CHECKING:
    pass
from dataclasses import dataclass

from cggm_ray.core.seeding import derive_seed, make_deterministic
from cggm_ray.data.dataset import DATASETS, Dataset
from cggm_ray.engine.checkpoints import agree
from cggm_ray.engine.finite import DeviceWatch
from cggm_ray.engine.optim import model_optimizer
from cggm_ray.engine.runtime import Runtime
from cggm_ray.engine.schedules import build_schedule
from cggm_ray.engine.state import Best, TrainState
from cggm_ray.engine.tracking import Console, check_trackers
from cggm_ray.models.net import compile_parts


def check_configuration(dataset: Dataset, manifest: Manifest) -> None:
    """Raises what only the data can tell about a configuration, before any long work starts.

    Args:
        dataset: with the configuration of the run.
        manifest: of its set, or what is known of it before it is made.

    Raises:
        UsageError: modalities, strategy, utility or selection metric do not fit the dataset.
    """
    config, task = dataset.config, dataset.task(manifest)
    modalities = selected_modalities(config, manifest)
    name, info = config.modulation.modulation, STRATEGIES.get(config.modulation.modulation)
    if not info.serves(task):
        able = [other for other in STRATEGIES.names() if STRATEGIES.get(other).serves(task)]
        raise UsageError(
            f"modulation: {name!r} is not defined for {type(task).__name__.lower()}; these are: {', '.join(able)}"
        )
    if info.balances and len(modalities) < 2:
        raise UsageError(
            f"modulation: {name!r} balances at least two modalities, found {len(modalities)}: "
            f"{', '.join(modalities)}; use --modulation none"
        )
    if info.whole_batch and config.train.accumulate > 1:
        raise UsageError(
            f"accumulate: found {config.train.accumulate}; the strategy {name!r} compares gradients of the whole batch, "
            "expected 1"
        )
    if info.check is not None:
        info.check(config, modalities)
    if config.modulation.utility is not None:
        task.utility(config.modulation.utility)
    names = task.metric_names()
    if config.train.select is not None and config.train.select not in names:
        raise UsageError(
            f"select: no validation metric {config.train.select!r}{nearest(config.train.select, names)}; available: "
            f"{', '.join(names)}"
        )


def build_network(
    dataset: Dataset, manifest: Manifest, modalities: tuple[str, ...]
) -> tuple[MultimodalNet, dict[str, nn.Module]]:
    """The network of a run and a guide per modality: the dataset's, or what the strategy makes of them."""
    net, guides = dataset.network(manifest, modalities)
    change = STRATEGIES.get(dataset.config.modulation.modulation).network
    return net if change is None else change(dataset.config, net, guides), guides


def selected_modalities(config: Config, manifest: Manifest) -> tuple[str, ...]:
    """The modalities of a run, in the order of the dataset.

    Raises:
        UsageError: one of `modalities` does not exist.
    """
    wanted = config.data.modalities
    if wanted is None:
        return tuple(manifest.modalities)
    for name in wanted:
        if name not in manifest.modalities:
            raise UsageError(
                f"modalities: {manifest.dataset} has no {name!r}{nearest(name, manifest.modalities)}; available: "
                f"{', '.join(manifest.modalities)}"
            )
    return tuple(name for name in manifest.modalities if name in wanted)


WORKING_AHEAD = ("cuda",)
"""Devices on which a step is only begun when the next one is."""


def check(config: Config, shards: Path) -> None:
    """Raises what `open_training` would raise about the configuration, before any worker starts; `prepare` does it before that.

    Raises:
        DataError: the shards are gone.
        UsageError: modalities, strategy, utility or selection metric do not fit the dataset; a tracker is not installed.
    """
    check_trackers(config.run.trackers)
    manifest = open_manifest(shards)
    check_configuration(DATASETS.get(manifest.dataset)(config), manifest)


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
