"""The composition root: it builds the parts of a run from its configuration and checks that they fit.

Only this module knows the whole configuration. Every part that it builds receives its own section and nothing more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cggm_ray.core.errors import UsageError
from cggm_ray.core.reduction import Reduce
from cggm_ray.core.registry import nearest
from cggm_ray.data.dataset import DATASETS, Dataset
from cggm_ray.data.loading.split import training_targets
from cggm_ray.data.prepare import prepare
from cggm_ray.data.settings import DatasetSettings
from cggm_ray.data.shards.shards import Manifest, WriteShards
from cggm_ray.engine.budget import LARGEST, Budget, batch_size_for
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.ema import MovingAverage
from cggm_ray.engine.finite import DeviceWatch
from cggm_ray.engine.inputs import check_inputs
from cggm_ray.engine.linear_blend import check_linear
from cggm_ray.engine.optim import OptimConfig, build_schedule, guide_optimizer, model_optimizer
from cggm_ray.engine.refit import check_refit
from cggm_ray.engine.runtime import Runtime
from cggm_ray.engine.state import Best, TrainState
from cggm_ray.engine.teachers import find_teachers, load_teachers
from cggm_ray.engine.tracking import check_trackers
from cggm_ray.models.composed.pretrained import PretrainedEncoder
from cggm_ray.models.net import MultimodalNet
from cggm_ray.models.outputs import scale_outputs
from cggm_ray.models.precision import in_double
from cggm_ray.models.registry import NETWORKS, NetworkPlan
from cggm_ray.models.settings import ModelConfig
from cggm_ray.models.standardise import standardise_modules
from cggm_ray.strategies.base import Strategy
from cggm_ray.strategies.registry import STRATEGIES, Materials, Setting
from cggm_ray.strategies.settings import CGGM_MULTILOSS, JOINT, ModulationConfig
from cggm_ray.tasks import Classification, Regression, Task
from cggm_ray.tasks.base import Targets
from cggm_ray.tasks.settings import BALANCED

WORKING_AHEAD = ("cuda",)
"""Types of devices that run behind the host."""


def build_dataset(config: Config, name: str | None = None) -> Dataset:
    """Builds the dataset of a run.

    Args:
        config: of the run.
        name: of the dataset, where a manifest says it.

    Raises:
        UsageError: no such dataset, or options of another one.
    """
    settings = DatasetSettings(
        options=config.options,
        data=config.data,
        shard_root=config.shard_root,
        seed=config.train.seed,
        no_cuda=config.run.no_cuda,
    )
    return DATASETS.get(name or config.data.dataset)(settings)


def fold_runs(config: Config) -> dict[str, Config]:
    """Returns the configuration of every fold by its name; the dict is empty if the configuration is a single run."""
    folds = build_dataset(config).folds()
    return {fold: dataclasses.replace(config, options=options) for fold, options in folds.items()}


def prepare_data(config: Config, write: WriteShards) -> Path:
    """Returns the folder of a run's shards, after converting the data with `prepare` if there are none."""
    dataset = build_dataset(config)
    return prepare(dataset, write, partial(check_configuration, config, dataset))


def selected_modalities(config: Config, manifest: Manifest) -> tuple[str, ...]:
    """Returns the modalities of a run, in the order of the dataset.

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


def input_kinds(config: Config, manifest: Manifest) -> dict[str, str]:
    """Returns the kind of every modality of a run (sequence, vector, image or frames), in the order of the dataset."""
    return build_dataset(config, manifest.dataset).kinds(manifest, selected_modalities(config, manifest))


def standardised_kinds(config: Config, manifest: Manifest) -> dict[str, str]:
    """Returns the kind of every modality whose inputs are standardised: all but those that a trained model takes."""
    dataset, modalities = build_dataset(config, manifest.dataset), selected_modalities(config, manifest)
    taken = dataset.pretrained(manifest, modalities)
    return {name: kind for name, kind in dataset.kinds(manifest, modalities).items() if name not in taken}


def with_batch_size(config: Config, manifest: Manifest, workers: int = 1) -> Config:
    """Returns the configuration with a batch size by the size of the training split, where `batch_size` is 0.

    The manifest that a run recorded for new data has no training split; nothing is trained then, and the size is the largest.
    """
    if config.train.batch_size:
        return config
    size = batch_size_for(manifest.rows("train"), workers) if manifest.splits.get("train") else LARGEST
    return dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=size))


def with_strategy(config: Config, modalities: Sequence[str]) -> Config:
    """Returns the configuration with joint training, where a default strategy has a single modality, which needs no balance.

    A strategy that is no default, of a recipe or of the preset `quick`, was chosen, so it is not replaced.
    """
    default = ModulationConfig()
    if len(modalities) > 1 or config.modulation.modulation not in (default.modulation, CGGM_MULTILOSS):
        return config
    return dataclasses.replace(config, modulation=dataclasses.replace(default, modulation=JOINT))


def build_task(config: Config, dataset: Dataset, manifest: Manifest, shards: Path | None = None) -> Task:
    """Builds what a run predicts, with the options of its loss.

    Args:
        config: of the run.
        dataset: of the run.
        manifest: of its set.
        shards: folder of the set, where class weights or the unit of a regression follow from its training targets; None where
            nothing is trained.

    Raises:
        UsageError: the loss of this task has no such option.
        DataError: a shard cannot be read.
    """
    task = dataset.task(manifest)
    balanced = isinstance(task, Classification) and config.loss.class_weights == BALANCED
    scaled = isinstance(task, Regression) and config.inputs.standardises
    if shards is None or not (balanced or scaled):
        return task.with_loss(config.loss)
    values, none = training_targets(shards, manifest), torch.zeros(0)
    if balanced:
        return task.with_loss(
            config.loss, Targets(torch.bincount(values.flatten().long(), minlength=task.outputs), none, none)
        )
    values = values.double()
    # In the precision of the heads, from which a finished run reads them.
    return task.with_loss(config.loss, Targets(none, values.mean(0).float(), values.std(0, correction=0).float()))


def check_configuration(config: Config, dataset: Dataset, manifest: Manifest) -> None:
    """Checks, before any long work starts, the parts of a configuration that depend on the data.

    Args:
        config: of the run.
        dataset: of the run.
        manifest: of its set, or what is known of it before it is made.

    Raises:
        UsageError: modalities, network, inputs, strategy, utility or selection metric do not fit the dataset.
    """
    task, modalities = dataset.task(manifest), selected_modalities(config, manifest)
    config = with_strategy(config, modalities)
    check_network(config, dataset, manifest, modalities)
    check_inputs(config.inputs, dataset, manifest, modalities)
    check_linear(config.train, dataset, manifest, modalities)
    check_refit(config)
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
            f"accumulate: found {config.train.accumulate}; the strategy {name!r} needs the whole batch at once, expected 1"
        )
    if info.check is not None:
        info.check(Setting(**setting(config, modalities)))
    runs = config.strategy.teachers()
    if runs is not None:
        find_teachers(config, runs, modalities)
    if config.modulation.utility is not None:
        task.utility(config.modulation.utility)
    names = task.metric_names()
    if config.train.select is not None and config.train.select not in names:
        raise UsageError(
            f"select: no validation metric {config.train.select!r}{nearest(config.train.select, names)}; available: "
            f"{', '.join(names)}"
        )


def check_network(config: Config, dataset: Dataset, manifest: Manifest, modalities: tuple[str, ...]) -> None:
    """Raises a UsageError if sizes are given that the network does not have, or its options do not fit the modalities."""
    name = config.model.network or dataset.network
    info = NETWORKS.get(name)
    if info.check is not None:
        info.check(network_plan(config, dataset, manifest, modalities))
    pretrained = dataset.pretrained(manifest, modalities)
    if not info.pretrained and pretrained:
        raise UsageError(f"network: {name!r} trains no encoders of --train_encoders; take --network composed")
    if not pretrained and config.optim.encoder_lr != OptimConfig().encoder_lr:
        raise UsageError("encoder_lr: no pretrained encoder is trained; leave it out, or name some by --train_encoders")
    for field, default in vars(ModelConfig()).items():
        if not info.sized and field != "network" and getattr(config.model, field) != default:
            raise UsageError(f"{field}: the network {name!r} has no such size; leave it out")
    for other, options in config.networks.items():
        for field, default in vars(type(options)()).items():
            if other != name and getattr(options, field) != default:
                raise UsageError(
                    f"{field}: the network {name!r} has no such option; leave it out, or take --network {other}"
                )


def setting(config: Config, modalities: tuple[str, ...]) -> dict[str, Any]:
    """Returns the fields of `Setting`: what the strategy of a run may know of it."""
    return {
        "options": config.strategy,
        "modulation": config.resolved_modulation,
        "modalities": modalities,
        "lr": config.optim.lr,
        "seed": config.train.seed,
    }


def network_plan(
    config: Config, dataset: Dataset, manifest: Manifest, modalities: tuple[str, ...], *, weights: bool = False
) -> NetworkPlan[Any]:
    """Returns what the network of a run is built from; trained models have their weights with `weights`."""
    task = dataset.task(manifest)
    return NetworkPlan(
        shapes=dataset.shapes(manifest, modalities),
        kinds=dataset.kinds(manifest, modalities),
        outputs=task.outputs,
        regression=isinstance(task, Regression),
        # New data to predict have no training split.
        samples=manifest.rows("train") if "train" in manifest.splits else None,
        sizes=config.model,
        options=config.network_options(config.model.network or dataset.network),
        pretrained={name: partial(make, weights) for name, make in dataset.pretrained(manifest, modalities).items()},
    )


def build_network(
    config: Config, dataset: Dataset, manifest: Manifest, modalities: tuple[str, ...], task: Task | None = None
) -> tuple[MultimodalNet, dict[str, nn.Module]]:
    """Builds the network of a run and a guide classifier per modality.

    The network is the dataset's own or the one that `--network` names, and the strategy may change it.

    Modules that standardise inputs are the identity until a checkpoint or `fill_inputs` fills them. With them, heads of a
    regression are scaled to the unit of the task.

    Args:
        config: of the run.
        dataset: of the run.
        manifest: of its set.
        modalities: of the run.
        task: what is predicted; None takes the dataset's own, for a network whose weights are loaded.
    """
    plan = network_plan(config, dataset, manifest, modalities, weights=task is not None)
    task = dataset.task(manifest) if task is None else task
    net, guides = NETWORKS.get(config.model.network or dataset.network).build(plan)
    net = STRATEGIES.get(config.modulation.modulation).network_of(net, guides, config.strategy)
    if config.inputs.standardises:
        scaled = {name: shape for name, shape in plan.shapes.items() if name not in plan.pretrained}
        net.inputs.update(standardise_modules(scaled, plan.kinds))
        if isinstance(task, Regression):
            for head in scale_outputs(net, guides.values()):
                if task.location is not None and task.unit is not None:
                    head.fill(task.location, task.unit)
    if config.train.precision == "fp64":
        in_double(net, guides.values(), modalities)
    return net, guides


def check(config: Config, manifest: Manifest) -> None:
    """Raises the errors of the configuration that `open_training` would raise, before any worker starts.

    `prepare` calls it before it converts data.

    Raises:
        UsageError: modalities, strategy, utility or selection metric do not fit the dataset; a tracker is not installed.
    """
    check_trackers(config.run.trackers)
    check_configuration(config, build_dataset(config, manifest.dataset), manifest)


def build_strategy(
    config: Config, net: MultimodalNet, guides: Mapping[str, nn.Module], task: Task, reduce: Reduce
) -> Strategy:
    """Builds the strategy of a run.

    Args:
        config: of the run.
        net: the network that is trained.
        guides: a guide classifier by modality.
        task: what is predicted.
        reduce: sums a vector over workers.

    Raises:
        UsageError: a teacher does not fit.
    """
    runs = config.strategy.teachers()
    encoders = dict(net.encoders.items())
    found = {} if runs is None else find_teachers(config, runs, tuple(encoders))
    teachers, teacher_inputs = load_teachers(encoders, found)
    materials: Materials[Any] = Materials(
        **setting(config, tuple(encoders)),
        net=net,
        guides=guides,
        task=task,
        reduce=reduce,
        guide_optimizer=partial(guide_optimizer, config.optim),
        teachers=teachers,
        teacher_inputs=teacher_inputs,
    )
    return STRATEGIES.get(config.modulation.modulation).build(materials)


def new_state(
    config: Config,
    net: MultimodalNet,
    guides: Mapping[str, nn.Module],
    task: Task,
    runtime: Runtime,
    budget: Budget | None = None,
) -> TrainState:
    """Builds the state of a run before its first step, on the runtime's device.

    Args:
        config: of the run.
        net: that is trained.
        guides: a guide classifier by modality.
        task: what is predicted.
        runtime: where the loop runs.
        budget: length of the run; None where no schedule needs it.
    """
    net.to(runtime.device)
    for guide in guides.values():
        guide.to(runtime.device)
    strategy = build_strategy(config, net, guides, task, runtime.reduce())
    encoders = dict(net.encoders.items())
    trained = [part.model for part in net.modules() if isinstance(part, PretrainedEncoder)]
    optimizer = model_optimizer(config.optim, net.parameters(), encoders, strategy.rates(), trained)
    metric = config.train.select or task.selection[0]
    # A GPU runs behind the host until the host reads a number. Skipping a step needs that number after every step.
    later = runtime.device.type in WORKING_AHEAD and config.train.on_nonfinite == "stop"
    return TrainState(
        net=net,
        strategy=strategy.to(runtime.device),
        watch=DeviceWatch([optimizer, strategy.own_optimizer()], runtime.device) if later else None,
        optimizer=optimizer,
        schedule=build_schedule(config.optim, budget, optimizer),
        best=Best(
            metric=metric, mode=task.better(metric), latest=config.train.select_latest, last=bool(config.train.refit)
        ),
        config=config.to_dict(),
        ema=MovingAverage(net, config.train.ema) if config.train.ema else None,
    )
