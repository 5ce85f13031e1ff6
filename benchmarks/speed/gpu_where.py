"""What the parts of `gpu.py` share."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from problems import PROBLEMS, Problem

from cggm_ray.models.resnet import ResNetConfig
from cggm_ray.strategies.registry import STRATEGIES as STRATEGY_TYPES

Results = dict[str, Any]
ROOT = Path(__file__).parents[2]
PEAK_BF16 = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "4090": 165e12}
"""Dense bf16 operations per second by a part of the card's name, from the makers' data sheets."""
NO_DROPOUT = {f"{kind}_dropout": 0.0 for kind in ("attn", "relu", "embed", "res", "out")}
EXTRA = {"mslr": {"mslr_strategy": "dynamic"}}
"""Settings without which a strategy does not start."""
BRATS_SMALL: dict[str, Any] = {
    "shapes": dict.fromkeys(PROBLEMS["brats"].shapes, (1, 64, 64)),
    "backbone": ResNetConfig(blocks=(1, 1, 1, 1), bottleneck=False, width=8),
    "batch": 4,
}
DRAWS = ("modality-dropout", "ogm-ge")
"""Strategies that draw random numbers, which are others on another device."""
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

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of steps that the device can take."""
        return ("eager", "graph") if self.device == "cuda" else ("eager",)

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
                backbone=BRATS_SMALL["backbone"] if images else None,
            )
        return dataclasses.replace(problem, **changes)

    def synchronise(self) -> None:
        """Waits for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def milliseconds(where: Where, step: Callable[[], Any], rounds: int = 5) -> float:
    """Returns the median milliseconds of a step over rounds of five, after a warm-up."""
    rounds, each = (1, 1) if where.tiny else (rounds, 5)
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
