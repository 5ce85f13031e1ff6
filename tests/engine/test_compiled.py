"""A step as one graph of torch.compile has the gradients of an eager one, and is traced once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from strategy_cases import SIZE, assert_same, drawn_teachers, steps

from cggm_ray.engine.runtime import LocalRuntime, RunConfig
from cggm_ray.engine.step import TrainingStep

WHOLE = [
    "none",
    "cggm-paper",
    "cggm-magnitude",
    "cggm-direction",
    "multiloss",
    "ogm",
    "ogm-ge",
    "agm",
    "umt",
    "mslr",
    "ume",
]
"""Strategies that are one graph; a step with masks, because some samples lack a modality."""
EAGER = ["mmpareto"]
"""Strategies that take gradients while the losses are computed, which torch does not trace."""


def _runs(label: str, folder: Path, said: list[str]) -> tuple[dict[str, object], dict[str, object]]:
    """Returns ten steps, the fifth and tenth with a smaller batch, without and with a compiled step."""
    runtime = LocalRuntime(folder, RunConfig(no_cuda=True))
    extra = {"mslr": lambda: {"mslr_strategy": "dynamic"}, "umt": lambda: drawn_teachers(folder)}
    values = {"modulation": label, **extra.get(label, dict)()}

    def prepare(step: TrainingStep) -> None:
        step.compile_whole(SIZE["batch_size"], said.append, backend="aot_eager")

    return steps("classification", values, runtime, 10), steps("classification", values, runtime, 10, prepare)


@pytest.mark.parametrize("label", ["cggm", *(pytest.param(name, marks=pytest.mark.slow) for name in WHOLE)])
def test_one_graph_gives_the_numbers_of_eager_steps_and_is_traced_once(label: str, tmp_path: Path) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    said: list[str] = []
    with torch._dynamo.config.patch(error_on_recompile=True):
        eager, compiled = _runs(label, tmp_path, said)
    assert said == []
    assert_same(eager, compiled, rtol=1e-10)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("label", [pytest.param(name, marks=pytest.mark.slow) for name in EAGER])
def test_what_is_no_single_graph_runs_eagerly_and_says_so(label: str, tmp_path: Path) -> None:
    torch._dynamo.reset()
    said: list[str] = []
    eager, compiled = _runs(label, tmp_path, said)
    assert len(said) == 1
    assert said[0].startswith("compile: the step runs eagerly, because it cannot be one graph: ")
    assert_same(eager, compiled, rtol=0)
