"""The parts of `gpu.py` that measure."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from gpu_where import (
    PEAK_BF16,
    Results,
    Where,
    first_line,
    milliseconds,
)
from problems import STRATEGIES, naive_step, product
from saves import KIND, Waiting, timed
from torch.utils.flop_counter import FlopCounterMode

from cggm_ray.data.loading.split import TensorSplit
from cggm_ray.engine.budget import budget_of
from cggm_ray.engine.loop import train_epoch
from cggm_ray.engine.opening import Training
from cggm_ray.engine.runtime import LocalRuntime
from cggm_ray.models import branches


def steps(where: Where, results: Results) -> None:
    """Times of a step: plain, none, cggm, cggm-released; eager and as one CUDA graph; float32 and bf16; all networks."""
    for name in ("mosi", "iemocap", "food101"):
        problem = where.problem(name)
        results[f"{name} naive"] = milliseconds(where, naive_step(problem, where.device), rounds=3)
        for precision in ("fp32", "tf32", "bf16"):
            for label in ("none", "cggm", "cggm-released") if precision == "fp32" else ("none", "cggm"):
                key = f"{name} {label} {precision}"
                try:
                    step = product(problem, STRATEGIES[label] | {"precision": precision}, None, where.device)
                    for kind in where.kinds:
                        results[f"{key} {kind}"] = milliseconds(where, partial(step.taking(kind), step.batch))
                    if name == "mosi" and precision == "fp32":
                        step.state.net.together = False
                        for kind in where.kinds:
                            results[f"{key} one by one {kind}"] = milliseconds(
                                where, partial(step.taking(kind), step.batch)
                            )
                except Exception as error:
                    results[f"{key} error"] = first_line(error)


def one_stream(where: Where, results: Results) -> None:
    """Times and memory of recorded steps with branches on streams of their own, and of the same steps on a single stream."""
    cases = [(name, where.problem(name)) for name in ("mosi", "iemocap", "food101")]
    cases.append(("brats", where.problem("brats", channels_last=True, **({} if where.tiny else {"batch": 16}))))
    for name, problem in cases:
        for precision in ("bf16",) if name == "brats" else ("fp32", "bf16"):
            for label in ("none", "cggm"):
                for stream, here in (("branches", branches.recording), ("one stream", lambda device: False)):
                    key = f"{name} {label} {precision} {stream}"
                    try:
                        with patch.object(branches, "recording", here):
                            step = product(problem, STRATEGIES[label] | {"precision": precision}, None, where.device)
                            take = partial(step.taking(where.kinds[-1]), step.batch)
                            results[key] = milliseconds(where, take)
                        if where.device == "cuda":
                            results[f"{key} GiB"] = torch.cuda.max_memory_reserved() / 2**30
                    except Exception as error:
                        results[f"{key} error"] = first_line(error)
                    if where.device == "cuda":
                        step = take = None
                        torch.cuda.empty_cache()
                        torch.cuda.reset_peak_memory_stats()


def compiled(where: Where, results: Results) -> None:
    """Times of a step of MOSI that is compiled as one graph, without and with a CUDA graph around it; seconds to compile."""
    problem = where.problem("mosi")
    for label, precision in (("cggm", "fp32"), ("none", "fp32"), ("cggm", "bf16"), ("none", "bf16")):
        key = f"mosi {label} {precision}"
        try:
            settings = STRATEGIES[label] | {"precision": precision, "compile": True}
            step = product(problem, settings, None, where.device)
            start = time.perf_counter()
            step()
            where.synchronise()
            results[f"{key} seconds to compile"] = spent = time.perf_counter() - start
            for kind in where.kinds:
                results[f"{key} compiled {kind}"] = milliseconds(where, partial(step.taking(kind), step.batch))
        except Exception as error:
            results[f"{key} error"] = first_line(error)
            continue
        if where.left() < spent:
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
                    take = partial(step.taking(where.kinds[-1]), step.batch)
                    results[f"{label} {precision} ms"] = ms = milliseconds(where, take, rounds=2)
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


def saves(where: Where, results: Results) -> None:
    """Milliseconds that a save of some 200 MB keeps the loop from its next step, recorded and eager steps alike.

    `benchmarks/speed/saves.py` does the same on a CPU.
    """
    width = 10 if where.tiny else 320
    for what, kind in (("training waits", Waiting), ("beside training", LocalRuntime)):
        with tempfile.TemporaryDirectory() as folder:
            settings = {"proj_dim": width, "modulation": "cggm", "optim": {"optim": "Adam"}}
            run = product(KIND, settings, None, where.device)
            run()
            where.synchronise()
            results["MB"] = sum(tensor.nbytes for tensor in run.state.content().all()) / 1e6
            mine = dataclasses.replace(run, runtime=kind(Path(folder), run.config.run))
            stops, seconds = timed(mine, 2 if where.tiny else 5, 5, save=True)
            results[f"{what}, first stop (ms)"] = 1e3 * stops[0]
            results[f"{what}, median of the others (ms)"] = 1e3 * statistics.median(stops[1:])
            results[f"{what}, everything (s)"] = seconds


def epoch(where: Where, results: Results) -> None:
    """Milliseconds of a step within the real `train_epoch`, on samples that lie on the device, and of the bare step."""
    batches = 3 if where.tiny else 20
    problem = where.problem("mosi")
    for label in ("none", "cggm"):
        for kind in where.kinds:
            step = product(problem, STRATEGIES[label] | {"batch_size": problem.batch}, None, where.device)
            take = step.taking(kind)
            results[f"{label} {kind} bare step"] = milliseconds(where, partial(take, step.batch))
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
            for _ in range(1 if where.tiny else 3):
                start = time.perf_counter()
                train_epoch(training, None, lambda batch, largest, take=take: dict(take(batch)))
                step.state.end_epoch()
                seconds.append((time.perf_counter() - start) / batches)
            results[f"{label} {kind} step of an epoch"] = 1e3 * min(seconds)
