"""All strategies on small sets, with every network, on 1 and on 2 workers.

    python benchmarks/science/every_strategy.py
    python benchmarks/science/every_strategy.py --networks deeplab --strategies none,cggm
    python benchmarks/science/every_strategy.py --strategies none,opm --networks sequence,composed:late --epochs 4

Makes a set of three modalities (a sequence, a picture and a vector; all as sequences for the network `sequence`), of which the
last says most about the class. Trains every strategy with every network, in one process and in two that share each batch, and
prints a row for each strategy: test accuracy with 1 worker and, where it is another, with 2; and the largest difference
between their last validation losses. Strategies that wait for some epochs get settings with which they act within these few.
The networks are `sequence`, `shaped`, `composed` with each of its fusions, and `deeplab`, which segments two sequences of
generated brain scans: its column is the mean Dice, and strategies that need one class a sample have none. No network has
dropout, because every worker draws that by itself, and all compute in double precision, where two curves that are one differ in
the last digits only. Returns 1 if a run failed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cggm_ray.commands.cli import main as program
from cggm_ray.core.tables import text_table
from cggm_ray.data.datasets.features import FeatureOptions
from cggm_ray.data.settings import DataConfig
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.tracking import read_metrics
from cggm_ray.models.composed.registry import FUSIONS
from cggm_ray.recipes.base import RECIPES
from cggm_ray.runs.result import read_summary
from cggm_ray.strategies.registry import STRATEGIES
from cggm_ray.tasks import Classification, Segmentation

NAMES = ("words", "face", "age")
CLASSES = 3
SOON: dict[str, tuple[str, ...]] = {
    "opm": ("--opm_warmup", "0"),
    "relearning": ("--relearning_every", "1"),
    "valuation": ("--valuation_warmup", "1"),
    "greedy": ("--greedy_start", "0"),
    "amco": ("--amco_sigma", "0.3"),
    "reconboost": ("--reconboost_epochs", "1", "--reconboost_rectify", "1"),
    "gblend": ("--gblend_super_epoch", "1"),
    "mslr": ("--mslr_strategy", "dynamic", "--mslr_window", "1"),
}
VOLUMES, SCANS = "deeplab", ("flair", "t1ce")
"""The network for volumes, and its modalities."""
DRAWS = ("modality-dropout",)
"""Strategies whose workers draw by themselves."""


def networks() -> list[str]:
    """Returns the networks of the table; those of `composed` with their fusion."""
    return ["sequence", "shaped", *(f"composed:{fusion}" for fusion in FUSIONS.names()), VOLUMES]


def modalities_of(network: str) -> tuple[str, ...]:
    """Returns the modalities that a network gets."""
    return SCANS if network == VOLUMES else NAMES


def serves(network: str, name: str) -> bool:
    """Whether a strategy serves the task of a network."""
    return STRATEGIES.get(name).serves(Segmentation() if network == VOLUMES else Classification(CLASSES))


def write_set(path: Path, *, sequences: bool, samples: int = 120) -> None:
    """Writes a set whose vector says most about the class, and its picture least; or both as sequences."""
    draw = np.random.default_rng(0)
    label = draw.permutation(np.arange(samples) % CLASSES)
    words = draw.normal(size=(samples, 5, 3)) + 0.6 * np.eye(3)[label][:, None]
    face = np.clip(128 + 40 * draw.normal(size=(samples, 8, 8)) + 25 * (label[:, None, None] - 1), 0, 255)
    age = draw.normal(size=(samples, 4)) + 1.5 * np.eye(4)[label]
    part = np.array((["train"] * 4 + ["val", "test"]) * (samples // 6))
    arrays = {"words": words.astype(np.float32), "face": face.astype(np.uint8), "age": age.astype(np.float32)}
    if sequences:
        arrays |= {"face": arrays["face"].astype(np.float32) / 128 - 1, "age": arrays["age"][:, None]}
    np.savez(path, allow_pickle=False, label=label, part=part, **arrays)


def flags_of(network: str) -> list[str]:
    """Returns the flags of a network of the list, without dropout, which each worker draws by itself."""
    name, _, fusion = network.partition(":")
    still = [text for part in ("attn", "relu", "embed", "res", "out") for text in (f"--{part}_dropout", "0")]
    sizes = ["--nlevels", "3", "--cls_layers", "1", "--proj_dim", "8", "--num_heads", "2"]
    own = {
        "sequence": [*sizes, *still],
        "shaped": [*sizes, *still],
        "composed": ["--fusion", fusion, "--width", "16", "--dropout", "0", "--input_dropout", "0"],
        VOLUMES: [
            "--backbone",
            "resnet18",
            "--crop",
            "32",
            "--warmup_epochs",
            "0",
            "--overlays",
            "0",
            "--map_dropout",
            "false",
        ],
    }
    return ["--network", name, *own.get(name, [])]


def train(folder: Path, workers: int, network: str, name: str, epochs: int, *more: str) -> str | None:
    """Trains a run in `folder/NETWORK/workers/NAME`; returns the error if it fails."""
    storage = folder / network.replace(":", "-") / str(workers)
    data = folder / ("sequences.npz" if network == "sequence" else "set.npz")
    places = ["--local", "--storage_path", str(storage), "--name", name]
    recipe, size = RECIPES.get("brats").config, 4
    if network != VOLUMES:
        recipe = Config(data=DataConfig(dataset="features"), options=FeatureOptions(split="part"))
        places, size = [*places, "--data_path", str(data)], 16
    names = modalities_of(network)
    own = SOON.get(name, ())
    if name == "umt":
        own = ("--umt_teachers", ",".join(f"teacher-{modality}" for modality in names))
    chosen = [] if "--modulation" in more else ["--modulation", name, *own]
    modalities = [] if "--modalities" in more else ["--modalities", ",".join(names)]
    sizes = ["--batch_size", str(size), "--num_epochs", str(epochs), "--report", "false", "--no_cuda", "true"]
    sizes += ["--precision", "fp64"]
    said, wrong = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(wrong):
        code = program(recipe, [*places, *sizes, *flags_of(network), *chosen, *modalities, *more])
    if code == 0 and os.environ.get("RANK", "0") == "0":
        # A network for volumes leaves a gigabyte, of which only teachers are read again.
        for part in ("checkpoints",) if name.startswith("teacher-") else ("checkpoints", "best"):
            shutil.rmtree(storage / name / part, ignore_errors=True)
    return None if code == 0 else wrong.getvalue().strip().splitlines()[-1]


def plan(chosen: Sequence[str], nets: Sequence[str]) -> list[tuple[str, str, tuple[str, ...]]]:
    """Returns network, name and further flags of every run, the teachers of a network before its strategies."""
    runs: list[tuple[str, str, tuple[str, ...]]] = []
    for network in nets:
        teachers = modalities_of(network) if "umt" in chosen else ()
        runs += [(network, f"teacher-{m}", ("--modalities", m, "--modulation", "none")) for m in teachers]
        runs += [(network, name, ()) for name in chosen if serves(network, name)]
    return runs


def work(rank: int, workers: int, ports: Sequence[int], folder: Path, runs: Sequence[tuple], epochs: int) -> None:
    """Trains all runs in one of the workers, which meet for each at a store of its own; rank 0 writes what failed."""
    torch.set_num_threads(1)
    failed = []
    for port, (network, name, more) in zip(ports, runs, strict=True):
        if workers > 1:
            os.environ.update(RANK=str(rank), WORLD_SIZE=str(workers), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        error = train(folder, workers, network, name, epochs, *more)
        failed += [] if error is None else [f"{name}, {network}, {workers} workers: {error}"]
    if rank == 0:
        (folder / f"failed-{workers}.txt").write_text("\n".join(failed))


def cell(folder: Path, network: str, name: str) -> tuple[str, float]:
    """Returns what the table says of a strategy with a network, and the distance of the validation losses."""
    if not serves(network, name):
        return "-", 0.0
    metric = "dice_mean" if network == VOLUMES else "accuracy"
    found = []
    for workers in (1, 2):
        run = folder / network.replace(":", "-") / str(workers) / name
        try:
            found.append((read_summary(run).test[metric], read_metrics(run)[-1]["valid/loss"]))
        except (OSError, KeyError, IndexError, ValueError):
            return "failed", float("nan")
    (one, first), (two, second) = found
    return f"{one:.3f}" if one == two else f"{one:.3f} / {two:.3f}", abs(float(first) - float(second))


def main() -> int:
    """Trains and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    serving = [name for name in STRATEGIES.names() if STRATEGIES.get(name).serves(Classification(CLASSES))]
    parser.add_argument("--strategies", default=",".join(serving))
    parser.add_argument("--networks", default=",".join(networks()))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, help="keep the runs there [a temporary folder]")
    given = parser.parse_args()
    chosen, nets = given.strategies.split(","), given.networks.split(",")
    runs = plan(chosen, nets)
    with contextlib.ExitStack() as stack:
        folder = given.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        write_set(folder / "set.npz", sequences=False)
        write_set(folder / "sequences.npz", sequences=True)
        for workers in (1, 2):
            stores = [dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) for _ in runs]
            ports = [store.port for store in stores]
            mp.spawn(work, args=(workers, ports, folder, runs, given.epochs), nprocs=workers)
        rows = []
        for name in chosen:
            cells = [cell(folder, network, name) for network in nets]
            apart = [distance for _, distance in cells]
            off = "draws of its own" if name in DRAWS else f"{max(apart):.1e}" if apart else ""
            rows.append([name, *(text for text, _ in cells), off])
        print(text_table(rows, ["strategy", *nets, "workers apart"], markdown=True))
        failed = [(folder / f"failed-{workers}.txt").read_text() for workers in (1, 2)]
    print("\n".join(text for text in failed if text))
    return int(any(failed))


if __name__ == "__main__":
    sys.exit(main())
