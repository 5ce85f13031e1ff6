"""A step as one graph of torch.compile has the gradients of an eager one, and is traced once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from strategy_cases import SIZE, WIDTHS, Prepare, assert_same, drawn_teachers, steps
from torch import Tensor

from cggm_ray.__main__ import main
from cggm_ray.engine.opening import against_one_graph
from cggm_ray.engine.runtime import LocalRuntime, RunConfig
from cggm_ray.engine.step import TrainingStep
from cggm_ray.strategies.base import Strategy
from cggm_ray.strategies.registry import STRATEGIES
from cggm_ray.tasks import Classification

ONE_BY_ONE = ["pmr"]
"""Strategies whose steps are not compiled as one graph."""
WHOLE = [name for name in STRATEGIES.names() if name not in (*ONE_BY_ONE, "cggm")]
BACKENDS = {"aot_eager": {"rtol": 1e-10}, "aot_eager_decomp_partition": {"rtol": 1e-8, "keys": False}}
"""How torch parts a graph into forward and backward pass, as written or as its compiler does; how the numbers are compared."""
ALL = [
    pytest.param(name, backend, marks=[] if (name, backend) == ("cggm", "aot_eager") else pytest.mark.slow)
    for name in ("cggm", *WHOLE)
    for backend in BACKENDS
]


def _runs(label: str, folder: Path, prepare: Prepare) -> tuple[dict[str, object], dict[str, object]]:
    """Returns ten steps, the fifth and tenth with a smaller batch, as they are and prepared; some samples lack a modality."""
    runtime = LocalRuntime(folder, RunConfig(no_cuda=True))
    extra = {"mslr": lambda: {"mslr_strategy": "dynamic"}, "umt": lambda: drawn_teachers(folder)}
    values = {"modulation": label, **extra.get(label, dict)()}
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return steps("classification", values, runtime, 10), steps("classification", values, runtime, 10, prepare)


@pytest.mark.parametrize(("label", "backend"), ALL)
def test_one_graph_gives_the_numbers_of_eager_steps_and_is_traced_once(
    label: str, backend: str, tmp_path: Path
) -> None:
    said: list[str] = []
    # Turns are a graph each.
    turns = len(WIDTHS) if label == "mla" else 1
    with torch._dynamo.config.patch(error_on_recompile=turns == 1):
        eager, compiled = _runs(
            label, tmp_path, lambda step: step.compile_whole(SIZE["batch_size"], said.append, backend=backend)
        )
    assert said == []
    assert_same(eager, compiled, **BACKENDS[backend])  # type: ignore[arg-type]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == turns


def test_what_is_no_single_graph_runs_eagerly_and_says_so(tmp_path: Path) -> None:
    said: list[str] = []

    def prepare(step: TrainingStep) -> None:
        combine = step.strategy.combine

        def with_a_break(*given: Any) -> Tensor:
            torch._dynamo.graph_break()
            return combine(*given)

        step.strategy.combine = with_a_break  # type: ignore[method-assign]
        step.compile_whole(SIZE["batch_size"], said.append, backend="aot_eager")

    eager, compiled = _runs("cggm", tmp_path, prepare)
    assert len(said) == 1
    assert said[0].startswith("compile: the step runs eagerly, because it cannot be one graph: ")
    assert_same(eager, compiled, rtol=0)


@pytest.mark.parametrize(
    ("workers", "parts", "reason"),
    [(1, 1, None), (2, 1, "over the workers"), (1, 3, "taken in 3 parts")],
)
def test_workers_and_parts_are_no_single_graph(workers: int, parts: int, reason: str | None) -> None:
    found = against_one_graph(Strategy(task=Classification(2)), workers, parts)
    assert found is None if reason is None else reason in str(found)


@pytest.mark.slow
@pytest.mark.parametrize("label", ONE_BY_ONE)
def test_a_strategy_that_cannot_be_one_graph_says_so_before_training(
    label: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, rng = tmp_path / "set.npz", np.random.default_rng(0)
    np.savez(file, a=rng.normal(size=(60, 3)), b=rng.normal(size=(60, 4)), label=np.arange(60) % 2)
    run = ["--data_path", str(file), "--storage_path", str(tmp_path), "--max_steps", "2", "--modulation", label]
    assert main(["train", "features", "--local", *run, "--compile", "true"]) == 0
    assert (
        "compile: encoders, fusion and guides one by one, because the step cannot be one graph: "
        in capsys.readouterr().out
    )
