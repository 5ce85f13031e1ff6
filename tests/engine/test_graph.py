"""Recorded steps give the bits of eager ones, for every strategy that says that its steps can be recorded.

On the CPU a CUDA graph is imitated (`replay`); `benchmarks/speed/gpu.py` makes the same comparison with real ones.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from replay import record_on_cpu
from strategy_runs import run_steps
from test_guards import run
from torch import Tensor

from cggm_ray.core.batch import Batch
from cggm_ray.engine.graph import DeviceRates, GraphStep, TakeStep, Values, against_graph
from cggm_ray.engine.runtime import LocalRuntime, RunConfig
from cggm_ray.engine.settings import TrainConfig
from cggm_ray.engine.state import TrainState
from cggm_ray.models.registry import NETWORKS, NetworkInfo, NetworkOptions
from cggm_ray.strategies.joint import JointTraining
from cggm_ray.strategies.registry import STRATEGIES
from cggm_ray.tasks import Classification
from conftest import small_set

SETTINGS: dict[str, dict[str, Any]] = {
    "mslr": {"mslr_strategy": "dynamic"},
    "reconboost": {"reconboost_epochs": 1, "reconboost_rectify": 1},
    "gblend": {"gblend_super_epoch": 1},
}
CPU = torch.device("cpu")


@pytest.fixture
def runtime(tmp_path: Path) -> LocalRuntime:
    return LocalRuntime(tmp_path, RunConfig(no_cuda=True))


def rates_of(state: TrainState) -> DeviceRates:
    return DeviceRates([state.optimizer, state.strategy.own_optimizer()], CPU)


def eager_with_rates(eager: TakeStep, state: TrainState) -> TakeStep:
    """Eager steps whose learning rates are tensors, as on a GPU."""
    rates = rates_of(state)

    def take(batch: Batch, largest: int | None) -> Values:
        with rates.applied():
            return eager(batch, largest)

    return take


class Counted:
    """Recorded steps, and how many steps were taken eagerly."""

    def __init__(self) -> None:
        self.eager = 0
        self.recorded = 0
        self.reason: str | None = None

    def __call__(self, eager: TakeStep, state: TrainState) -> TakeStep:
        def counted(batch: Batch, largest: int | None) -> Values:
            self.eager += 1
            return eager(batch, largest)

        def record(function: Any) -> Any:
            self.recorded += 1
            return record_on_cpu(function)

        self.reason = state.strategy.against_graph
        return GraphStep(counted, state, rates_of(state), record)


def one_hot(target: Tensor, classes: int) -> Tensor:
    """torch's own looks at the classes on a CPU, and not on a GPU."""
    return (target[..., None] == torch.arange(classes)).long()


def same(left: Tensor, right: Tensor) -> bool:
    """Whether the bits are equal; two values that are not numbers count as equal."""
    return torch.equal(left.nan_to_num(nan=-1.5), right.nan_to_num(nan=-1.5))


@pytest.mark.parametrize("optimizer", [pytest.param("SGD", marks=pytest.mark.slow), "Adam"])
@pytest.mark.parametrize(
    "name", [name for name in STRATEGIES.names() if STRATEGIES.get(name).serves(Classification(3))]
)
def test_recorded_steps_are_eager_steps(
    name: str, optimizer: str, runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cggm_ray.engine.assembly.WORKING_AHEAD", ("cpu",))
    changes = {"modulation": name, "optim": optimizer, **SETTINGS.get(name, {})}
    monkeypatch.setattr("torch.nn.functional.one_hot", one_hot)
    # Teachers are finished runs; here copies of the encoders take their place.
    monkeypatch.setattr("cggm_ray.engine.assembly.find_teachers", lambda *given: {})
    monkeypatch.setattr(
        "cggm_ray.engine.assembly.load_teachers",
        lambda encoders, found: ({key: copy.deepcopy(encoder) for key, encoder in encoders.items()}, {}),
    )
    counted = Counted()
    torch.manual_seed(5)
    recorded = run_steps(changes, runtime, how=counted)
    if counted.reason is not None:
        pytest.skip(f"{name} is not recorded: {counted.reason}")
    eager = run_steps(changes, runtime, how=eager_with_rates)
    assert counted.recorded > 0
    assert counted.eager < 20
    for key, value in eager["parameters"].items():
        assert same(value, recorded["parameters"][key]), key
    for step, (left, right) in enumerate(zip(eager["logged"], recorded["logged"], strict=True)):
        assert left.keys() == right.keys()
        for key, value in left.items():
            # A quantity that holds on to the graph of its step keeps nodes that the next recording must make anew.
            assert not value.requires_grad, key
            assert same(value, right[key]), (step, key)


class Counting(JointTraining):
    """Joint training with a term that grows with a number of the host."""

    steps = 0

    def combine(self, task_sums: Tensor, own_sums: Tensor, memo: Any) -> Tensor:
        self.steps += 1
        return self.task.combine(task_sums) * self.steps


def test_the_imitation_repeats_no_decision_of_the_host(runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    info = dataclasses.replace(
        STRATEGIES.get("none"), build=lambda given: Counting(task=given.task, reduce=given.reduce)
    )
    monkeypatch.setitem(STRATEGIES._entries, "none", info)
    monkeypatch.setattr("cggm_ray.engine.assembly.WORKING_AHEAD", ("cpu",))
    recorded = run_steps({"modulation": "none"}, runtime, how=Counted())
    eager = run_steps({"modulation": "none"}, runtime, how=eager_with_rates)
    key = "head.weight"
    assert not same(eager["parameters"][key], recorded["parameters"][key])


def against(
    strategy: Any = None, network: str = "sequence", device: str = "cuda", workers: int = 1, **train: Any
) -> Any:
    strategy = JointTraining(task=Classification(3)) if strategy is None else strategy
    options = NETWORKS.get(network).options()
    return against_graph(TrainConfig(**train), network, options, strategy, torch.device(device), workers)


def test_what_cannot_be_recorded_is_said() -> None:
    assert against() is None
    assert against(network="composed") is None
    assert "no GPU" in against(device="cpu")
    assert "workers" in against(workers=2)
    assert "--accumulate" in against(accumulate=2)
    assert "--on_nonfinite skip" in against(on_nonfinite="skip")
    strategy = JointTraining(task=Classification(3))
    strategy.against_graph = "it is like that"
    assert against(strategy) == "it is like that"


def test_a_network_of_a_person_is_recorded_only_if_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    build: Any = None
    monkeypatch.setitem(NETWORKS._entries, "own", NetworkInfo(build=build, options=NetworkOptions))
    assert "does not say" in against(network="own")


def test_a_graph_where_there_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, small_set(), "--step", "graph") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: step: found graph; there is no GPU, so take --step eager"
    )
