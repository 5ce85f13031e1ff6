"""The command line of a pipeline.

The flags are made from the configuration. A command line starts a run; with --tune it starts a search, with --seeds or
--compare several runs and a table over them, and with --preset good or best a search and what it leads to.

Order of precedence: the pipeline's recipe, then `--config file.yaml`, then flags.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cggm_ray.commands.flags import (
    build_parser,
    explain,
    imports_among,
    shown_recipe,
    with_flags_of_this_program,
)
from cggm_ray.commands.train import run
from cggm_ray.config.parsing import local_path, read_yaml
from cggm_ray.core.errors import CggmError, StoppedError, UsageError
from cggm_ray.engine.configuration import Config, default_networks, default_strategies
from cggm_ray.engine.own_code import check_not_importing, import_file
from cggm_ray.engine.presets import QUICK_NETWORK, RELEASED, SEARCHED, configured, sizes_among
from cggm_ray.recipes.base import search_file
from cggm_ray.strategies.registry import RECIPE, STRATEGIES


def main(
    recipe: Config, argv: Sequence[str] | None = None, description: str | None = None, program: str | None = None
) -> int:
    """Runs a pipeline from the command line.

    Args:
        recipe: the pipeline's configuration, which file and flags change.
        argv: arguments; default those of the process.
        description: opens the help text.
        program: name of the program in the help text; default that of the process.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage or bad input, 128 plus the number of a signal that stopped it.

    Raises:
        UsageError: a file that calls it is being imported.
    """
    check_not_importing()
    return exit_code(lambda: _run(recipe, argv, description, program))


def exit_code(do: Callable[[], int | None]) -> int:
    """Calls `do` and returns its exit code, or 0 if it returns None.

    For an error of this package it prints one line on stderr and returns the error's code.
    """
    try:
        code = do() or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read the lines, such as head, has gone. Python would say so again when it ends.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except StoppedError as stop:
        print(stop, end="\n" if str(stop) else "", file=sys.stderr)
        return stop.exit_code
    except CggmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _run(recipe: Config, argv: Sequence[str] | None, description: str | None, program: str | None) -> None:
    command = parse(recipe, sys.argv[1:] if argv is None else argv, description, program)
    if command.dry_run:
        print(yaml.safe_dump(command.config.to_dict(), sort_keys=False), end="")
        return
    for remark in () if command.config.run.quiet else command.remarks:
        print(remark, flush=True)
    if command.tune is not None:
        # Pictures and statistics are imported where they are wanted: they take longer than the rest.
        from cggm_ray.commands.tune import sweep

        sweep(command.config, command.tune)
    elif command.config.train.preset in SEARCHED:
        from cggm_ray.commands.searched import train_searched

        train_searched(command.config, command.fixed, command.strategies, command.seeds)
    elif command.seeds or command.strategies:
        from cggm_ray.commands.compare import compare

        compare(command.config, command.strategies, command.seeds, command.fixed)
    else:
        run(command.config)


@dataclass(frozen=True, kw_only=True)
class Command:
    """The settings of a command line.

    Attributes:
        config: the configuration that recipe, file and flags make.
        dry_run: only print it.
        tune: file of a search.
        seeds, strategies: of a comparison; empty where the flag was not given.
        fixed: fields that flags set, which the search of a preset does not change.
        remarks: what else follows from the settings, a line each, to be printed before a run.
    """

    config: Config
    dry_run: bool = False
    tune: Path | None = None
    seeds: tuple[int, ...] = ()
    strategies: tuple[str, ...] = ()
    fixed: frozenset[str] = frozenset()
    remarks: tuple[str, ...] = ()


def parse(recipe: Config, argv: Sequence[str], description: str | None = None, program: str | None = None) -> Command:
    """Reads the arguments of a command line.

    Raises:
        UsageError: an unknown flag or key (the nearest one is named), or a value that cannot be.
    """
    recipe = _with_imports(recipe, argv)
    shown, hidden = shown_recipe(recipe, argv)
    parser = build_parser(shown, description, hidden=hidden, program=program)
    known, unknown = parser.parse_known_args(with_flags_of_this_program(parser, argv))
    if unknown:
        raise UsageError(explain(unknown[0], parser))
    given = vars(known)
    given.pop("imports", None)
    path, dry_run, tune = given.pop("config", None), given.pop("dry_run", False), given.pop("tune", None)
    seeds, strategies = _seeds(given.pop("seeds", None)), _strategies(given.pop("compare", None))
    if tune is not None and (seeds or strategies):
        raise UsageError(
            "tune: given together with --seeds or --compare; search first, then compare with --config best.yaml"
        )
    values = {} if path is None else recipe.flat(read_yaml(local_path("config", path), "config"), path)
    config = configured(recipe, (values, str(path)), (given, "flag"))
    if tune is not None and config.train.preset in SEARCHED:
        raise UsageError(
            f"tune: given together with --preset {config.train.preset}, which is a search of its own; leave one of them out"
        )
    return Command(
        config=config,
        dry_run=dry_run,
        tune=None if tune is None else search_file(str(local_path("tune", tune))),
        seeds=seeds,
        strategies=strategies,
        fixed=frozenset(config.names(given)),
        remarks=_remarks(recipe, config, values, given),
    )


def _remarks(recipe: Config, config: Config, *layers: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns a line that names the network, where a size is given that the preset's network does not have."""
    sizes = sizes_among(recipe.names(key for layer in layers for key in layer))
    if config.train.preset == RELEASED or not sizes or any(layer.get("network") for layer in layers):
        return ()
    return (
        f"network: that of the dataset, because {sizes[0]} is a size of it; without {sizes[0]} the preset "
        f"{config.train.preset} takes {QUICK_NETWORK}",
    )


def _with_imports(recipe: Config, argv: Sequence[str]) -> Config:
    """Returns the recipe with the options of strategies that the files of --import register."""
    files = imports_among(argv)
    for file in files:
        import_file(file)
    if not files:
        return recipe
    return dataclasses.replace(
        recipe,
        strategies={**default_strategies(), **recipe.strategies},
        networks={**default_networks(), **recipe.networks},
    )


def _seeds(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"flag: seeds: found {text!r}; expected whole numbers, such as 1,2,3") from None
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise UsageError(f"flag: seeds: found {text!r}; expected different numbers, zero or positive")
    return seeds


def _strategies(text: str | None) -> tuple[str, ...]:
    if text is None:
        return ()
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        strategy, _, recipe = name.partition(RECIPE)
        able = [other for other in STRATEGIES.names() if STRATEGIES.get(other).recipe]
        if RECIPE in name and (recipe != RELEASED or strategy not in able):
            raise UsageError(
                f"flag: compare: found {name!r}; expected a strategy, or {RECIPE}{RELEASED} after one of {', '.join(able)}"
            )
        STRATEGIES.get(strategy)
    if len(names) < 2 or len(set(names)) < len(names):
        raise UsageError(f"flag: compare: found {text!r}; expected at least two different strategies")
    return names
