"""The parts of `gpu.py`: each fills a dict of results, and keeps what it has where a later line of it fails."""

from __future__ import annotations

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from problems import PROBLEMS, STRATEGIES, Problem, Product, naive_step, product
from torch.utils.flop_counter import FlopCounterMode

from cggm_ray.data.loading.split import TensorSplit
from cggm_ray.engine.budget import budget_of
from cggm_ray.engine.loop import train_epoch
from cggm_ray.engine.opening import Training
from cggm_ray.engine.runtime import data_parallel
from cggm_ray.engine.step import train_step
from cggm_ray.models.resnet import ResNetConfig
from cggm_ray.strategies.registry import STRATEGIES as STRATEGY_TYPES

Results = dict[str, Any]
ROOT = Path(__file__).parents[2]
PEAK_BF16 = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "4090": 165e12}
"""Dense bf16 operations per second by a part of the card's name, from the makers' data sheets."""
NO_DROPOUT = {f"{kind}_dropout": 0.0 for kind in ("attn", "relu", "embed", "res", "out")}
EXTRA = {"mslr": {"mslr_strategy": "dynamic"}}
"""Settings without which a strategy does not start."""
SMALL_BACKBONE = ResNetConfig(blocks=(1, 1, 1, 1), bottleneck=False)
BOOLEAN = {True: "equal", False: "different"}


@dataclass(frozen=True)
class Where:
    """What is measured on, and how thoroughly.

    Attributes:
        device: 'cuda', or 'cpu' for a rehearsal.
        tiny: small networks, few steps.
        data: folder with mosi/ and brats/; None where there is none.
        started, seconds: of the part, by `time.perf_counter`.
    """

    device: str
    tiny: bool
    data: Path | None
    started: float
    seconds: float

    def left(self) -> float:
        """Returns the seconds that the part still has."""
        return self.seconds - (time.perf_counter() - self.started)

    def problem(self, name: str, **changes: Any) -> Problem:
        """Returns the problem, in a rehearsal with a small network and small inputs."""
        problem = PROBLEMS[name]
        if self.tiny:
            small = {"nlevels": 3, "cls_layers": 1, "num_heads": 2, "proj_dim": 8}
            images = problem.backbone is not None
            shapes = {m: (1, 32, 32) if images else (4, shape[-1] // 4) for m, shape in problem.shapes.items()}
            problem = dataclasses.replace(
                problem,
                shapes=shapes,
                batch=4,
                settings=dict(problem.settings) | ({} if images else small),
                backbone=SMALL_BACKBONE if images else None,
            )
        return dataclasses.replace(problem, **changes)

    def synchronise(self) -> None:
        """Waits for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def milliseconds(where: Where, step: Callable[[], Any], rounds: int = 9) -> float:
    """Returns the median milliseconds of a step over rounds of ten, after a warm-up."""
    rounds, each = (1, 1) if where.tiny else (rounds, 10)
    for _ in range(1 if where.tiny else 5):
        step()
    where.synchronise()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(each):
            step()
        where.synchronise()
        seconds.append((time.perf_counter() - start) / each)
    return 1e3 * statistics.median(seconds)


def serving(problem: Problem) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the strategies that are defined for the problem, with their settings."""
    for name in STRATEGY_TYPES.names():
        if STRATEGY_TYPES.get(name).serves(problem.task()):
            yield name, {"modulation": name, **EXTRA.get(name, {})}


def first_line(error: BaseException) -> str:
    """Returns one line about an error, with the last line of the package that it came from."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if str(ROOT / "cggm_ray") in code.co_filename:
            frames.append(f"{Path(code.co_filename).relative_to(ROOT)}:{trace.tb_lineno}")
        trace = trace.tb_next
    text = " ".join(str(error).split())[:160]
    return f"{type(error).__name__}: {text} at {frames[-1] if frames else '?'}"


def waits(where: Where, results: Results) -> None:
    """Runs a step of every strategy on every network, in a mode where an operation that waits for the device is an error."""
    for name in PROBLEMS:
        changes = {"shapes": dict.fromkeys(PROBLEMS["brats"].shapes, (1, 64, 64))} if name == "brats" else {"batch": 8}
        problem = where.problem(name, **({} if where.tiny else changes))
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
        images = {"shapes": dict.fromkeys(PROBLEMS["brats"].shapes, (1, 32, 32)), "backbone": SMALL_BACKBONE}
        problem = where.problem(name, **(images if name == "brats" else {"batch": 8}))
        for label, settings in serving(problem):
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


def _difference(
    where: Where, problem: Problem, settings: Mapping[str, Any], steps: int, dtype: torch.dtype
) -> float:
    """Returns the largest relative difference between the CPU and the device, of losses and gradient norms."""
    seen = []
    for device in ("cpu", where.device):
        step = product(problem, settings, None, device, dtype)
        rows = []
        for number in range(steps):
            torch.manual_seed(number)
            values = step()
            rows.append(torch.stack([values["loss"].double().cpu(), values["gradient_norm"].double().cpu()]))
        seen.append(torch.stack(rows))
    return float(((seen[0] - seen[1]).abs() / seen[0].abs()).max())


def captured(step: Product) -> Callable[[], None]:
    """Returns the replay of a CUDA graph of the step, whose optimizers keep their step numbers on the device."""
    for optimizer in (step.state.optimizer, step.state.strategy.own_optimizer()):
        for group in () if optimizer is None else optimizer.param_groups:
            group["capturable"] = True
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def steps(where: Where, results: Results) -> None:
    """Times of a step: plain, none, cggm, cggm-released; eager and as one CUDA graph; float32 and bf16; all networks."""
    for name in ("mosi", "iemocap", "food101"):
        problem = where.problem(name)
        results[f"{name} naive"] = milliseconds(where, naive_step(problem, where.device), rounds=3)
        for precision in ("fp32", "bf16"):
            for label in ("none", "cggm", "cggm-released"):
                key = f"{name} {label} {precision}"
                try:
                    step = product(problem, STRATEGIES[label] | {"precision": precision}, None, where.device)
                    results[f"{key} eager"] = milliseconds(where, step)
                    if where.device == "cuda":
                        results[f"{key} graph"] = milliseconds(where, captured(step))
                except Exception as error:
                    results[f"{key} error"] = first_line(error)


def compiled(where: Where, results: Results) -> None:
    """Times of a compiled step of MOSI, without and with a CUDA graph around it, and the seconds until it is compiled."""
    problem = where.problem("mosi")
    for label in ("none", "cggm"):
        for precision in ("fp32", "bf16"):
            key = f"mosi {label} {precision}"
            try:
                settings = STRATEGIES[label] | {"precision": precision, "compile": True}
                step = product(problem, settings, None, where.device)
                start = time.perf_counter()
                step()
                where.synchronise()
                results[f"{key} seconds to compile"] = time.perf_counter() - start
                results[f"{key} compiled"] = milliseconds(where, step)
                if where.device == "cuda":
                    results[f"{key} compiled graph"] = milliseconds(where, captured(step))
            except Exception as error:
                results[f"{key} error"] = first_line(error)
            if where.left() < 30:
                results["left out"] = "the rest, for want of time"
                return


def profile(where: Where, results: Results) -> None:
    """Kernels of a step of MOSI, as the profiler counts them, and the ten that take most of the device's time."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if where.device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    for label in ("none", "cggm"):
        step = product(where.problem("mosi"), STRATEGIES[label], None, where.device)
        for _ in range(3):
            step()
        where.synchronise()
        with torch.profiler.profile(activities=activities) as profiler:
            step()
            where.synchronise()
        kernels: dict[str, list[float]] = {}
        for event in profiler.events():
            if event.device_type == torch.autograd.DeviceType.CUDA:
                kernels.setdefault(event.name, []).append(event.device_time_total)
        results[f"{label} kernels"] = sum(len(times) for times in kernels.values())
        results[f"{label} busy ms"] = sum(sum(times) for times in kernels.values()) / 1e3
        most = sorted(kernels.items(), key=lambda item: -sum(item[1]))[:10]
        for name, times in most:
            results[f"{label} {name[:70]}"] = f"{len(times)} x, {sum(times) / 1e3:.3f} ms"


def brats(where: Where, results: Results) -> None:
    """BraTS at 160 x 160: the largest batch of 64, 32, 16, 8 that fits, bf16, channels last; its share of the card's peak."""
    for batch in (2,) if where.tiny else (64, 32, 16, 8):
        problem = where.problem("brats", batch=batch, channels_last=True)
        try:
            for label in ("cggm", "none"):
                for precision in ("bf16", "fp32"):
                    step = product(problem, STRATEGIES[label] | {"precision": precision}, None, where.device)
                    results[f"{label} {precision} ms"] = ms = milliseconds(where, step, rounds=2)
                    if (label, precision) == ("cggm", "bf16"):
                        with FlopCounterMode(display=False) as counter:
                            step()
                        results["batch"] = batch
                        results["operations"] = count = int(counter.get_total_flops())
                        name = torch.cuda.get_device_name() if where.device == "cuda" else ""
                        peak = next((value for part, value in PEAK_BF16.items() if part in name), None)
                        results["share of peak"] = None if peak is None else count / ms * 1e3 / peak
                    if where.device == "cuda":
                        results[f"{label} {precision} GiB"] = torch.cuda.max_memory_allocated() / 2**30
                        torch.cuda.reset_peak_memory_stats()
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            continue
        return


def epoch(where: Where, results: Results) -> None:
    """The real `train_epoch` on samples that lie on the device: milliseconds of a step, and those of the bare step beside it."""
    batches = 3 if where.tiny else 40
    problem = where.problem("mosi")
    for label in ("none", "cggm"):
        step = product(problem, STRATEGIES[label] | {"batch_size": problem.batch}, None, where.device)
        results[f"{label} bare step"] = milliseconds(where, step)
        inputs = {name: torch.cat([values] * batches) for name, values in step.batch.inputs.items()}
        split = TensorSplit(inputs, torch.cat([step.batch.target] * batches))
        known: dict[str, Any] = {"dataset": None, "class_names": None, "folder": Path("unused"), "manifest": None}
        training = Training(
            config=step.config,
            runtime=step.runtime,
            modalities=tuple(problem.shapes),
            splits={"train": split},
            state=step.state,
            step=step.step,
            task=problem.task(),
            budget=budget_of(step.config.train, len(split)),
            **known,
        )
        seconds = []
        for _ in range(1 if where.tiny else 4):
            start = time.perf_counter()
            train_epoch(training, None)
            step.state.end_epoch()
            seconds.append((time.perf_counter() - start) / batches)
        results[f"{label} step of an epoch"] = 1e3 * min(seconds)


def data_parallel_alone(where: Where, results: Results) -> None:
    """A process group of one process, NCCL on a GPU: DistributedDataParallel gives the bits of the bare step."""
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
    from cggm_ray.core.seeding import make_deterministic

    make_deterministic()
    for name, label in (("mosi", "cggm"), ("mosi", "ogm-ge"), ("brats", "cggm")):
        images = {"shapes": dict.fromkeys(PROBLEMS["brats"].shapes, (1, 64, 64)), "batch": 2}
        problem = where.problem(name, **(images if name == "brats" and not where.tiny else {}))
        key = f"{name} {label}"
        try:
            with tempfile.TemporaryDirectory() as folder:
                whole = product(problem, {"modulation": label}, None, where.device)
                _steps(whole, 0, 10)
                half = product(problem, {"modulation": label}, None, where.device)
                _steps(half, 0, 5)
                start = time.perf_counter()
                half.state.save(Path(folder))
                results[f"{key} seconds of a save"] = time.perf_counter() - start
                rest = product(problem, {"modulation": label}, None, where.device)
                rest.state.load(Path(folder))
                _steps(rest, 5, 10)
            left, right = whole.state.net.state_dict(), rest.state.net.state_dict()
            results[key] = BOOLEAN[all(torch.equal(left[entry], right[entry]) for entry in left)]
        except Exception as error:
            results[key] = first_line(error)


def _steps(step: Product, first: int, end: int) -> None:
    for number in range(first, end):
        torch.manual_seed(number)
        step()


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
                *("--num_epochs", "1", "--backbone", "resnet18", "--crop", "32", "--batch_size", "4", "--warmup_epochs", "0"),
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


PARTS: dict[str, tuple[Callable[[Where, Results], None], float]] = {
    "waits": (waits, 60),
    "agreement": (agreement, 60),
    "steps": (steps, 60),
    "profile": (profile, 30),
    "epoch": (epoch, 30),
    "resume": (resume, 40),
    "data parallel": (data_parallel_alone, 30),
    "commands": (commands, 90),
    "brats": (brats, 60),
    "compiled": (compiled, 120),
}
"""By name: a part and the seconds it may take."""
