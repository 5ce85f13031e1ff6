"""`cggm train`, `cggm tune` and `cggm compare`: runs that start from a recipe, which is named first.

cggm train mosi --data_path mosi.pkl              # the same as python pipelines/mosi.py --data_path mosi.pkl
cggm tune mosi mosi_asha --data_path mosi.pkl     # --tune mosi_asha
cggm compare mosi none,cggm --seeds 1,2,3         # --compare none,cggm
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cggm_ray.commands.cli import exit_code, main
from cggm_ray.commands.flags import HELP_ALL, imports_among
from cggm_ray.core.errors import UsageError
from cggm_ray.engine.own_code import import_file
from cggm_ray.recipes.base import RECIPES

ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "train": ("RECIPE",),
    "tune": ("RECIPE", "SEARCH"),
    "compare": ("RECIPE", "STRATEGIES"),
}
"""What each command takes before its flags; the second one is the value of the flag of the command's name."""


def run_recipe(command: str, argv: Sequence[str]) -> int:
    """Runs one of the three commands and returns its exit code.

    Args:
        command: a key of `ARGUMENTS`.
        argv: what follows it.
    """
    wanted = ARGUMENTS[command]
    if not argv or argv[0] in ("-h", "--help"):
        print(usage(command))
        return 0 if argv else 2

    def start() -> int:
        # A recipe may be a person's own.
        for file in imports_among(argv):
            import_file(file)
        given = [argument for argument in argv[: len(wanted)] if not argument.startswith("-")]
        recipe = RECIPES.get(given[0]) if given else None
        if recipe is not None and {"-h", "--help", *HELP_ALL} & set(argv):
            given = given[:1]
        elif recipe is None or len(given) < len(wanted):
            raise UsageError(
                f"{command}: found {' '.join(argv[: len(wanted)])}; expected {' '.join(wanted)} before the flags, such as "
                f"{_EXAMPLES[command]}"
            )
        flags = [f"--{command}", given[1]] if len(given) > 1 else []
        return main(
            recipe.config, [*flags, *argv[len(given) :]], recipe.description, f"cggm {command} {' '.join(given)}"
        )

    return exit_code(start)


_ABOUT = {
    "tune": ["SEARCH: a yaml file, or the name of a search that comes with the package, such as mosi_asha", ""],
    "compare": ["STRATEGIES: names with commas between them; differences are taken to the first", ""],
}
_EXAMPLES = {"train": "mosi --local", "tune": "mosi mosi_asha", "compare": "mosi none,cggm --seeds 1,2,3"}


def usage(command: str) -> str:
    """Returns how a command is used, and the recipes."""
    width = max(map(len, RECIPES.names()))
    lines = [f"  {name:<{width}}  {RECIPES.get(name).title}" for name in RECIPES.names()]
    return "\n".join(
        [
            f"usage: cggm {command} {' '.join(ARGUMENTS[command])} [flags]",
            "",
            *_ABOUT.get(command, ()),
            "recipes:",
            *lines,
            "",
            f"Flags of a recipe: cggm {command} RECIPE --help",
        ]
    )
