"""What the configuration knows of a strategy, and the strategies by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from torch import nn

from cggm_ray.core.reduction import Reduce
from cggm_ray.core.registry import Registry
from cggm_ray.strategies.base import Strategy
from cggm_ray.tasks.base import Task

if TYPE_CHECKING:
    from cggm_ray.engine.configuration import Config
    from cggm_ray.models.net import MultimodalNet


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


@dataclass(frozen=True, kw_only=True)
class StrategyInfo:
    """A strategy as the configuration knows it.

    Attributes:
        build: (configuration, net, guides by modality, task, reduce) to the strategy.
        parts: the parts that `--coefficients`, `--direction`, `--gate` can replace, with this strategy's own choice.
        options: class of its own section of the configuration.
        tasks: the tasks that it can serve; empty for all.
        balances: needs at least two modalities.
        whole_batch: needs the gradients of a worker's whole share at once, so `--accumulate` must be 1.
        shares: the strategy whose section of the configuration it reads, where that is not its own.
        check: (configuration, modalities) raises a UsageError for what the options alone cannot tell; called before any
            long work.
        network: (configuration, net, guides) to the network that is trained, validated, saved and tested; None for the
            dataset's own. It is a function of its arguments alone, so that a checkpoint finds the same network again.
    """

    build: Callable[[Config, MultimodalNet, Mapping[str, nn.Module], Task, Reduce], Strategy]
    parts: Mapping[str, str] = field(default_factory=dict)
    options: type[StrategyOptions] = StrategyOptions
    tasks: tuple[type[Task], ...] = ()
    balances: bool = True
    whole_batch: bool = False
    shares: str | None = None
    check: Callable[[Config, tuple[str, ...]], None] | None = None
    network: Callable[[Config, MultimodalNet, Mapping[str, nn.Module]], MultimodalNet] | None = None

    @property
    def has_options(self) -> bool:
        """Whether there is anything to set that is the strategy's alone."""
        return bool(dataclasses.fields(self.options))

    def serves(self, task: Task) -> bool:
        """Whether the strategy is defined for this task."""
        return not self.tasks or isinstance(task, self.tasks)


STRATEGIES: Registry[StrategyInfo] = Registry("strategy", "cggm_ray.strategies")
