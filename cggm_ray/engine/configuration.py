"""The configuration of a run: frozen dataclasses, checked when they are made.

Each section is a class that lies beside what it configures. Field names are unique over all sections, so that a flag, a key
of a yaml file and a key of a search space are the same word.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cggm_ray.config.parsing import check_path
from cggm_ray.config.sections import Sections
from cggm_ray.core.errors import UsageError
from cggm_ray.data.dataset import DATASETS
from cggm_ray.data.settings import DataConfig, DatasetOptions
from cggm_ray.engine.optim import OptimConfig
from cggm_ray.engine.runtime import RunConfig
from cggm_ray.engine.settings import TrainConfig
from cggm_ray.models.registry import NETWORKS, NetworkOptions
from cggm_ray.models.settings import ModelConfig
from cggm_ray.models.standardise import InputConfig
from cggm_ray.storage.places import check_place, place
from cggm_ray.strategies.registry import STRATEGIES, StrategyOptions
from cggm_ray.strategies.settings import ModulationConfig
from cggm_ray.tasks.settings import LossConfig


def default_strategies() -> dict[str, StrategyOptions]:
    """Returns the default options of every strategy that has options of its own."""
    infos = {name: STRATEGIES.get(name) for name in STRATEGIES.names()}
    return {name: info.options() for name, info in infos.items() if info.has_options and info.shares is None}


def default_networks() -> dict[str, NetworkOptions]:
    """Returns the default options of every network that has options of its own."""
    infos = {name: NETWORKS.get(name) for name in NETWORKS.names()}
    return {name: info.options() for name, info in infos.items() if dataclasses.fields(info.options)}


@dataclass(frozen=True, kw_only=True)
class Config(Sections):
    """The whole configuration of a run.

    The section `options` has the class that the dataset names, so a pipeline has only the flags of its own dataset. The
    options of every strategy and of every network form a section with its name.
    """

    data: DataConfig = field(default_factory=DataConfig)
    inputs: InputConfig = field(default_factory=InputConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    modulation: ModulationConfig = field(default_factory=ModulationConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)
    options: DatasetOptions = field(default_factory=DatasetOptions)
    strategies: Mapping[str, StrategyOptions] = field(default_factory=default_strategies)
    networks: Mapping[str, NetworkOptions] = field(default_factory=default_networks)

    def __post_init__(self) -> None:
        self.modulation.check_parts(self._parts)
        sections = self.sections()
        for section, key in self.fields():
            value = getattr(sections[section], key.name) if key.metadata["path"] else None
            for text in (value,) if isinstance(value, str) else value or ():
                (check_place if key.metadata["url"] else check_path)(key.name, text)
        if 0 < self.train.batch_size < self.run.max_workers:
            raise UsageError(
                f"batch_size: found {self.train.batch_size} samples for {self.run.max_workers} workers; expected at least one "
                "sample per worker"
            )

    @property
    def shard_root(self) -> Path:
        """Folder of all converted sets, in a store where the shards or else the runs are there."""
        if self.data.shard_path:
            return place("shard_path", self.data.shard_path)
        return place("storage_path", self.run.storage_path) / "shards"

    @property
    def strategy(self) -> StrategyOptions:
        """The options of the run's own strategy."""
        return self.strategies.get(self._strategy_section) or STRATEGIES.get(self._strategy_section).options()

    def network_options(self, name: str) -> NetworkOptions:
        """Returns the options of a network of that name."""
        return self.networks.get(name) or NETWORKS.get(name).options()

    @property
    def resolved_modulation(self) -> ModulationConfig:
        """Returns the section `modulation`, with the strategy's own choices in the parts that were left open."""
        return self.modulation.resolved(self._parts)

    @property
    def _parts(self) -> Mapping[str, str]:
        return STRATEGIES.get(self.modulation.modulation).parts

    @property
    def _strategy_section(self) -> str:
        name = self.modulation.modulation
        return STRATEGIES.get(name).shares or name

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Returns the plain value of every field by section.

        The parts of the strategy are resolved, and other strategies and networks are left out.
        """
        resolved = dataclasses.replace(self, modulation=self.resolved_modulation)
        network = self.model.network or DATASETS.get(self.data.dataset).network
        left_out = (self.strategies.keys() - {self._strategy_section}) | (self.networks.keys() - {network})
        return {
            name: {key: list(v) if isinstance(v, tuple) else v for key, v in vars(part).items()}
            for name, part in resolved.sections().items()
            if name not in left_out
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], base: Config | None = None, source: str = "config") -> Config:
        """Returns a configuration from nested sections or flat keys (aliases included), over `base`.

        Args:
            values: section to mapping, or field to value, or both.
            base: what holds for keys that are not given; default the defaults.
            source: named in messages.

        Raises:
            UsageError: an unknown key (the nearest one is named) or a value of the wrong type.
        """
        return (base or cls()).merged(values, source)

    def parameters(self) -> dict[str, object]:
        """Returns the plain value of every 'section.field', for services that list the parameters of a run."""
        return {f"{section}.{key}": v for section, fields in self.to_dict().items() for key, v in fields.items()}
