"""The flags of a recipe, made from the fields of its configuration, and what is understood in their place.

Flags have underscores; `--num-epochs` is read as `--num_epochs`. Names that other trainers use are read as the flag of this
program (`SYNONYMS`), where no flag has that name.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from cggm_ray.config.parsing import local_path, value_type
from cggm_ray.core.errors import UsageError
from cggm_ray.core.registry import Registry
from cggm_ray.data.dataset import DATASETS
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.presets import with_preset
from cggm_ray.models.registry import NETWORKS
from cggm_ray.models.settings import ModelConfig
from cggm_ray.strategies.registry import RECIPE, STRATEGIES
from cggm_ray.strategies.settings import PART_FIELDS

SYNONYMS = {
    "epochs": "num_epochs",
    "max_epochs": "num_epochs",
    "num_train_epochs": "num_epochs",
    "learning_rate": "lr",
    "optimizer": "optim",
    "lr_scheduler_type": "schedule",
    "warmup_ratio": "warmup_share",
    "wd": "weight_decay",
    "bs": "batch_size",
    "train_batch_size": "batch_size",
    "max_grad_norm": "clip",
    "gradient_clip_val": "clip",
    "gradient_accumulation_steps": "accumulate",
    "accumulate_grad_batches": "accumulate",
    "early_stopping_patience": "patience",
    "ema_decay": "ema",
    "label_smoothing_factor": "label_smoothing",
    "strategy": "modulation",
    "net": "network",
    "data": "data_path",
    "data_dir": "data_path",
    "output_dir": "storage_path",
    "run_name": "name",
    "overwrite_output_dir": "fresh",
}
"""Name of a flag elsewhere (transformers, Lightning, timm) to the flag here."""

_GOES_ON = "a run goes on where it stopped when its command is given again with the same --name; leave it out"
REFUSED = {
    "attn_mask": "the released code parsed this flag and never used it; leave it out",
    "resume": _GOES_ON,
    "resume_from_checkpoint": _GOES_ON,
    "fp16": "expected --precision bf16, or fp32",
    "bf16": "expected --precision bf16",
    "device": "expected --use_gpu for GPUs, or --no_cuda for the CPU",
    "gpus": "expected --use_gpu with --workers N, a GPU for each worker",
    "num_workers": "expected --workers for the processes that train; samples need no processes of their own",
}
"""Flags that people type and that are none here, with what to do."""

HELP_ALL = ("--help-all", "--help_all")
_REGISTRIES: Mapping[str, Registry[Any]] = {"modulation": STRATEGIES, "network": NETWORKS, "dataset": DATASETS}
"""Fields whose values are names of a registry."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are UsageErrors of one line."""

    def error(self, message: str) -> NoReturn:
        """Raises a UsageError of one line in place of the usage text."""
        raise UsageError(f"{message}; --help lists the flags")


class Added(argparse.Action):
    """Adds the values of a flag that is given several times to one list."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Adds the values behind a comma."""
        before = getattr(namespace, self.dest, None)
        setattr(namespace, self.dest, values if before is None else f"{before},{values}")


def add_import(parser: argparse.ArgumentParser) -> None:
    """Adds the flag --import, which every command has."""
    parser.add_argument(
        "--import",
        dest="imports",
        metavar="FILE",
        type=partial(local_path, "import"),
        action="append",
        help="Python file that is run first and registers a dataset, strategy, network, recipe or storage; may be repeated",
    )


def imports_among(argv: Sequence[str]) -> list[Path]:
    """Returns the files of --import among the arguments, before other flags are known."""
    early = Parser(add_help=False, allow_abbrev=False)
    add_import(early)
    return early.parse_known_args(argv)[0].imports or []


def build_parser(
    recipe: Config, description: str | None = None, *, hidden: Sequence[str] = (), program: str | None = None
) -> argparse.ArgumentParser:
    """Builds the parser, with a flag for every field and its aliases; the help shows the recipe's values.

    Args:
        recipe: whose fields and values these are.
        description: begins the help text.
        hidden: sections and fields that the help text leaves out; their flags are read all the same.
        program: its name in the help text; default that of the process.
    """
    sections = recipe.sections()
    owners = [name if name in sections else f"--{name}" for name in hidden]
    more = textwrap.fill(f"{HELP_ALL[0]} adds the flags of {', '.join(owners)}.", 79) if hidden else None
    parser = Parser(
        prog=program,
        usage="%(prog)s [flags]",
        description=description,
        epilog=more,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(*HELP_ALL, action="help", help="show the flags of all strategies and networks, and exit")
    parser.add_argument("--config", metavar="FILE", help="yaml file with sections or plain keys; flags override it")
    add_import(parser)
    parser.add_argument("--dry_run", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument(
        "--tune",
        metavar="FILE",
        help="search hyper-parameters on Ray Tune, by a yaml file or the name of a search that comes with the package",
    )
    parser.add_argument(
        "--seeds", metavar="1,2,...", help="train one run for each seed, and print mean and standard deviation"
    )
    parser.add_argument(
        "--compare",
        metavar="a,b,...",
        help="train each strategy with every seed, and print their differences to the first",
    )
    groups: dict[str, Any] = {}
    for section, key in recipe.fields():
        if section not in groups:
            what = "Options of the dataset." if section == "options" else None
            groups[section] = parser.add_argument_group(section, what)
        kind, _ = value_type(type(sections[section]), key)
        default = getattr(sections[section], key.name)
        shown = "" if default is None or kind is bool else f" [{','.join(default) if kind is tuple else default}]"
        switch: dict[str, Any] = (
            {"nargs": "?", "const": "true", "metavar": "true|false"} if kind is bool else {"metavar": kind.__name__}
        )
        if kind is tuple:
            switch = {"metavar": "a,b,..."}
        if key.metadata["repeat"]:
            switch["action"] = Added
        names = f"; one of {', '.join(_REGISTRIES[key.name].names())}" if key.name in _REGISTRIES else ""
        about = (key.metadata["help"] + names + shown).replace("%", "%%")
        groups[section].add_argument(
            *(f"--{name}" for name in (key.name, *key.metadata["aliases"])),
            dest=key.name,
            help=argparse.SUPPRESS if {section, key.name} & {*hidden} else about,
            **switch,
        )
    return parser


def shown_recipe(recipe: Config, argv: Sequence[str]) -> tuple[Config, list[str]]:
    """Returns what the help text is about, as far as the arguments choose preset, strategies and network.

    Returns:
        The recipe with the values of the preset, and the sections and fields that only --help-all shows: those of strategies
        and networks that are not chosen.

    Raises:
        UsageError: there is no such preset.
    """
    early = Parser(add_help=False, allow_abbrev=False)
    for name in ("modulation", "compare", "network"):
        early.add_argument(f"--{name}", default="")
    early.add_argument("--preset", default=recipe.train.preset)
    found = early.parse_known_args(argv)[0]
    recipe = with_preset(recipe.replace({"preset": found.preset}, source="flag"), found.preset)
    strategies = [found.modulation or recipe.modulation.modulation, *found.compare.split(",")]
    entries = [entry.strip().partition(RECIPE)[0] for entry in strategies]
    known = [name for name in entries if name in STRATEGIES.names()]
    network = found.network or recipe.model.network or DATASETS.get(recipe.data.dataset).network
    kept = {STRATEGIES.get(name).shares or name for name in known} | {network}
    hidden = [name for name in (*recipe.strategies, *recipe.networks) if name not in kept]
    parts = {part for name in known for part in STRATEGIES.get(name).parts}
    hidden += [name for part, names in PART_FIELDS.items() if known and part not in parts for name in names]
    if network in NETWORKS.names() and not NETWORKS.get(network).sized:
        hidden += [field.name for field in dataclasses.fields(ModelConfig) if field.name != "network"]
    return recipe, [] if {*HELP_ALL} & {*argv} else hidden


def with_flags_of_this_program(parser: argparse.ArgumentParser, argv: Sequence[str]) -> list[str]:
    """Returns the arguments with hyphens of flags as underscores, and with synonyms as the flags that they mean."""
    flags, result = set(_flags(parser)), []
    for argument in argv:
        name, equals, value = argument.partition("=")
        if name.startswith("--") and name[2:] not in flags:
            name = f"--{name[2:].replace('-', '_')}"
            if name[2:] not in flags and SYNONYMS.get(name[2:]) in flags:
                name = f"--{SYNONYMS[name[2:]]}"
        result.append(f"{name}{equals}{value}" if name[2:] in flags else argument)
    return result


def explain(argument: str, parser: argparse.ArgumentParser) -> str:
    """Returns one line about an argument that no flag takes."""
    if not argument.startswith("-"):
        return f"unexpected argument {argument!r}; every value follows its flag"
    name = argument.split("=")[0].lstrip("-").replace("-", "_")
    if name in REFUSED:
        return f"{name}: {REFUSED[name]}"
    flags = _flags(parser)
    longer = [flag for flag in flags if flag.startswith(f"{name}_")][:3]
    close = longer or difflib.get_close_matches(name[:80], [*flags, *SYNONYMS], n=1, cutoff=0.5)
    near = f" (did you mean {', '.join(SYNONYMS.get(flag, flag) for flag in close)}?)" if close else ""
    return f"unknown flag --{name}{near}; --help lists the flags"


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    return [option[2:] for action in parser._actions for option in action.option_strings if option.startswith("--")]
