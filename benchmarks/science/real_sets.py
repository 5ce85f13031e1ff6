"""The real sets that strategies are compared on, with the recipe that all runs share.

The recipe is joint training's: chosen without any strategy, so that none has an advantage. A cosine schedule with one epoch
of warm-up comes further in few epochs than a constant learning rate does.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cggm_ray.tasks import Classification, Regression
from cggm_ray.tasks.base import Task

PIPELINES = Path(__file__).parents[2] / "pipelines"
RECIPE = ("--schedule", "cosine", "--warmup_epochs", "1", "--lr", "3e-3", "--cls_lr", "1e-3")


@dataclass(frozen=True, kw_only=True)
class RealSet:
    """A set and the flags of its pipeline.

    Attributes:
        pipeline: file in pipelines/.
        modalities: names.
        task: what is predicted.
        flags: beside `RECIPE` and the data.
    """

    pipeline: str
    modalities: tuple[str, ...]
    task: Task
    flags: tuple[str, ...]


SETS = {
    "mosi": RealSet(
        pipeline="mosi.py",
        modalities=("text", "audio", "vision"),
        task=Regression(),
        flags=("--num_epochs", "10"),
    ),
    "avdigits": RealSet(
        pipeline="features.py",
        modalities=("image", "audio_u8"),
        task=Classification(10),
        flags=(
            *("--target", "label", "--split", "split", "--modalities", "image,audio_u8"),
            *("--nlevels", "3", "--cls_layers", "1", "--num_epochs", "6"),
        ),
    ),
    "titles": RealSet(
        pipeline="food101.py",
        modalities=("image", "text"),
        task=Classification(24),
        flags=("--nlevels", "3", "--num_epochs", "8"),
    ),
}


def add_sets(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments for the places of the sets and of the runs."""
    parser.add_argument("sets", nargs="+", metavar="NAME=DATA", help=f"of {', '.join(SETS)}")
    parser.add_argument("--bert", type=Path, help="folder of a text encoder, for titles")
    parser.add_argument("--storage_path", type=Path, default=Path("~/cggm_runs").expanduser())


def given_sets(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> dict[str, Sequence[str]]:
    """Returns the flags that read a set, by its name; it makes a small ViT with random weights for titles."""
    found: dict[str, Sequence[str]] = {}
    for text in arguments.sets:
        name, _, path = text.partition("=")
        if name not in SETS or not path:
            parser.error(f"found {text!r}; expected NAME=DATA with a name of {', '.join(SETS)}")
        if not Path(path).exists():
            parser.error(f"{path} is not there")
        own = list(SETS[name].flags)
        if SETS[name].pipeline == "food101.py":
            if arguments.bert is None:
                parser.error(f"{name}: --bert is not given; expected the folder of a text encoder")
            own += ["--vit", str(save_random_vit(arguments.storage_path / "vit")), "--bert", str(arguments.bert)]
        found[name] = ("--data_path", path, *RECIPE, *own)
    return found


def save_random_vit(folder: Path) -> Path:
    """Makes a ViT of 64 pixels and two layers with fixed random weights; its features still carry information."""
    if not (folder / "config.json").exists():
        import torch
        import transformers

        torch.manual_seed(0)
        sizes = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192}
        config = transformers.ViTConfig(image_size=64, patch_size=8, **sizes)
        transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def call(name: str, storage: Path, flags: Sequence[str]) -> None:
    """Runs the pipeline of a set, which keeps its runs in a folder, without pages, and prints its output."""
    kept = ("--storage_path", str(storage), "--report", "false", "--trackers", "jsonl")
    subprocess.run([sys.executable, str(PIPELINES / SETS[name].pipeline), *flags, *kept], check=True)
