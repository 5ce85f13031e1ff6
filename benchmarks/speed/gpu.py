"""All GPU measurements in one go; needs torch and a CUDA device, and no Ray.

    python benchmarks/speed/gpu.py [--json FILE] [--budget 480]

1. The MOSI step of the package against the plain step of the released code: eager, compiled, compiled in bf16.
2. Host synchronisation: the step runs under `torch.cuda.set_sync_debug_mode("error")`.
3. Steps on the shapes of IEMOCAP and of Food-101.
4. BraTS at 160 x 160, bf16, channels last, with its share of the card's peak; the largest batch of 64, 32, 16, 8 that fits.

Whatever does not fit the time left is named and left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from problems import PROBLEMS, STRATEGIES, naive_step, product_step
from torch.utils.flop_counter import FlopCounterMode

PEAK_BF16 = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "4090": 165e12}
"""Dense bf16 operations per second by a part of the card's name, from the makers' data sheets."""


def milliseconds(step: Callable[[], Any], rounds: int = 20) -> float:
    """Returns the median milliseconds of rounds of five steps, after a warm-up."""
    for _ in range(5):
        step()
    torch.cuda.synchronize()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(5):
            step()
        torch.cuda.synchronize()
        seconds.append((time.perf_counter() - start) / 5)
    return 1e3 * statistics.median(seconds)


def operations(step: Callable[[], Any]) -> int:
    """Returns the floating-point operations of a step, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def mosi(results: dict[str, Any]) -> None:
    """Measures part 1."""
    problem = PROBLEMS["mosi"]
    results["mosi naive ms"] = naive = milliseconds(naive_step(problem, "cuda"))
    variants: dict[str, dict[str, Any]] = {
        "eager": {},
        "bf16": {"precision": "bf16"},
        "compiled": {"compile": True},
        "compiled bf16": {"compile": True, "precision": "bf16"},
    }
    for name, settings in variants.items():
        results[f"mosi {name} ms"] = ms = milliseconds(
            product_step(problem, STRATEGIES["cggm"] | settings, None, "cuda")
        )
        results[f"mosi naive / {name}"] = naive / ms
    joint = milliseconds(product_step(problem, STRATEGIES["none"], None, "cuda"))
    results["mosi eager / joint"] = results["mosi eager ms"] / joint


def synchronisation(results: dict[str, Any]) -> None:
    """Measures part 2."""
    step = product_step(PROBLEMS["mosi"], STRATEGIES["cggm"], None, "cuda")
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
        results["host synchronisation in a step"] = "none"
    except RuntimeError as error:
        results["host synchronisation in a step"] = str(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def other_shapes(results: dict[str, Any]) -> None:
    """Measures part 3."""
    for name in ("iemocap", "food101"):
        for strategy in ("none", "cggm"):
            step = product_step(PROBLEMS[name], STRATEGIES[strategy] | {"precision": "bf16"}, None, "cuda")
            results[f"{name} {strategy} bf16 ms"] = milliseconds(step)
        results[f"{name} naive ms"] = milliseconds(naive_step(PROBLEMS[name], "cuda"), rounds=5)


def brats(results: dict[str, Any]) -> None:
    """Measures part 4."""
    for batch in (64, 32, 16, 8):
        problem = dataclasses.replace(PROBLEMS["brats"], batch=batch, channels_last=True)
        try:
            step = product_step(problem, STRATEGIES["cggm"] | {"precision": "bf16"}, None, "cuda")
            count, ms = operations(step), milliseconds(step, rounds=5)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            continue
        results |= {"brats batch": batch, "brats bf16 ms": ms, "brats operations": count}
        name = torch.cuda.get_device_name()
        peak = next((value for part, value in PEAK_BF16.items() if part in name), None)
        results["brats share of peak"] = None if peak is None else count / ms * 1e3 / peak
        return
    results["brats"] = "no batch of 8 or more fits"


def main() -> None:
    """Runs all parts that the time allows, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=480, help="seconds")
    parser.add_argument("--json", help="file for the results")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("gpu: torch sees no CUDA device")
    results: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    start = time.perf_counter()
    for part in (synchronisation, mosi, brats, other_shapes):
        if time.perf_counter() - start > arguments.budget - 60:
            results[part.__name__] = "left out: no time"
            continue
        part(results)
        print(json.dumps(results), flush=True)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=1)
    for name, value in results.items():
        print(f"{name:<34}{value:>14.3f}" if isinstance(value, float) else f"{name:<34}{value!s:>14}")


if __name__ == "__main__":
    main()
