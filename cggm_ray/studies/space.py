"""The yaml of a search: the space, how trials are drawn and stopped, and what they may use.

    metric: mae                       # validation metric; default the one that selects checkpoints
    trials: 16
    seed: 0                           # of the drawing
    scheduler: {name: asha, grace_period: 3, reduction_factor: 3, max_epochs: 30}
    searcher: random                  # or optuna
    resources: {cpu: 1, gpu: 0}       # of a trial's worker
    space:
      rho: {uniform: [0.5, 2.0]}
      lr: {loguniform: [1.0e-4, 1.0e-2]}
      coefficients: {choice: [stable, paper]}
      smoothing: {uniform: [0.5, 0.99], when: {coefficients: stable}}
    points_to_evaluate:               # values of the first trials, which come before those that are drawn
      - {rho: 1.3, lr: 1.0e-3, coefficients: paper}

Keys of the space are fields of the configuration. Everything is checked here, before anything starts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cggm_ray.config.parsing import coerce, read_yaml, value_type
from cggm_ray.core.errors import UsageError, listed, short_repr
from cggm_ray.core.registry import nearest
from cggm_ray.engine.configuration import Config
from cggm_ray.studies.parameters import KINDS, Parameter, Values, mapping, plain_value, read_points

SCHEDULERS = ("asha", "none", "pbt")
SEARCHERS = ("random", "optuna")
SECTIONS = ("inputs", "model", "modulation", "loss", "optim", "train", "options")
"""Sections of the configuration that a space may change, beside those of strategies and networks; data and run are the same
for all trials."""
NO_SETTING = {
    **dict.fromkeys(("preset", "minutes"), "it is no setting of a trial"),
    "select": "the search's own metric selects",
    "log_interval": "it changes no result",
}
SETTLED = {
    **NO_SETTING,
    "num_epochs": "max_epochs of the scheduler sets it",
    **dict.fromkeys(("min_steps", "max_steps", "valid_interval"), "all trials have the same length"),
}
KEPT_IN_TRAINING = (
    *("nlevels", "cls_layers", "num_heads", "proj_dim", "optim", "schedule", "seed"),
    *("modulation", "coefficients", "direction", "gate"),
)
"""Fields that decide what a checkpoint holds, as the options of networks do; population based training cannot change them."""
MOST_TRIALS = 10_000


@dataclass(frozen=True, kw_only=True)
class Scheduler:
    """How trials are stopped early.

    Attributes:
        name: 'asha', 'none', or 'pbt' (population based training, which stops none and moves weights between trials).
        max_epochs: epochs of a trial that is not stopped; None takes the length of the configuration.
        grace_period: asha: epochs that every trial may take.
        reduction_factor: asha: one in so many trials goes on at every rung.
        interval: pbt: epochs between two exchanges.
    """

    name: str = "asha"
    max_epochs: int | None = None
    grace_period: int = 1
    reduction_factor: float = 3
    interval: int = 2


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a trial's worker takes; a fraction of a GPU lets several trials share one."""

    cpu: int = 1
    gpu: float = 0


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search as its file describes it.

    Attributes:
        space: parameters in an order in which each follows those that its `when` names.
        metric: validation metric; None takes the one that selects checkpoints.
        mode: 'min' or 'max', if the file says; checked against the metric's own direction.
        points_to_evaluate: values of the first trials, one for every parameter that applies.
        trials: draws after these; every point of the grid gets so many.
        seed: of the draws.
        concurrent: trials at once; None takes as many as fit.
        max_failures: how often a trial is started again after its process died.
    """

    space: tuple[Parameter, ...]
    metric: str | None = None
    mode: str | None = None
    points_to_evaluate: tuple[Values, ...] = ()
    trials: int = 1
    seed: int = 0
    scheduler: Scheduler = field(default_factory=Scheduler)
    searcher: str = "random"
    concurrent: int | None = None
    resources: Resources = field(default_factory=Resources)
    max_failures: int = 3

    @property
    def drawn(self) -> int:
        """Trials of a search without a grid."""
        return len(self.points_to_evaluate) + self.trials

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for yaml."""
        content = dataclasses.asdict(self)
        content["points_to_evaluate"] = [dict(point) for point in self.points_to_evaluate]
        content["space"] = {
            p.key: {p.kind: list(p.values), **({"when": {k: list(v) for k, v in p.when.items()}} if p.when else {})}
            for p in self.space
        }
        return content

    def differences(self, other: Search) -> list[str]:
        """Keys in which the trials of two searches differ. More trials are the same ones and further, without a grid."""
        free = {"concurrent", "resources", "max_failures"}
        if all(p.kind != "grid" for p in self.space):
            free.add("trials")
        names = [f.name for f in dataclasses.fields(self) if f.name not in free]
        return [name for name in names if getattr(self, name) != getattr(other, name)]


def read_search(path: Path, base: Config) -> Search:
    """A search from its file.

    Args:
        path: of the yaml.
        base: configuration that the trials change; its fields are the keys that a space may have.

    Raises:
        UsageError: the file cannot be read, or a key or value of it cannot be; the message names both.
    """
    return make_search(read_yaml(path, "tune"), base, str(path))


def make_search(content: Any, base: Config, source: str, settled: Mapping[str, str] = SETTLED) -> Search:
    """See `read_search`; `source` is named in messages, and `settled` says why a key cannot be searched."""
    content = mapping(content, source, [f.name for f in dataclasses.fields(Search)])
    scheduler = _fill(Scheduler, content.get("scheduler", {}), f"{source}: scheduler")
    resources = _fill(Resources, content.get("resources", {}), f"{source}: resources")
    space = _space(content.get("space"), base, source, settled)
    points = read_points(content.get("points_to_evaluate", []), space, base, source)
    made = {"space": space, "scheduler": scheduler, "resources": resources, "points_to_evaluate": points}
    plain = {key: value for key, value in content.items() if key not in made}
    search: Search = _fill(Search, plain, source, **made)
    _check_search(search, base, source)
    return search


def check_epochs(search: Search, epochs: int, source: str) -> None:
    """Raises a UsageError if trials of so many epochs are over before the scheduler may stop one."""
    grace = search.scheduler.grace_period
    if search.scheduler.name == "asha" and grace > epochs:
        raise UsageError(f"{source}: scheduler: grace_period: found {grace}; a trial has {epochs} epochs")


def suggest(search: Search, trial: Any) -> None:
    """Draws every parameter of the space by the `suggest_` methods of an Optuna trial."""
    values: Values = {}
    for p in search.space:
        if not p.applies(values):
            continue
        if p.kind == "choice":
            values[p.key] = trial.suggest_categorical(p.key, list(p.values))
        else:
            method = trial.suggest_int if p.whole else trial.suggest_float
            values[p.key] = method(p.key, *p.values, log=p.kind == "loguniform")


def try_values(base: Config, values: Values, source: str) -> Config:
    """The configuration with a trial's values.

    Raises:
        UsageError: it cannot be.
    """
    try:
        return base.replace(values, source=source)
    except UsageError as error:
        shown = ", ".join(f"{key} {value}" for key, value in values.items())
        raise UsageError(f"{source}: the trial with {shown}: {str(error).removeprefix(f'{source}: ')}") from None


def _space(content: Any, base: Config, source: str, settled: Mapping[str, str]) -> tuple[Parameter, ...]:
    if not isinstance(content, Mapping) or not content:
        raise UsageError(f"{source}: space: found {short_repr(content)}; expected at least one field with its values")
    keys = {key.name: (section, key) for section, key in base.fields()}
    aliases = {alias: key.name for _, key in base.fields() for alias in key.metadata["aliases"]}
    found: dict[str, Parameter] = {}
    for name, described in content.items():
        place = f"{source}: space: {name}"
        key = aliases.get(name, name)
        if key not in keys:
            raise UsageError(f"{source}: space: unknown key {short_repr(name)}{nearest(str(name), [*keys, *aliases])}")
        section, spec = keys[key]
        if section not in (*SECTIONS, *base.strategies, *base.networks):
            raise UsageError(f"{place}: a trial cannot change it; the section {section} is the same for all trials")
        if key in settled:
            raise UsageError(f"{place}: leave it out; {settled[key]}")
        if key in found:
            raise UsageError(f"{place}: the space has {key} twice")
        found[key] = _parameter(key, described, place, type(base.sections()[section]), spec, aliases)
    for parameter in found.values():
        for name, allowed in parameter.when.items():
            if name not in found:
                raise UsageError(f"{source}: space: {parameter.key}: when: {short_repr(name)} is no key of this space")
            other = found[name]
            if other.kind in ("choice", "grid") and not all(value in other.values for value in allowed):
                place = f"{source}: space: {parameter.key}"
                raise UsageError(f"{place}: when: {name} never is {listed(allowed)}; it has {listed(other.values)}")
    return _ordered(found, source)


def _parameter(
    key: str,
    described: Any,
    place: str,
    section: type,
    spec: dataclasses.Field[Any],
    aliases: Mapping[str, str],
) -> Parameter:
    described = mapping(described, place, [*KINDS, "when"])
    kinds = [kind for kind in KINDS if kind in described]
    if len(kinds) != 1:
        raise UsageError(f"{place}: found {', '.join(kinds) or 'none'} of {', '.join(KINDS)}; expected exactly one")
    (kind,) = kinds
    values = described[kind]
    if not isinstance(values, list) or not values:
        raise UsageError(f"{place}: {kind}: found {short_repr(values)}; expected a list of values")
    plain = value_type(section, spec)[0]
    if kind in ("uniform", "loguniform"):
        if plain not in (int, float):
            raise UsageError(f"{place}: {kind}: {key} is no number; expected choice or grid")
        if len(values) != 2:
            raise UsageError(f"{place}: {kind}: found {len(values)} values; expected the two bounds")
    values = [plain_value(coerce(value, section, spec, place)) for value in values]
    if kind in ("uniform", "loguniform") and not 0 < values[1] - values[0] < math.inf:
        raise UsageError(f"{place}: {kind}: found {values}; expected a smaller and a larger bound")
    if kind == "loguniform" and values[0] <= 0:
        raise UsageError(f"{place}: loguniform: found the bound {values[0]}; expected positive bounds")
    when = described.get("when", {})
    if not isinstance(when, Mapping):
        raise UsageError(f"{place}: when: found {short_repr(when)}; expected other keys with their values")
    conditions = {aliases.get(k, k): tuple(v) if isinstance(v, list) else (v,) for k, v in when.items()}
    return Parameter(key=key, kind=kind, values=tuple(values), whole=plain is int, when=conditions)


def _ordered(found: Mapping[str, Parameter], source: str) -> tuple[Parameter, ...]:
    """Each parameter after those that its condition names."""
    done: dict[str, Parameter] = {}
    while len(done) < len(found):
        ready = [p for p in found.values() if p.key not in done and all(name in done for name in p.when)]
        if not ready:
            left = ", ".join(key for key in found if key not in done)
            raise UsageError(f"{source}: space: the conditions of {left} go round in a circle")
        done |= {p.key: p for p in ready}
    return tuple(done.values())


def _check_search(search: Search, base: Config, source: str) -> None:
    scheduler, resources = search.scheduler, search.resources
    _one_of(scheduler.name, SCHEDULERS, f"{source}: scheduler: name")
    _one_of(search.searcher, SEARCHERS, f"{source}: searcher")
    if search.mode is not None:
        _one_of(search.mode, ("min", "max"), f"{source}: mode")
    whole = {
        "trials": search.trials,
        "scheduler: max_epochs": 1 if scheduler.max_epochs is None else scheduler.max_epochs,
        "scheduler: grace_period": scheduler.grace_period,
        "scheduler: interval": scheduler.interval,
        "resources: cpu": resources.cpu,
        "concurrent": 1 if search.concurrent is None else search.concurrent,
    }
    for name, value in whole.items():
        if value < 1:
            raise UsageError(f"{source}: {name}: found {value}; expected a whole number of at least 1")
    if search.trials * math.prod(len(p.values) for p in search.space if p.kind == "grid") > MOST_TRIALS:
        raise UsageError(f"{source}: trials: found more than {MOST_TRIALS:,} with the grid; expected fewer")
    for name, value in {"seed": search.seed, "max_failures": search.max_failures}.items():
        if value < 0:
            raise UsageError(f"{source}: {name}: found {value}; expected zero or a positive number")
    # The length of a budget in steps depends on the set, so `check_epochs` is called again when that is known.
    if scheduler.max_epochs is not None or not base.train.in_steps:
        check_epochs(search, scheduler.max_epochs or base.train.num_epochs, source)
    if scheduler.reduction_factor <= 1:
        raise UsageError(
            f"{source}: scheduler: reduction_factor: found {scheduler.reduction_factor}; expected more than 1"
        )
    if resources.gpu < 0 or (resources.gpu > 1 and not float(resources.gpu).is_integer()):
        raise UsageError(f"{source}: resources: gpu: found {resources.gpu}; expected a fraction, or whole GPUs")
    if search.metric is not None and search.metric.startswith("test"):
        raise UsageError(f"{source}: metric: found {search.metric!r}; a search sees the validation split only")
    _check_combinations(search, base, source)
    for values in _bounds(search):
        try_values(base, values, source)


def _check_combinations(search: Search, base: Config, source: str) -> None:
    drawn = [p for p in search.space if p.kind != "grid"]
    if search.searcher == "optuna" and len(drawn) < len(search.space):
        raise UsageError(
            f"{source}: searcher: optuna draws by itself; use choice in place of grid, or searcher: random"
        )
    if search.scheduler.name != "pbt":
        return
    if search.searcher != "random":
        raise UsageError(f"{source}: searcher: population based training draws by itself; leave the searcher out")
    if search.concurrent is not None:
        raise UsageError(f"{source}: concurrent: population based training takes turns by itself; leave it out")
    sizes = {key.name for section, key in base.fields() if section in ("inputs", *base.networks)}
    for p in search.space:
        if p.kind == "grid" or p.when:
            raise UsageError(f"{source}: space: {p.key}: population based training takes neither grid nor when")
        if p.key in (*KEPT_IN_TRAINING, *sizes):
            raise UsageError(f"{source}: space: {p.key}: population based training cannot change it in mid-training")


def _bounds(search: Search) -> Iterator[Values]:
    """The bounds that draws come near to and may never hit."""
    for p in search.space:
        if p.kind in ("uniform", "loguniform"):
            for bound in p.values:
                yield {p.key: bound}


def _fill(kind: Callable[..., Any], content: Any, place: str, **made: Any) -> Any:
    """A dataclass from a mapping, every value in the type of its field."""
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    content = mapping(content, place, list(fields))
    values = {name: coerce(value, kind, fields[name], place) for name, value in content.items()}  # type: ignore[arg-type]
    return kind(**values, **made)


def _one_of(value: str, names: tuple[str, ...], place: str) -> None:
    if value not in names:
        raise UsageError(f"{place}: unknown {short_repr(value)}{nearest(value, names)}; available: {', '.join(names)}")
