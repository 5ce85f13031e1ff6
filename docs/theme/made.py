"""Pages that are made from the code: commands from their parsers, configuration from its dataclasses."""

from __future__ import annotations

import argparse
import dataclasses
import html
from collections.abc import Iterable

import cggm_ray
import cggm_ray.strategies
import cggm_ray.tasks
from cggm_ray import api as whole_runs
from cggm_ray.__main__ import build_commands
from cggm_ray.commands.completion import subcommands
from cggm_ray.commands.flags import REFUSED, SYNONYMS, build_parser
from cggm_ray.commands.recipe import ARGUMENTS, usage
from cggm_ray.config.parsing import value_type
from cggm_ray.engine.configuration import Config
from cggm_ray.recipes.base import RECIPES

EXAMPLES = {"train": "mosi --local", "tune": "mosi mosi_asha", "compare": "mosi none,cggm --seeds 1,2,3"}


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Returns a table in markdown."""
    lines = [list(header), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def text(value: str) -> str:
    """Returns a help text for a cell, with what markdown and HTML would read otherwise as it is."""
    return (
        html.escape(value, quote=False).replace("*", "\\*").replace("_", "\\_").replace("|", "\\|").replace("\n", " ")
    )


def sentence(value: str) -> str:
    """Returns a help text as a sentence."""
    return text(f"{value[:1].upper()}{value[1:]}.")


def code(value: object) -> str:
    """Returns a value in the style of code, or a dash."""
    if value is None or value == "" or value == ():
        return "-"
    shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"`{shown.lower() if isinstance(value, bool) else shown}`"


def _flag(action: argparse.Action) -> str:
    names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.metavar or action.dest}`"
    taken = action.choices or (action.metavar if action.option_strings and isinstance(action.metavar, str) else None)
    return names if taken is None else f"{names} `{taken if isinstance(taken, str) else ','.join(map(str, taken))}`"


def _about(title: str, parser: argparse.ArgumentParser, what: str) -> str:
    rows = [
        [_flag(action), text((action.help or "") % {"default": action.default, "prog": parser.prog})]
        for action in parser._actions
        if not isinstance(action, argparse._SubParsersAction)
        and action.help != argparse.SUPPRESS
        and "--help" not in action.option_strings
    ]
    shown = parser.format_usage().removeprefix("usage: ").strip()
    return "\n\n".join([f"## {title}", sentence(what), f"```text\n{shown}\n```", table(["argument", "meaning"], rows)])


def commands() -> str:
    """Returns the page about the commands of the console program."""
    parser = build_commands()
    choices = subcommands(parser)
    said = {choice.dest: choice.help or "" for choice in choices._choices_actions}
    recipe = build_parser(RECIPES.get("mosi").config)
    general = [
        action for action in recipe._actions if action.dest not in {field.name for _, field in Config().fields()}
    ]
    parts = [
        "# Commands",
        "After reading this page you can name every command of the program `cggm`, with its arguments. The page is made from "
        "the parsers of the program.",
        "`cggm` and `python -m cggm_ray` are the same program. A command ends with code 0 where it did what it says, 1 where a "
        "run failed or values differ, and 2 where the arguments or the data cannot be used.",
    ]
    for name in ARGUMENTS:
        parts += [f"## cggm {name}", sentence(said[name]), f"    cggm {name} {EXAMPLES[name]}"]
    parts += [
        "The recipes are those that each of the three commands prints without further arguments:",
        f"```text\n{usage('train')}\n```",
        "Flags of all three are the fields of the configuration, which have a page of their own, and these:",
        table(
            ["argument", "meaning"],
            [[_flag(action), text(action.help or "")] for action in general if action.dest != "help"],
        ),
        "Flags have underscores, and hyphens are read as such. Names of other trainers are read as flags of this program:",
        table(["flag", "is read as"], [[f"`--{name}`", f"`--{flag}`"] for name, flag in SYNONYMS.items()]),
        "These names are refused, with a line that says what to do:",
        table(["flag", "what the line says"], [[f"`--{name}`", text(what)] for name, what in REFUSED.items()]),
    ]
    for name, each in choices.choices.items():
        if name in ARGUMENTS:
            continue
        tasks = [action for action in each._actions if isinstance(action, argparse._SubParsersAction)]
        if not tasks:
            parts.append(_about(f"cggm {name}", each, said[name]))
        for action in tasks:
            about = {choice.dest: choice.help or "" for choice in action._choices_actions}
            parts += [_about(f"cggm {name} {task}", one, about[task]) for task, one in action.choices.items()]
    return "\n\n".join(parts) + "\n"


def configuration() -> str:
    """Returns the page about the fields of the configuration."""
    config = Config()
    sections: dict[str, list[list[str]]] = {}
    for section, field in config.fields():
        kind, _ = value_type(type(config.sections()[section]), field)
        names = ", ".join(f"`{name}`" for name in (field.name, *field.metadata["aliases"]))
        default = getattr(config.sections()[section], field.name)
        row = [names, kind.__name__ if kind is not tuple else "list", code(default), text(field.metadata["help"])]
        sections.setdefault(section, []).append(row)
    parts = [
        "# Configuration",
        "After reading this page you can name every field of the configuration, its default and its meaning. The page is made "
        "from the dataclasses of the configuration.",
        "A field is a flag (`--num_epochs 3`), a key of a yaml file that `--config` reads (flat, or below its section), and an "
        'argument of `cggm_ray.train("mosi", num_epochs=3)`. Field names are unique over all sections. `--dry_run` prints the '
        "values of a run with their sections and stops. A field that does not exist is refused, and the message names the "
        "nearest one.",
        "Defaults are those of the package. A recipe starts from values of its own, which are at the end of this page.",
    ]
    for section, rows in sections.items():
        about = (type(config.sections()[section]).__doc__ or "").strip().splitlines()
        parts += [
            f"## {section}",
            text(about[0]) if about else "",
            table(["field", "type", "default", "meaning"], rows),
        ]
    parts.append("## Values of the recipes")
    for name in RECIPES.names():
        recipe = RECIPES.get(name)
        differ = [
            [f"`{field.name}`", code(value)]
            for section, field in recipe.config.fields()
            if (value := getattr(recipe.config.sections()[section], field.name))
            != getattr(config.sections().get(section), field.name, dataclasses.MISSING)
        ]
        parts += [
            f"### {name}",
            sentence(recipe.title),
            table(["field", "value"], differ),
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def api() -> str:
    """Returns the page about the names that `import cggm_ray` gives."""
    groups = {
        "Whole runs": ["train", "compare", "tune", "load", "Run"],
        "Strategies": cggm_ray.strategies.__all__,
        "Tasks": cggm_ray.tasks.__all__,
        "Network and batch": ["wrap", "Batch", "HeadOutput"],
        "Errors": ["CggmError", "UsageError", "DataError"],
    }
    left = {*cggm_ray.__all__} - {name for names in groups.values() for name in names}
    assert not left, f"no group has {left}"
    parts = [
        "# Python API",
        "After reading this page you can call every public function and class of the package. The page is made from the code: "
        "signatures, docstrings and the list of names.",
        "All names are imported from `cggm_ray`, such as `from cggm_ray import CGGM`. The import brings in torch and neither "
        "Ray nor transformers; `train`, `compare`, `tune`, `load` and `Run` bring in more when they are used first.",
    ]
    for title, names in groups.items():
        parts.append(f"## {title}")
        for name in names:
            found = getattr(whole_runs if title == "Whole runs" else cggm_ray, name)
            parts.append(f"::: {found.__module__}.{name}")
        if title == "Whole runs":
            parts += ["::: cggm_ray.api.start.Comparison", "::: cggm_ray.api.start.Search"]
    return "\n\n".join(parts) + "\n"
