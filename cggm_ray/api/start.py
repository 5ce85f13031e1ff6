"""Starts runs, comparisons and searches as the console program does, with arguments in place of flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.csv

from cggm_ray.api.arrays import data_file
from cggm_ray.api.run import Run, load
from cggm_ray.commands import compare as comparing
from cggm_ray.commands.searched import train_searched
from cggm_ray.commands.train import run
from cggm_ray.commands.tune import sweep
from cggm_ray.config.parsing import read_yaml
from cggm_ray.core.errors import UsageError
from cggm_ray.engine.assembly import fold_runs
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.presets import SEARCHED, configured
from cggm_ray.recipes.base import RECIPES, Recipe, search_file
from cggm_ray.runs.folder import named
from cggm_ray.studies.comparison import TABLE

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs of several strategies or seeds.

    Attributes:
        folder: of the comparison.
        table: a row for each strategy and metric: mean, deviation, difference to the baseline, interval and p-values.
        runs: by name, such as 'cggm-seed-1', followed by the fold where there are folds.
    """

    folder: Path
    table: pd.DataFrame
    runs: Mapping[str, Run]


@dataclass(frozen=True, kw_only=True)
class Search:
    """A finished search.

    Attributes:
        folder: of the search.
        trials: a row for each trial, with its values and its best validation metric.
        best: settings of the best trial by section, for `train(..., **settings)`.
    """

    folder: Path
    trials: pd.DataFrame
    best: Mapping[str, Any]


def configuration(recipe: str | Recipe | Config, *, data: Any = None, **changes: Any) -> Config:
    """Returns the configuration of a recipe with changes, as the command line makes it from flags.

    Args:
        recipe: name of a recipe (`cggm train` lists them), or a recipe or configuration of your own.
        data: in place of `data_path`: arrays by name [N, ...], or a table of pandas or pyarrow.
        changes: fields of the configuration, by the name of their flag.

    Raises:
        UsageError: an unknown field (the nearest one is named), or an invalid value.
    """
    if isinstance(recipe, str):
        recipe = RECIPES.get(recipe)
    base = recipe.config if isinstance(recipe, Recipe) else recipe
    values = base.flat(
        {name: str(value) if isinstance(value, Path) else value for name, value in changes.items()}, "train"
    )
    config = configured(base, (values, "train"))
    if data is None:
        return config
    if "data_path" in values:
        raise UsageError("data: given together with data_path; leave one of them out")
    return config.replace({"data_path": str(data_file(data, config.run.storage))})


def train(recipe: str | Recipe | Config, *, data: Any = None, **changes: Any) -> Run:
    """Trains and tests a run, and returns it; a run that was stopped goes on if its `name` is given again.

    Args:
        recipe: name of a recipe (`cggm train` lists them), or a recipe or configuration of your own.
        data: in place of `data_path`: arrays by name [N, ...], or a table of pandas or pyarrow, for the recipes `features`
            and `table`.
        changes: fields of the configuration, by the name of their flag, such as `local=True` or `preset="good"`.

    Raises:
        CggmError: with one line that says what to do.
    """
    config = configuration(recipe, data=data, **changes)
    if fold_runs(config):
        raise UsageError("train: this configuration stands for several folds; choose one, or use compare")
    preset = config.train.preset
    config = named(config, preset if preset in SEARCHED else None)
    if preset in SEARCHED:
        train_searched(config, frozenset(config.names(changes)))
    else:
        run(config)
    return load(config.run.storage / str(config.run.name))


def compare(
    recipe: str | Recipe | Config,
    strategies: Sequence[str] = (),
    seeds: Sequence[int] = (),
    *,
    data: Any = None,
    **changes: Any,
) -> Comparison:
    """Runs every strategy with every seed, each selected on validation and tested once.

    Args:
        recipe: as for `train`.
        data: as for `train`.
        changes: as for `train`.
        strategies: the first is the baseline; none for several seeds of the configuration's own.
        seeds: default the configuration's own.

    Raises:
        CggmError: with one line that says what to do.
    """

    config = named(configuration(recipe, data=data, **changes), "compare" if strategies else "seeds")
    if config.train.preset in SEARCHED:
        train_searched(config, frozenset(config.names(changes)), strategies, seeds or (config.train.seed,))
    else:
        comparing.compare(config, strategies, seeds, frozenset(config.names(changes)))
    folder = config.run.storage / str(config.run.name)
    table: pd.DataFrame = pyarrow.csv.read_csv(folder / TABLE).to_pandas()
    runs = {path.name: load(path) for path in sorted((folder / "trials").iterdir()) if path.is_dir()}
    return Comparison(folder=folder, table=table, runs=runs)


def tune(recipe: str | Recipe | Config, search: str | Path, *, data: Any = None, **changes: Any) -> Search:
    """Searches hyper-parameters on Ray Tune; the same call goes on with a search that was stopped.

    Args:
        recipe: as for `train`.
        data: as for `train`.
        changes: as for `train`.
        search: yaml file, or the name of a search that comes with the package, such as `mosi_asha`.

    Raises:
        CggmError: with one line that says what to do.
    """
    config = named(configuration(recipe, data=data, **changes), "search")
    sweep(config, search_file(str(search)))
    folder = config.run.storage / str(config.run.name)
    return Search(
        folder=folder,
        trials=pyarrow.csv.read_csv(folder / "trials.csv").to_pandas(),
        best=read_yaml(folder / "best.yaml", "tune"),
    )
