"""The configuration of a run: frozen dataclasses, checked when they are made.

Each field says how the command line shows it; `cggm_ray.commands.cli` makes the flags from here. Field names are unique over all
sections, so that a flag, a key of a yaml file and a key of a search space are the same word.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cggm_ray.config.parsing import check_path, coerce, whole
from cggm_ray.core.errors import UsageError, shown
from cggm_ray.core.registry import nearest
from cggm_ray.data.settings import DataConfig, DatasetOptions
from cggm_ray.engine.optim import OptimConfig
from cggm_ray.engine.runtime import RunConfig
from cggm_ray.engine.settings import TrainConfig
from cggm_ray.models.settings import ModelConfig
from cggm_ray.strategies.registry import STRATEGIES, StrategyOptions
from cggm_ray.strategies.settings import ModulationConfig


def default_strategies() -> dict[str, StrategyOptions]:
    """The options of every strategy that has its own, as they are by default."""
    infos = {name: STRATEGIES.get(name) for name in STRATEGIES.names()}
    return {name: info.options() for name, info in infos.items() if info.has_options and info.shares is None}


@dataclass(frozen=True, kw_only=True)
class Config:
    """All of a run.

    The section `options` is of the class that the dataset names, so a pipeline has the flags of its own dataset only.
    Every strategy's options are there, each a section of the strategy's name.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    modulation: ModulationConfig = field(default_factory=ModulationConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)
    options: DatasetOptions = field(default_factory=DatasetOptions)
    strategies: Mapping[str, StrategyOptions] = field(default_factory=default_strategies)

    def __post_init__(self) -> None:
        sections = self.sections()
        for section, key in self.fields():
            value = getattr(sections[section], key.name) if key.metadata["path"] else None
            for text in (value,) if isinstance(value, str) else value or ():
                check_path(key.name, text)
        if self.train.batch_size < self.run.max_workers:
            raise UsageError(
                f"batch_size: found {self.train.batch_size} samples for {self.run.max_workers} workers; expected at least one "
                "sample per worker"
            )

    @property
    def shard_root(self) -> Path:
        """Folder of all converted sets."""
        return whole("shard_path", self.data.shard_path) if self.data.shard_path else self.run.storage / "shards"

    @property
    def strategy(self) -> StrategyOptions:
        """The options of the run's own strategy."""
        return self.strategies[self._strategy_section]

    @property
    def _strategy_section(self) -> str:
        name = self.modulation.modulation
        return STRATEGIES.get(name).shares or name

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Section to field to plain value; the parts of the strategy are resolved, and other strategies left out."""
        resolved = dataclasses.replace(self, modulation=self.modulation.resolved())
        return {
            name: {key: list(v) if isinstance(v, tuple) else v for key, v in vars(part).items()}
            for name, part in resolved.sections().items()
            if name not in self.strategies or name == self._strategy_section
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], base: Config | None = None, source: str = "config") -> Config:
        """A configuration from nested sections or flat keys (aliases included), over `base`.

        Args:
            values: section to mapping, or field to value, or both.
            base: what holds for keys that are not given; default the defaults.
            source: named in messages.

        Raises:
            UsageError: an unknown key (the nearest one is named) or a value of the wrong type.
        """
        flat: dict[str, Any] = {}
        base = base or cls()
        sections = base.sections()
        for key, value in values.items():
            if key in sections and isinstance(value, Mapping):
                flat |= value
            elif key in sections and key != "modulation":
                raise UsageError(f"{source}: section {key} holds {shown(value)}; expected a mapping")
            else:
                flat[key] = value
        return base.replace(flat, source=source)

    def replace(self, values: Mapping[str, Any], source: str = "config") -> Config:
        """The same with other values, by flat field name or alias.

        Raises:
            UsageError: an unknown key or a value of the wrong type.
        """
        sections = self.sections()
        owners = {
            name: (section, key) for section, key in self.fields() for name in (key.name, *key.metadata["aliases"])
        }
        changes: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            if name not in owners:
                raise UsageError(f"{source}: unknown key {shown(name)}{nearest(str(name), owners)}")
            section, key = owners[name]
            changes.setdefault(section, {})[key.name] = coerce(value, type(sections[section]), key, source)
        try:
            parts = {name: dataclasses.replace(sections[name], **change) for name, change in changes.items()}
            strategies = {name: parts.pop(name, options) for name, options in self.strategies.items()}
            return dataclasses.replace(self, **parts, strategies=strategies)
        except UsageError as error:
            # A flag is there to see; a file has to be named.
            raise error if source in ("config", "flag") else UsageError(f"{source}: {error}") from None

    def fields(self) -> Iterator[tuple[str, dataclasses.Field[Any]]]:
        """(section, field) for every field of every section."""
        for name, part in self.sections().items():
            for key in dataclasses.fields(part):
                yield name, key

    def sections(self) -> dict[str, Any]:
        """Each section by name."""
        sections = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        strategies = sections.pop("strategies")
        return {**sections, **strategies}
