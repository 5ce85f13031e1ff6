"""The parts of `gpu.py` that check: what a GPU computes, and that nothing waits for it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from gpu_where import (
    BOOLEAN,
    BRATS_SMALL,
    DRAWS,
    NO_DROPOUT,
    ROOT,
    Results,
    Where,
    first_line,
    serving,
)
from problems import PROBLEMS, STRATEGIES, Problem, Product, product

from cggm_ray.core.seeding import make_deterministic, seed_all
from cggm_ray.engine.runtime import data_parallel
from cggm_ray.engine.step import train_step


def waits(where: Where, results: Results) -> None:
    """Runs a step of every strategy on every network, in a mode where an operation that waits for the device is an error."""
    for name in PROBLEMS:
        changes = BRATS_SMALL if name == "brats" else {"batch": 8}
        problem = where.problem(name, **changes)
        for label, settings in serving(problem):
            key = f"{name} {label}"
            try:
                step = product(problem, settings, None, where.device)
                for _ in range(2):
                    step()
                where.synchronise()
                if where.device == "cuda":
                    torch.cuda.set_sync_debug_mode("error")
                step()
                results[key] = "no wait" if where.device == "cuda" else "runs"
            except Exception as error:
                results[key] = first_line(error)
            finally:
                if where.device == "cuda":
                    torch.cuda.set_sync_debug_mode("default")


def agreement(where: Where, results: Results) -> None:
    """Compares losses on the CPU and on the device: all strategies in float64, two of them over 50 steps in float32.

    Values are the largest relative difference of loss and gradient norm.
    """
    torch.backends.cudnn.allow_tf32 = False
    for name, steps in (("mosi", 4), ("brats", 2)):
        problem = where.problem(name, **(BRATS_SMALL if name == "brats" else {"batch": 8}))
        for label, settings in serving(problem):
            if label in DRAWS:
                continue
            options = settings | (NO_DROPOUT | {"nlevels": 3} if name == "mosi" else {})
            try:
                results[f"{name} {label} float64"] = _difference(where, problem, options, steps, torch.float64)
            except Exception as error:
                results[f"{name} {label} float64"] = first_line(error)
    for label in ("none", "cggm"):
        steps = 3 if where.tiny else 50
        settings = STRATEGIES[label] | NO_DROPOUT | {"nlevels": 3}
        results[f"mosi {label} float32, {steps} steps"] = _difference(
            where, where.problem("mosi"), settings, steps, torch.float32
        )


def _difference(where: Where, problem: Problem, settings: Mapping[str, Any], steps: int, dtype: torch.dtype) -> float:
    """Returns the largest relative difference between the CPU and the device, of losses and gradient norms."""
    seen = []
    for device in ("cpu", where.device):
        step = product(problem, settings, None, device, dtype, dropout=False)
        rows = []
        for number in range(steps):
            torch.manual_seed(number)
            values = step()
            rows.append(torch.stack([values["loss"].double().cpu(), values["gradient_norm"].double().cpu()]))
        seen.append(torch.stack(rows))
    return float(((seen[0] - seen[1]).abs() / seen[0].abs()).max())


def graph(where: Where, results: Results) -> None:
    """Recorded steps against eager ones with dropout, full batches and a smaller one by turns: the bits of all weights."""
    for name in PROBLEMS:
        problem = where.problem(name, **(BRATS_SMALL if name == "brats" else {"batch": 8}))
        for label, settings in serving(problem):
            key = f"{name} {label}"
            try:
                weights, spent = [], []
                for kind in where.kinds:
                    step = product(problem, settings, None, where.device)
                    if kind == "graph" and step.state.strategy.against_graph:
                        raise NotImplementedError(step.state.strategy.against_graph)
                    take, small = step.taking(kind), step.batch.split(2)[0]
                    for number in range(8):
                        seed_all(number)
                        take(small if number % 4 == 3 else step.batch)
                    where.synchronise()
                    start = time.perf_counter()
                    for number in range(3):
                        seed_all(number)
                        take(step.batch)
                    where.synchronise()
                    spent.append((time.perf_counter() - start) / 3e-3)
                    weights.append({**step.state.net.state_dict(), **_tensors(step.state.strategy.state_dict())})
                equal = all(torch.equal(value, weights[-1][entry]) for entry, value in weights[0].items())
                results[key] = f"{BOOLEAN[equal]}; {' against '.join(f'{ms:.1f}' for ms in spent)} ms"
            except Exception as error:
                results[key] = first_line(error)


def _tensors(values: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    tensors = {f"strategy.{name}": value for name, value in values.items() if isinstance(value, torch.Tensor)}
    # A value that is not a number equals none, and some strategies keep such values where they know nothing yet.
    return {name: torch.nan_to_num(value, nan=-1.5) for name, value in tensors.items()}


def data_parallel_alone(where: Where, results: Results) -> None:
    """A process group of one process, NCCL on a GPU: DistributedDataParallel gives the bits of the bare step."""
    make_deterministic()
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(
            "nccl" if where.device == "cuda" else "gloo", init_method=f"file://{folder}/group", rank=0, world_size=1
        )
        try:
            losses = []
            for wrapped in (False, True):
                step = product(where.problem("mosi"), STRATEGIES["cggm"], None, where.device)
                module = data_parallel(step.step, step.runtime.device) if wrapped else step.step
                rows = []
                for number in range(5):
                    torch.manual_seed(number)
                    values = train_step(step.state, module, step.batch, step.runtime, accumulate=1, clip=0.8)
                    rows.append(float(values["loss"]))
                losses.append(rows)
            results["five losses"] = BOOLEAN[losses[0] == losses[1]]
        finally:
            dist.destroy_process_group()


def resume(where: Where, results: Results) -> None:
    """Ten steps at once, and five, a checkpoint, and five in a new state: the bits of all weights, with `deterministic`."""
    make_deterministic()
    for name, label in (("mosi", "cggm"), ("mosi", "ogm-ge"), ("brats", "cggm")):
        problem = where.problem(name, **(BRATS_SMALL if name == "brats" else {}))
        kind = where.kinds[-1] if label != "ogm-ge" else "eager"
        key = f"{name} {label} {kind}"
        try:
            with tempfile.TemporaryDirectory() as folder:
                whole = product(problem, {"modulation": label}, None, where.device)
                _steps(whole, kind, 0, 10)
                half = product(problem, {"modulation": label}, None, where.device)
                _steps(half, kind, 0, 5)
                start = time.perf_counter()
                half.state.save(Path(folder))
                results[f"{key} seconds of a save"] = time.perf_counter() - start
                rest = product(problem, {"modulation": label}, None, where.device)
                rest.state.load(Path(folder))
                _steps(rest, kind, 5, 10)
            left, right = whole.state.net.state_dict(), rest.state.net.state_dict()
            results[key] = BOOLEAN[all(torch.equal(left[entry], right[entry]) for entry in left)]
        except Exception as error:
            results[key] = first_line(error)


def _steps(step: Product, kind: str, first: int, end: int) -> None:
    take = step.taking(kind)
    for number in range(first, end):
        seed_all(number)
        take(step.batch)


def commands(where: Where, results: Results) -> None:
    """The commands of a person on real data: train, continue, predict, verify, export; then the same run on the CPU."""
    if where.data is None:
        results["commands"] = "left out: no --data"
        return
    with tempfile.TemporaryDirectory() as folder:
        common = ["--local", "--storage_path", f"{folder}/runs", "--shard_path", f"{folder}/shards"]
        mosi = ["train", "mosi", "--data_path", f"{where.data}/mosi/mosi_data_noalign.pkl", *common, "--name", "run"]
        small = ["--nlevels", "3", "--num_heads", "2", "--proj_dim", "8", "--cls_layers", "1"] if where.tiny else []
        cases: dict[str, list[str]] = {
            "train mosi, 1 epoch": [*mosi, *small, "--num_epochs", "1"],
            "train mosi, to 3 epochs": [*mosi, *small, "--num_epochs", "3", "--allow_config_change"],
            "verify": ["verify", f"{folder}/runs/run"],
            "predict": [
                *("predict", f"{folder}/runs/run", "--data_path", f"{where.data}/mosi/mosi_data_noalign.pkl"),
                *("--out", f"{folder}/predictions.parquet"),
            ],
            "export": ["export", f"{folder}/runs/run"],
            "train mosi on the CPU": [*mosi[:-1], "cpu", *small, "--num_epochs", "1", "--no_cuda"],
            "train brats": [
                *("train", "brats", "--data_path", f"{where.data}/brats/small", *common, "--name", "brats"),
                *(
                    "--num_epochs",
                    "1",
                    "--backbone",
                    "resnet18",
                    "--crop",
                    "32",
                    "--batch_size",
                    "4",
                    "--warmup_epochs",
                    "0",
                ),
            ],
            "train mosi with compile": [*mosi[:-1], "compiled", *small, "--num_epochs", "2", "--compile"],
        }
        for label, arguments in cases.items():
            if where.left() < 15:
                results[label] = "left out: no time"
                continue
            start = time.perf_counter()
            try:
                done = subprocess.run(
                    [sys.executable, "-m", "cggm_ray", *arguments],
                    check=False,
                    capture_output=True,
                    text=True,
                    cwd=folder,
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                    timeout=where.left(),
                )
            except subprocess.TimeoutExpired:
                results[label] = "out of time"
                continue
            lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
            last = f"; {lines[-1][:300]}" if lines and done.returncode else ""
            results[label] = f"exit code {done.returncode}, {time.perf_counter() - start:.1f} s{last}"
