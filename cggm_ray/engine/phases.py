"""The beginning of an epoch: what a strategy measures, the phase that it begins, and the samples that it chooses.

All of it is a function of the checkpoint and of (seed, epoch), so a run that goes on after an epoch begins the next one as an
uninterrupted run does. A checkpoint within an epoch holds what the beginning left behind, and only the plan is made again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cggm_ray.core.batch import EpochPlan, Order
from cggm_ray.core.errors import UsageError
from cggm_ray.data.loading.sampler import Plan, epoch_order
from cggm_ray.data.loading.split import Split
from cggm_ray.engine.opening import Training
from cggm_ray.engine.runtime import Runtime
from cggm_ray.engine.settings import TrainConfig
from cggm_ray.models.net import MultimodalNet
from cggm_ray.strategies.base import Strategy


def begin_epoch(training: Training) -> EpochPlan:
    """Begins the running epoch, unless steps of it were taken before, and returns its samples.

    Raises:
        UsageError: the plan of the strategy does not have the length of an epoch.
    """
    settings, state, runtime = training.config.train, training.state, training.runtime
    strategy = state.strategy
    if not state.position.steps:
        measured = {
            name: measured_split(settings, state.net, strategy, training.splits[name], runtime, most)
            for name, most in strategy.measures(state.epoch).items()
        }
        strategy.begin_epoch(state.epoch, measured)
        if strategy.fresh_optimizer(state.epoch):
            state.optimizer.state.clear()
    order = training.budget.order(settings.seed, state.epoch, state.step - state.position.steps)
    return planned(strategy, order, state.epoch, settings.seed, settings.batch_size)


def planned(strategy: Strategy, order: Order, epoch: int, seed: int, batch_size: int) -> EpochPlan:
    """Returns the samples that a strategy chooses for an epoch.

    Raises:
        UsageError: they are not as many as those of the order, or what it gives them is not.
    """
    if type(strategy).plan is Strategy.plan:
        # It chooses nothing, so the order need not be there as a whole.
        return EpochPlan(order, {})
    plan = strategy.plan(order[:], epoch=epoch, seed=seed, batch_size=batch_size)
    lengths = {"order": len(plan.order), **{name: len(values) for name, values in plan.given.items()}}
    for name, length in lengths.items():
        if length != len(order):
            raise UsageError(
                f"{type(strategy).__name__}.plan: found {length} samples in {name!r}; expected {len(order)}, the length of the "
                "epoch"
            )
    return plan


def rest_of(plan: EpochPlan, within: int, batch_size: int, runtime: Runtime) -> Plan:
    """Returns a worker's batches of the samples that an epoch still has.

    Args:
        plan: of the whole epoch.
        within: samples of it that were seen before.
        batch_size: samples of a global batch.
        runtime: of the worker.
    """
    return Plan(plan.order, batch_size, runtime.rank, runtime.world_size, plan.given, within)


@torch.no_grad()
def measured_split(
    settings: TrainConfig,
    net: MultimodalNet,
    strategy: Strategy,
    split: Split,
    runtime: Runtime,
    most: int | None,
) -> Tensor:
    """Returns what a strategy measures of the samples of a split, float64 [samples, K] in the order of their rows.

    Each worker measures its part, and all of them get the whole.

    Args:
        settings: batch size, precision and seed of the run.
        net: the bare network, which is put into evaluation mode.
        strategy: whose `measure` is called, in evaluation mode too.
        split: to measure.
        runtime: where the loop runs.
        most: samples at most; None for all.
    """
    rows = torch.arange(len(split))
    if most is not None and most < len(rows):
        rows = epoch_order(len(rows), settings.seed, 0)[:most].sort().values
    net.eval()
    strategy.eval()
    place = torch.full((len(split),), -1)
    place[rows] = torch.arange(len(rows))
    found: Any = None
    for batch in split.batches(Plan(rows, settings.batch_size, runtime.rank, runtime.world_size), epoch=0):
        with torch.autocast(batch.target.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            values = strategy.measure(net.encode(batch), batch).double()
        if found is None:
            found = values.new_zeros(len(rows), values.shape[1])
        if not batch.is_filler:
            found[place[batch.index].to(found.device)] = values
    reduce = runtime.reduce()
    whole: Tensor = found if reduce.is_single else reduce(found.flatten()).reshape(found.shape)
    return whole.cpu()
