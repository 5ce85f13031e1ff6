"""Completion of commands, recipes and flags in a shell, by argcomplete.

pip install 'cggm-ray[completion]'
eval "$(register-python-argcomplete cggm)"        # in ~/.bashrc; zsh and fish as argcomplete says
"""

from __future__ import annotations

import argparse
import os

from cggm_ray.commands.flags import build_parser
from cggm_ray.commands.recipe import ARGUMENTS
from cggm_ray.core.optional import require
from cggm_ray.recipes.base import RECIPES, SEARCHES
from cggm_ray.strategies.registry import STRATEGIES


def completing() -> bool:
    """Returns whether a shell asks for completions in place of a command."""
    return "_ARGCOMPLETE" in os.environ


def subcommands(parser: argparse.ArgumentParser) -> argparse._SubParsersAction[argparse.ArgumentParser]:
    """Returns the action that holds the parsers of the commands; the parser must have one."""
    return next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))


def complete(parser: argparse.ArgumentParser) -> None:
    """Prints the completions that the shell asks for, and ends the process.

    Args:
        parser: of the program; its commands `train`, `tune` and `compare` get recipes and flags here.
    """
    seconds = {"tune": [path.stem for path in SEARCHES.glob("*.yaml")], "compare": STRATEGIES.names()}
    for name in ARGUMENTS:
        recipes = subcommands(parser).choices[name].add_subparsers(dest="recipe")
        for recipe in RECIPES.names():
            one = recipes.add_parser(recipe, add_help=False, parents=[build_parser(RECIPES.get(recipe).config)])
            if name in seconds:
                one.add_argument("second").completer = lambda name=name, **_: seconds[name]  # type: ignore[attr-defined]
    require("argcomplete", extra="completion", purpose="completion").autocomplete(parser)
