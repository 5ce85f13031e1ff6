"""What a run knows of a strategy, what a strategy is built from, and the strategies by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from torch import nn

from cggm_ray.core.reduction import Reduce
from cggm_ray.core.registry import Registry
from cggm_ray.tasks.base import Task

if TYPE_CHECKING:
    from cggm_ray.models.net import MultimodalNet
    from cggm_ray.strategies.base import Strategy
    from cggm_ray.strategies.guided import MakeOptimizer
    from cggm_ray.strategies.settings import ModulationConfig


@dataclass(frozen=True, kw_only=True)
class StrategyOptions:
    """Options of one strategy alone; a strategy that has any subclasses this, with `option` for every field.

    All strategies' flags exist side by side, so that one command compares several: field names begin with the strategy's.
    """

    def with_whole_paths(self, storage: Path) -> Self:
        """The same with names of runs made whole paths, for a trial, whose `storage_path` is another.

        Args:
            storage: where the names are.
        """
        return self

    def teachers(self) -> Sequence[str] | None:
        """Folders or names of the finished runs whose encoders teach this strategy; None where it has no teachers."""
        return None


S = TypeVar("S", bound=StrategyOptions)


@dataclass(frozen=True, kw_only=True)
class Setting(Generic[S]):
    """The settings of a run that a strategy receives before the network is built.

    Attributes:
        options: the strategy's own section of the configuration.
        modulation: the section that all strategies share, with the strategy's own choice for every part that is not set.
        modalities: their names, in the order of the network's encoders.
        lr: learning rate of the model.
        seed: of the run, the same on all workers.
    """

    options: S
    modulation: ModulationConfig
    modalities: tuple[str, ...]
    lr: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Materials(Setting[S]):
    """What a strategy is built from.

    Attributes:
        net: the network that is trained.
        guides: a guide classifier by modality.
        task: what is predicted.
        reduce: sums a vector over workers.
        guide_optimizer: makes the optimizer of guides from their parameters.
        teachers: trained encoders by modality, where the options name any.
        teacher_inputs: modules that their inputs pass before, for those that were trained so; see `MultimodalNet`.
    """

    net: MultimodalNet
    guides: Mapping[str, nn.Module]
    task: Task
    reduce: Reduce
    guide_optimizer: MakeOptimizer
    teachers: Mapping[str, nn.Module] = field(default_factory=dict)
    teacher_inputs: Mapping[str, nn.Module] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StrategyInfo(Generic[S]):
    """A strategy as a run knows it.

    Attributes:
        build: makes the strategy.
        parts: the parts that `--coefficients`, `--direction`, `--gate` can replace, with this strategy's own choice.
        options: class of its own section of the configuration.
        tasks: the tasks that it can serve; empty for all.
        balances: needs at least two modalities.
        whole_batch: needs the gradients of a worker's whole share of the batch, so `--accumulate` must be 1.
        shares: the strategy whose section of the configuration it reads, where that is not its own.
        check: raises a UsageError where the options do not fit the run; called before any long work.
        network: (net, guides, options) to the network that is trained, validated, saved and tested; None for the run's own.
            It is a function of its arguments alone, so that a checkpoint finds the same network again. What a strategy
            changes in the way from inputs to a prediction (another fusion or head, layers between the encoders) is a part
            of this network, which the strategy finds in `Materials.net`.
        validates: learns from the validation split, so `--refit`, which trains on it, must be 0.
        recipe: fields of the configuration and their values, with which the authors' official code trains, the reading of that
            code included; `--compare NAME@released` takes it.
    """

    build: Callable[[Materials[S]], Strategy]
    options: type[S]
    parts: Mapping[str, str] = field(default_factory=dict)
    tasks: tuple[type[Task], ...] = ()
    balances: bool = True
    whole_batch: bool = False
    validates: bool = False
    shares: str | None = None
    check: Callable[[Setting[S]], object] | None = None
    network: Callable[[MultimodalNet, Mapping[str, nn.Module], S], MultimodalNet] | None = None
    recipe: Mapping[str, object] = field(default_factory=dict)

    @property
    def has_options(self) -> bool:
        """Whether the strategy has options of its own."""
        return bool(dataclasses.fields(self.options))

    def network_of(self, net: MultimodalNet, guides: Mapping[str, nn.Module], options: S) -> MultimodalNet:
        """The network that is trained: the run's own, or what `network` makes of it."""
        return net if self.network is None else self.network(net, guides, options)

    def serves(self, task: Task) -> bool:
        """Whether the strategy is defined for this task."""
        return not self.tasks or isinstance(task, self.tasks)


RECIPE = "@"
"""Stands between the name of a strategy and that of a recipe."""


def values_of(entry: str, fixed: Container[str] = ()) -> dict[str, object]:
    """The fields that an entry of a comparison sets: the strategy, and its recipe where the entry names one.

    Args:
        entry: NAME, or NAME@released.
        fixed: fields that the user sets, which the recipe leaves alone.
    """
    name, _, recipe = entry.partition(RECIPE)
    values = STRATEGIES.get(name).recipe if recipe else {}
    return {"modulation": name, **{key: value for key, value in values.items() if key not in fixed}}


STRATEGIES: Registry[StrategyInfo[Any]] = Registry("strategy", "cggm_ray.strategies")
