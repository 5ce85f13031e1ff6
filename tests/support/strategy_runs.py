"""Runs by which a strategy is tested: a whole pipeline, resumes, and two processes against one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from feature_sets import arrays, as_npz
from groups import in_group
from strategy_cases import ACTIVE, begin
from test_resume import TIMES, same_state
from torch import Tensor, nn

from cggm_ray.commands.cli import main
from cggm_ray.commands.verify import verify
from cggm_ray.core.batch import Batch
from cggm_ray.data.datasets.features import FeatureOptions
from cggm_ray.data.loading.sampler import epoch_order, slices, with_given
from cggm_ray.data.loading.split import TensorSplit
from cggm_ray.data.settings import DataConfig
from cggm_ray.engine.assembly import new_state
from cggm_ray.engine.checkpoints import Checkpoints
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.graph import TakeStep, Values
from cggm_ray.engine.phases import planned
from cggm_ray.engine.runtime import LocalRuntime, RunConfig
from cggm_ray.engine.state import Position, TrainState
from cggm_ray.engine.step import TrainingStep, train_step
from cggm_ray.engine.tracking import read_metrics
from cggm_ray.models.sequence import sequence_guides, sequence_net
from cggm_ray.strategies.rates import rescale
from cggm_ray.strategies.registry import STRATEGIES
from cggm_ray.tasks import Classification, Regression
from conftest import SMALL

SAMPLES, BATCH, EPOCHS = 22, 5, 4
MODALITIES = {"text": 6, "audio": 4, "vision": 3}
STILL = {f"{name}_dropout": 0 for name in ("attn", "relu", "embed", "res", "out")}
TINY = {"nlevels": 3, "cls_layers": 1, "num_heads": 2, "proj_dim": 8, "batch_size": BATCH}

Record = dict[str, Any]


def with_gaps() -> dict[str, np.ndarray]:
    """The small set of features; every fourth sample lacks its words and the next one its age."""
    found, here = arrays(), np.arange(30) % 4
    return found | {"words_present": here != 0, "age_present": here != 1}


def pipeline(folder: Path, name: str, *flags: str, epochs: int = 3) -> Path:
    """A whole local run of the features pipeline; its folder. 20 samples in batches of 6 are 4 steps an epoch."""
    data = folder / "f.npz"
    if not data.exists():
        as_npz(folder, with_gaps())
    config = Config(data=DataConfig(dataset="features"), options=FeatureOptions(split="part"))
    places = ["--local", "--data_path", str(data), "--storage_path", str(folder), "--name", name]
    sizes = ["--modalities", "words,age,face", "--batch_size", "6", "--num_epochs", str(epochs)]
    assert main(config, [*SMALL, *places, *sizes, *flags]) == 0
    return folder / name


def last(run: Path) -> Path:
    """The last checkpoint of a run."""
    newest = Checkpoints(run).newest()
    assert newest is not None
    return newest


def lines(run: Path) -> list[Record]:
    """The log of a run without its times."""
    return [{key: value for key, value in line.items() if key not in TIMES} for line in read_metrics(run)]


def assert_resumes(folder: Path, *flags: str) -> Path:
    """A run that was stopped between epochs, and one stopped within an epoch, are the run that was not; its folder."""
    whole = pipeline(folder, "whole", *flags)
    pipeline(folder, "parts", *flags, epochs=2)
    parts = pipeline(folder, "parts", *flags)
    often = pipeline(folder, "often", *flags, "--save_every", "11")
    checkpoints = Checkpoints(often)
    assert Position(2, 3) in [position for position, _ in checkpoints.all()]
    shutil.rmtree(checkpoints.folder / Position(3).name)
    pipeline(folder, "often", *flags, "--save_every", "11")
    for other in (parts, often):
        assert same_state(last(whole), last(other)), other.name
        assert lines(whole) == lines(other), other.name
    assert verify(whole).equal
    return whole


def run_steps(
    changes: Mapping[str, Any],
    runtime: LocalRuntime,
    accumulate: int = 1,
    kind: str = "classes",
    how: Callable[[TakeStep, TrainState], TakeStep] = lambda eager, state: eager,
) -> Record:
    """Some epochs in float64, with samples that lack modalities; parameters, logged quantities and rates.

    `how` makes what takes a step of what takes it eagerly.
    """
    torch.manual_seed(11)
    chosen = {**ACTIVE.get(changes["modulation"], {}), **changes, "accumulate": accumulate}
    config = Config().replace({**TINY, **STILL, "optim": "SGD", "lr": 0.05, **chosen})
    outputs = 3 if kind == "classes" else 1
    net, guides = sequence_net(config.model, MODALITIES, outputs), sequence_guides(config.model, MODALITIES, outputs)
    inputs = {name: torch.randn(SAMPLES, 4, width).double() for name, width in MODALITIES.items()}
    task = Classification(3) if kind == "classes" else Regression()
    target = torch.randint(3, (SAMPLES,)) if kind == "classes" else torch.randn(SAMPLES, 1).double()
    has = {name: torch.arange(SAMPLES) % 5 != number for number, name in enumerate(MODALITIES)}
    net = STRATEGIES.get(config.modulation.modulation).network_of(net, guides, config.strategy)
    modules: list[nn.Module] = [net, *guides.values()]
    for module in modules:
        module.double()
    state = new_state(config, net, guides, task, runtime)
    step = runtime.wrap(TrainingStep(net, state.strategy, "fp32"))

    def batch(index: Tensor, weight: Tensor | None) -> Batch:
        return Batch(
            inputs={name: values[index] for name, values in inputs.items()},
            target=target[index],
            index=index,
            weight=weight,
            present={name: rows[index] for name, rows in has.items()},
            masks={name: rows[index][:, None] for name, rows in has.items()},
        )

    def eager(batch: Batch, largest: int | None) -> Values:
        return train_step(
            state, step, batch, runtime, accumulate=config.train.accumulate, clip=config.optim.clip, largest=largest
        )

    take = how(eager, state)
    logged = []
    split = TensorSplit(inputs, target, masks={name: rows[:, None] for name, rows in has.items()})
    for epoch in range(EPOCHS):
        begin(state.strategy, net, split, config, runtime, epoch)
        step.train()
        order, given = planned(state.strategy, epoch_order(SAMPLES, 1, epoch), epoch, 1, BATCH)
        for part in slices(order, BATCH, runtime.rank, runtime.world_size, given):
            values = take(with_given(batch(part.index, part.weight), part), None)
            logged.append({name: value.clone() for name, value in values.items()})
            state.step += 1
        seen, strategy = torch.zeros(0, dtype=torch.float64), state.strategy
        if strategy.observes:
            strategy.eval()
            (part,) = slices(torch.arange(9), 9, runtime.rank, runtime.world_size)
            got = batch(part.index, part.weight)
            with torch.no_grad():
                features = net.encode(got.inputs, got.masks)
                seen = runtime.reduce()(strategy.observe(features, got))
        strategy.end_epoch({}, {"loss": 1.0 / (epoch + 1)}, seen)
        rescale(state.optimizer, strategy.rates())
    found = {**net.state_dict(), **{f"strategy.{k}": v for k, v in state.strategy.state_dict().items()}}
    return {
        "parameters": {name: value.double() for name, value in found.items() if isinstance(value, Tensor)},
        "logged": logged,
        "rates": dict(state.strategy.rates()),
    }


def _worker(rank: int, size: int, folder: str, cases: Sequence[tuple[Mapping[str, Any], int, str]]) -> None:
    runtime = LocalRuntime(Path(folder), RunConfig(no_cuda=True))
    torch.save(
        [run_steps(changes, runtime, parts, kind) for changes, parts, kind in cases], Path(folder) / f"{rank}.pt"
    )
    runtime.close()


def assert_workers_follow_one(
    folder: Path, changes: Mapping[str, Any], *, accumulate: bool = True, kind: str = "classes"
) -> Record:
    """Two processes, and batches in parts, give what one process gives with the whole batch; what that is."""
    one = run_steps(changes, LocalRuntime(folder, RunConfig(no_cuda=True)), kind=kind)
    cases = [(changes, parts, kind) for parts in ((1, 2) if accumulate else (1,))]
    in_group(2, _worker, str(folder), cases)
    for rank in (0, 1):
        for number, got in enumerate(torch.load(folder / f"{rank}.pt")):
            for name, want in one["parameters"].items():
                close = torch.allclose(
                    got["parameters"][name],
                    want,
                    rtol=1e-7,
                    atol=1e-8 * float(want.abs().nan_to_num().max()),
                    equal_nan=True,
                )
                assert close, (rank, number, name, got["parameters"][name], want)
            for mine, other in zip(one["logged"], got["logged"], strict=True):
                for name, value in mine.items():
                    torch.testing.assert_close(other[name], value, rtol=1e-6, atol=1e-8, equal_nan=True)
    return one
