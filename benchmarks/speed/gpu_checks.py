"""The parts of `gpu.py` that check: what a GPU computes, and that nothing waits for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
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
from cggm_ray.data.datasets.food101.food101_options import Food101Options
from cggm_ray.data.shards.shards import write_shards_here
from cggm_ray.engine.assembly import prepare_data
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.runtime import data_parallel
from cggm_ray.engine.saving import HostCopy
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
    for name, steps in (("mosi", 4), ("brats", 2)):
        problem = where.problem(name, **(BRATS_SMALL if name == "brats" else {"batch": 8}))
        for label, settings in serving(problem):
            if label in DRAWS:
                continue
            options = settings | (NO_DROPOUT | {"nlevels": 3} if name == "mosi" else {})
            try:
                there, here = (
                    _rows(problem, options, steps, torch.float64, device) for device in (where.device, "cpu")
                )
                results[f"{name} {label} float64"] = _largest(there, here)
            except Exception as error:
                results[f"{name} {label} float64"] = first_line(error)
    for label in ("none", "cggm"):
        steps = 3 if where.tiny else 20
        settings = STRATEGIES[label] | NO_DROPOUT | {"nlevels": 3}
        exact, single, other = (
            _rows(where.problem("mosi"), settings, steps, dtype, device)
            for dtype, device in (
                (torch.float64, "cpu"),
                (torch.float32, "cpu"),
                (torch.float32, where.device),
            )
        )
        results[f"mosi {label} float32, {steps} steps"] = _largest(other, single)
        results[f"mosi {label} float32 and 64 on the CPU"] = _largest(single, exact)


def _rows(problem: Problem, settings: Mapping[str, Any], steps: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Returns loss and gradient norm of some steps without dropout, [steps, 2]."""
    step = product(problem, settings, None, device, dtype, dropout=False)
    rows = []
    for _ in range(steps):
        values = step()
        rows.append(torch.stack([values["loss"].double().cpu(), values["gradient_norm"].double().cpu()]))
    return torch.stack(rows)


def _largest(rows: torch.Tensor, reference: torch.Tensor) -> float:
    """Returns the largest relative difference."""
    return float(((rows - reference).abs() / reference.abs()).max())


def graph(where: Where, results: Results) -> None:
    """Recorded steps against eager ones with dropout, full batches and a smaller one by turns: the bits of all weights.

    With deterministic operations, because two eager runs are not equal without them.
    """
    make_deterministic()
    # Every strategy once; images have other networks and losses.
    seen: set[str] = set()
    for name in ("mosi", "iemocap", "brats"):
        changes = BRATS_SMALL if name == "brats" else {"batch": 8}
        problem = where.problem(name, **changes)
        for label, settings in serving(problem):
            if label in seen and not (name == "brats" and label in ("none", "cggm", "cggm-released", "mmpareto")):
                continue
            seen.add(label)
            options = settings | ({} if name == "brats" else {"nlevels": 3})
            try:
                results[f"{name} {label}"] = _recorded_and_eager(where, problem, options)
            except Exception as error:
                results[f"{name} {label}"] = first_line(error)
                if where.device == "cuda":
                    # A recording that failed leaves the generator in its midst.
                    fresh = torch.Generator("cuda").graphsafe_get_state()
                    torch.cuda.default_generators[0].graphsafe_set_state(fresh)
    # What branches of a recorded step share would not differ in every one of a few steps.
    for name in ("mosi", "iemocap", "food101", "brats"):
        problem = where.problem(name, **(BRATS_SMALL if name == "brats" else {}))
        results[f"{name} cggm, 60 steps"] = _recorded_and_eager(where, problem, STRATEGIES["cggm"], 60)


def _recorded_and_eager(where: Where, problem: Problem, settings: Mapping[str, Any], steps: int = 8) -> str:
    """Returns whether steps of both kinds have the same bits, and the milliseconds of both."""
    weights, spent = [], []
    for kind in where.kinds:
        step = product(problem, settings, None, where.device)
        if kind == "graph" and step.state.strategy.against_graph:
            return f"not recorded: {step.state.strategy.against_graph}"
        take, small = step.taking(kind), step.batch.split(2)[0]
        for number in range(steps):
            seed_all(number)
            take(small if number % 4 == 3 else step.batch)
        where.synchronise()
        weights.append({**step.state.net.state_dict(), **_tensors(step.state.strategy.state_dict())})
        weights[-1] = {name: value.clone() for name, value in weights[-1].items()}
        start = time.perf_counter()
        for _ in range(3):
            take(step.batch)
        where.synchronise()
        spent.append((time.perf_counter() - start) / 3e-3)
    different = [name for name, value in weights[0].items() if not torch.equal(value, weights[-1][name])]
    found = f"{len(different)} of {len(weights[0])} tensors differ, {different[0]}" if different else "equal"
    return f"{found}; {' against '.join(f'{ms:.1f}' for ms in spent)} ms"


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
                copied = HostCopy()(half.state.content())
                results[f"{key} seconds of the first copy"] = time.perf_counter() - start
                copied.save(Path(folder))
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
    with _Commands(where, results) as command:
        data = f"{where.data}/mosi/mosi_data_noalign.pkl"
        run = f"{command.folder}/runs/run"
        command("train mosi, 1 epoch", *command.mosi("run"), "--num_epochs", "1")
        command("train mosi, to 3 epochs", *command.mosi("run"), "--num_epochs", "3", "--allow_config_change")
        command("verify", "verify", run)
        command("predict", "predict", run, "--data_path", data, "--out", f"{command.folder}/predictions.parquet")
        command("export", "export", run)
        command("train mosi on the CPU", *command.mosi("cpu"), "--num_epochs", "1", "--no_cuda")


def compiled_run(where: Where, results: Results) -> None:
    """A whole run whose steps are compiled as one graph, stopped and continued."""
    with _Commands(where, results) as command:
        for epochs in ("1", "2"):
            flags = ["--num_epochs", epochs, "--compile", "--allow_config_change", "--report", "false"]
            command(f"train mosi with compile, {epochs} epochs", *command.mosi("compiled"), *flags)


def extraction(where: Where, results: Results) -> None:
    """Frozen encoders as large as ViT-B and BERT-base on images of 512 x 384 pixels: samples a second, and the CPU's features.

    The features are compared in float32; the largest difference is relative to the largest feature.
    """
    from food101_set import save_encoders, write_set

    samples, hidden, layers = (8, 64, 1) if where.tiny else (256, 768, 12)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        vit, bert = save_encoders(folder, hidden, layers)
        found = {}
        for name, count, no_cuda in (("few on the CPU", 8, True), ("few", 8, False), ("all", samples, False)):
            source = folder / f"set{count}"
            config = Config(options=Food101Options(vit=str(vit), bert=str(bert))).replace(
                {
                    "dataset": "food101",
                    "data_path": str(source if source.exists() else write_set(source, count)),
                    "storage_path": str(folder / name),
                    "no_cuda": no_cuda or where.device == "cpu",
                }
            )
            start = time.perf_counter()
            shards = prepare_data(config, write_shards_here)
            if name == "all":
                results["samples per second, loading of encoders included"] = (samples + 2 * (samples // 8)) / (
                    time.perf_counter() - start
                )
            found[name] = pq.read_table(sorted(shards.glob("train-*.parquet")))
        for column in ("image", "text"):
            here, there = (
                np.frombuffer(b"".join(found[name].column(column).to_pylist()), np.float32)
                for name in ("few on the CPU", "few")
            )
            results[f"largest difference of {column}"] = float(np.abs(here - there).max() / np.abs(here).max())


def recorded_runs(where: Where, results: Results) -> None:
    """Whole runs: BraTS, and MOSI with recorded and with eager steps, whose weights and logs must have the same bits."""
    with _Commands(where, results) as command:
        kinds = ("eager", where.kinds[-1])
        for number, kind in enumerate(kinds):
            flags = ["--num_epochs", "2", "--deterministic", "--step", kind]
            command(f"train mosi, {number}: {kind}", *command.mosi(f"run{number}"), *flags)
        files = [Path(command.folder) / "runs" / f"run{number}" / "best" / "model.safetensors" for number in range(2)]
        if all(file.exists() for file in files):
            results["best weights"] = BOOLEAN[files[0].read_bytes() == files[1].read_bytes()]
        brats = ["train", "brats", "--data_path", f"{where.data}/brats/small", *command.common, "--name", "brats"]
        brats += ["--num_epochs", "1", "--backbone", "resnet18", "--crop", "32", "--batch_size", "4"]
        command("train brats", *brats, "--warmup_epochs", "0", "--report", "false")


def streamed(where: Where, results: Results) -> None:
    """Samples per second of the last of four epochs, with MOSI on the device and with MOSI streamed.

    The order of samples is the same, so the losses must have the same bits.
    """
    with _Commands(where, results) as command:
        losses = []
        for name, budget in (("device", "4096"), ("streamed", "60")):
            flags = ["--num_epochs", "4", "--deterministic", "--memory_budget", budget, "--report", "false"]
            command(f"train mosi, {name}", *command.mosi(name), *flags)
            file = Path(command.folder) / "runs" / name / "metrics.jsonl"
            if file.exists():
                records = [json.loads(line) for line in file.read_text().splitlines()]
                results[f"{name} samples per second"] = records[-1].get("samples_per_second")
                losses.append([record["train/loss"] for record in records])
        if len(losses) == 2:
            results["losses"] = BOOLEAN[losses[0] == losses[1]]


class _Commands:
    """Runs commands in a folder of their own, while there is time.

    Args:
        where: that they run.
        results: get a line for each.
    """

    def __init__(self, where: Where, results: Results) -> None:
        self._where, self._results = where, results
        self._temporary = tempfile.TemporaryDirectory()

    def __enter__(self) -> _Commands:
        self.folder = self._temporary.__enter__()
        self.common = ["--local", "--storage_path", f"{self.folder}/runs", "--shard_path", f"{self.folder}/shards"]
        return self

    def __exit__(self, *error: object) -> None:
        self._temporary.cleanup()

    def mosi(self, name: str) -> list[str]:
        """Returns the flags of a run on MOSI."""
        sizes = (
            ["--nlevels", "3", "--num_heads", "2", "--proj_dim", "8", "--cls_layers", "1"] if self._where.tiny else []
        )
        data = f"{self._where.data}/mosi/mosi_data_noalign.pkl"
        return ["train", "mosi", "--data_path", data, *self.common, "--name", name, *sizes]

    def __call__(self, label: str, *arguments: str) -> None:
        """Runs a command of the package, and notes exit code, seconds, and the last line of one that fails."""
        if self._where.data is None or self._where.left() < 12:
            self._results[label] = "left out: no --data" if self._where.data is None else "left out: no time"
            return
        start = time.perf_counter()
        try:
            done = subprocess.run(
                [sys.executable, "-m", "cggm_ray", *arguments],
                check=False,
                capture_output=True,
                text=True,
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                timeout=self._where.left(),
            )
        except subprocess.TimeoutExpired:
            self._results[label] = "out of time"
            return
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        last = f"; {lines[-1][:300]}" if lines and done.returncode else ""
        said = [line for line in done.stdout.splitlines() if line.startswith("a step is ")]
        self._results[label] = (
            f"exit code {done.returncode}, {time.perf_counter() - start:.1f} s{last} {' '.join(said)}"
        )
