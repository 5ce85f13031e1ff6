"""The configuration of a run: frozen dataclasses, checked when they are made.

Each field says how the command line shows it; `cggm_ray.cli` makes the flags from here. Field names are unique over all
sections, so that a flag, a key of a yaml file and a key of a search space are the same word.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cggm_ray.errors import UsageError, shown
from cggm_ray.modulation.base import STRATEGIES
from cggm_ray.modulation.coefficients import COEFFICIENT_RULES
from cggm_ray.modulation.direction import DIRECTION_RULES
from cggm_ray.optim import OPTIMIZERS, SCHEDULES
from cggm_ray.options import DatasetOptions, StrategyOptions, at_least, check, one_of, option
from cggm_ray.registry import nearest
from cggm_ray.values import check_path, coerce, whole

GATES = ("feature", "body", "update", "off")
PRECISIONS = ("fp32", "bf16")
ON_NONFINITE = ("stop", "skip")
WORKERS = re.compile(r"([1-9]\d*)(?::([1-9]\d*))?")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the samples come from."""

    dataset: str = option("mosi", "registered dataset")
    data_path: str | None = option(
        None,
        "raw data, a file or the folder that holds it; without it a demonstration set is made",
        resume=True,
        path=True,
    )
    modalities: tuple[str, ...] | None = option(None, "comma-separated modalities to use; default all")
    shard_path: str | None = option(
        None, "folder for the converted data; default STORAGE_PATH/shards", resume=True, path=True
    )
    memory_budget: int = option(
        4096, "MiB of samples that a worker may hold; a larger set is streamed from its shards", resume=True
    )
    verify: bool = option(False, "compare all shards with their checksums before training", resume=True)

    def __post_init__(self) -> None:
        at_least(self, "memory_budget", 1)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Size and dropouts of the network."""

    nlevels: int = option(5, "layers of each encoder; the fusion has two fewer")
    cls_layers: int = option(2, "layers of each guide classifier")
    num_heads: int = option(5, "attention heads")
    proj_dim: int = option(40, "width of encoders, fusion and guides")
    attn_dropout: float = option(0.15, "dropout of the attention weights")
    relu_dropout: float = option(0.15, "dropout inside the feed-forward layers")
    embed_dropout: float = option(0.2, "dropout of the embedded input")
    res_dropout: float = option(0.1, "dropout of the residual branches")
    out_dropout: float = option(0.1, "dropout before the output layer")

    def __post_init__(self) -> None:
        at_least(self, "nlevels", 3)
        for name in ("cls_layers", "num_heads", "proj_dim"):
            at_least(self, name, 1)
        for name in ("attn_dropout", "relu_dropout", "embed_dropout", "res_dropout", "out_dropout"):
            check(0 <= getattr(self, name) < 1, self, name, "a probability in [0, 1)")
        if self.proj_dim % self.num_heads:
            raise UsageError(
                f"num_heads: {self.num_heads} heads do not divide the width proj_dim {self.proj_dim}; expected a divisor"
            )


@dataclass(frozen=True, kw_only=True)
class ModulationConfig:
    """The balancing strategy and its parts."""

    modulation: str = option("cggm", "balancing strategy; docs/strategies.md describes them all")
    rho: float = option(1.3, "scale of the coefficients", "rou")
    lam: float = option(0.2, "weight of the direction term", "lambda", "lamda")
    coefficients: str | None = option(None, "coefficient rule instead of the strategy's: stable, paper, released")
    direction: str | None = option(None, "direction rule instead of the strategy's: gradient, released, off")
    gate: str | None = option(
        None,
        "what is scaled: feature (gradients of a whole encoder), body (without its projection), update (its learning rate), "
        "off (nothing)",
    )
    utility: str | None = option(None, "utility of a guide, by task: mae, sign; accuracy, likelihood; dice")
    smoothing: float = option(0.9, "rule stable: decay of the moving average of the utilities")
    floor: float = option(0.01, "rule stable: improvement granted to every modality")

    def __post_init__(self) -> None:
        info = STRATEGIES.get(self.modulation)
        known = {"coefficients": tuple(COEFFICIENT_RULES), "direction": tuple(DIRECTION_RULES), "gate": GATES}
        for name, names in known.items():
            value = getattr(self, name)
            if value is None:
                continue
            if name not in info.parts:
                raise UsageError(f"{name}: the strategy {self.modulation!r} has no such part; leave it out")
            one_of(self, name, names)
        check(self.rho > 0, self, "rho", "a positive number")
        check(self.lam >= 0, self, "lam", "zero or a positive number")
        check(0 <= self.smoothing < 1, self, "smoothing", "a number in [0, 1)")
        check(self.floor > 0, self, "floor", "a positive number")

    def resolved(self) -> ModulationConfig:
        """The same with the strategy's own choice in every part that was left open."""
        parts = STRATEGIES.get(self.modulation).parts
        open_parts: dict[str, Any] = {name: value for name, value in parts.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **open_parts)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizers, schedule and clipping."""

    optim: str = option("Adam", "optimizer of model and guides: Adam, AdamW, SGD")
    lr: float = option(1e-3, "learning rate of the model; of schedule cosine the highest", "base_lr")
    cls_lr: float = option(5e-4, "learning rate of the guide classifiers")
    weight_decay: float = option(0.0, "weight decay of the model")
    cls_weight_decay: float = option(0.0, "weight decay of the guide classifiers")
    schedule: str = option("plateau", "learning rate of the model: plateau (by epoch), cosine (by step, with warm-up)")
    when: int = option(10, "plateau: epochs without a lower validation loss before the learning rate falls to a tenth")
    warmup_epochs: int = option(0, "cosine: epochs of linear warm-up")
    warmup_lr: float = option(0.0, "cosine: learning rate of the first warm-up step", "start_warmup_value")
    final_lr: float = option(0.0, "cosine: learning rate that the last epoch comes down to")
    clip: float = option(0.8, "largest L2 norm of the model's gradient; 0 switches clipping off")

    def __post_init__(self) -> None:
        one_of(self, "optim", OPTIMIZERS)
        one_of(self, "schedule", tuple(SCHEDULES))
        for name in ("lr", "cls_lr"):
            check(getattr(self, name) > 0, self, name, "a positive number")
        for name in ("weight_decay", "cls_weight_decay", "clip", "warmup_lr", "final_lr"):
            check(getattr(self, name) >= 0, self, name, "zero or a positive number")
        for name in ("when", "warmup_epochs"):
            at_least(self, name, 0)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop."""

    batch_size: int = option(64, "samples per optimizer step, over all workers")
    num_epochs: int = option(30, "passes over the training split", resume=True)
    seed: int = option(666, "seed of weights, sample order and dropout")
    select: str | None = option(None, "validation metric that chooses the best checkpoint; default the task's own")
    patience: int | None = option(None, "stop after so many epochs without a better validation metric", resume=True)
    precision: str = option("fp32", "fp32, or bf16 for autocast", resume=True)
    accumulate: int = option(
        1,
        "parts in which a worker takes its share of a batch, to save memory; more than 1 adds a forward pass",
        resume=True,
    )
    compile: bool = option(
        False,
        "torch.compile encoders, fusion and guides; minutes at the start, meant for long runs on a GPU",
        resume=True,
    )
    log_interval: int = option(30, "optimizer steps between two lines of progress", resume=True)
    save_every: int | None = option(
        None, "optimizer steps between two checkpoints within an epoch; default only between epochs", resume=True
    )
    on_nonfinite: str = option(
        "stop", "at a loss or gradient that is not finite: stop, or skip the step (10 in a row stop)", resume=True
    )
    deterministic: bool = option(
        False, "only operations that give the same bits every time; slower on a GPU", resume=True
    )

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_epochs", "accumulate", "log_interval"):
            at_least(self, name, 1)
        if self.save_every is not None:
            at_least(self, "save_every", 1)
        one_of(self, "on_nonfinite", ON_NONFINITE)
        at_least(self, "seed", 0)
        if self.patience is not None:
            at_least(self, "patience", 1)
        one_of(self, "precision", PRECISIONS)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where the run happens and where it is kept."""

    local: bool = option(False, "train in this process, without Ray; implied under torchrun", resume=True)
    workers: str = option(
        "1", "training workers; 2:8 for a group that takes what the cluster has between 2 and 8", resume=True
    )
    resize_interval: int = option(
        60,
        "seconds between two looks at whether a group like 2:8 can grow; growing repeats the running epoch",
        resume=True,
    )
    max_failures: int = option(
        3, "times that a run on Ray goes on from its last checkpoint after a worker or a node was lost", resume=True
    )
    collective_timeout: int = option(
        1800,
        "seconds that workers wait for one another before a run stops and names those that are missing",
        resume=True,
    )
    allow_config_change: bool = option(
        False, "go on with a run of the same name although its configuration was another", resume=True
    )
    fresh: bool = option(
        False, "start over: a run of the same name is kept, moved aside to NAME.1, NAME.2, ...", resume=True
    )
    use_gpu: bool = option(False, "one GPU per worker", resume=True)
    no_cuda: bool = option(False, "stay on the CPU even where a GPU is there", resume=True)
    cpus_per_worker: int | None = option(
        None, "CPUs and torch threads of a worker; default its share, at most 4 under Ray", resume=True
    )
    report: bool = option(
        True, "at the end, score every subset of modalities and draw the page report/report.html", resume=True
    )
    contributions_seconds: int = option(
        300,
        "seconds for scoring subsets of modalities at the end, without those that take longer; 0 for none",
        resume=True,
    )
    trackers: tuple[str, ...] | None = option(
        None, "beside metrics.jsonl: tensorboard, mlflow, wandb; default tensorboard where it is installed", resume=True
    )
    storage_path: str = option(
        "~/cggm_runs", "folder of all runs; on several nodes one that all of them mount", resume=True, path=True
    )
    name: str | None = option(
        None, "folder of this run; the same name continues it; default made from the time", resume=True
    )

    def __post_init__(self) -> None:
        check(
            WORKERS.fullmatch(self.workers) is not None and self.min_workers <= self.max_workers,
            self,
            "workers",
            "a whole number of at least 1, or the smallest and the largest such as 2:8",
        )
        at_least(self, "resize_interval", 1)
        at_least(self, "max_failures", 0)
        at_least(self, "contributions_seconds", 0)
        at_least(self, "collective_timeout", 1)
        if self.fresh and self.allow_config_change:
            raise UsageError("fresh: given together with allow_config_change; expected one of them")
        if self.cpus_per_worker is not None:
            at_least(self, "cpus_per_worker", 1)
        if self.local and self.max_workers > 1:
            raise UsageError(
                f"workers: found {self.workers} with --local, which is one process; leave out --local, or start the "
                "processes with torchrun"
            )
        if self.use_gpu and self.no_cuda:
            raise UsageError("use_gpu: given together with no_cuda; expected one of them")
        if self.name is not None and (not self.name or self.name != Path(self.name).name or self.name.startswith(".")):
            raise UsageError(f"name: found {self.name!r}; expected a plain folder name")

    @property
    def min_workers(self) -> int:
        """The smallest group that trains; a fixed group has its one size."""
        return int(self.workers.partition(":")[0])

    @property
    def max_workers(self) -> int:
        """The largest group."""
        return int(self.workers.rpartition(":")[2])

    @property
    def storage(self) -> Path:
        """`storage_path`, absolute."""
        return whole("storage_path", self.storage_path)


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
