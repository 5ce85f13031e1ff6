"""The loops of docs/loops: each trains the same network to the same numbers as the plain one, with every strategy."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from programs import ROOT, python
from torch import nn

import cggm_ray
from cggm_ray import UsageError
from cggm_ray.strategies.base import Strategy

LOOPS = ROOT / "docs" / "loops"
sys.path.append(str(LOOPS))
small_model, plain_loop = (importlib.import_module(name) for name in ("small_model", "plain_loop"))
NAMES = list(small_model.STRATEGIES)
HALF = torch.float16
SCALE = 1024.0
HALVES = [pytest.param(False, id="float32", marks=pytest.mark.slow), pytest.param(True, id="amp and scaler")]


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps its settings for the whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@cache
def plain(name: str, half: torch.dtype | None) -> dict[str, torch.Tensor]:
    return numbers(*plain_loop.train(name, half, SCALE))


def numbers(net: nn.Module, balance: Strategy) -> dict[str, torch.Tensor]:
    """All that the training moves: parameters and buffers of the network and of the strategy."""
    found = {**net.state_dict(), **{f"balance.{k}": v for k, v in balance.state_dict().items()}}
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}


def accelerate(name: str, half: torch.dtype | None) -> Any:
    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if half else "no")
    if half:
        # On a CPU accelerate makes no scaler of its own; a GPU with fp16 takes this path.
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    return module("accelerate_loop").train(name, accelerator)


def hf_trainer(name: str, half: torch.dtype | None) -> Any:
    trainer, net, balance = module("hf_trainer").trainer(name, bf16=half is not None, disable_tqdm=True)
    if half:
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    trainer.train()
    return net, balance


def lightning(name: str, half: torch.dtype | None, which: str) -> Any:
    from lightning.pytorch.plugins import MixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    plugins = [MixedPrecision("16-mixed", "cpu", scaler)] if half else []
    return module(f"lightning_{which}").train(name, plugins=plugins)


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


OTHERS = {
    "accelerate": (accelerate, torch.bfloat16),
    "hf_trainer": (hf_trainer, torch.bfloat16),
    "lightning_automatic": (lambda name, half: lightning(name, half, "automatic"), HALF),
    "lightning_manual": (lambda name, half: lightning(name, half, "manual"), HALF),
}


@pytest.mark.parametrize(
    "half", [pytest.param(False, id="float32", marks=pytest.mark.slow), pytest.param(True, id="amp and scaler")]
)
@pytest.mark.parametrize("loop", OTHERS)
@pytest.mark.parametrize("name", NAMES)
def test_the_same_numbers_as_the_plain_loop(name: str, loop: str, half: bool) -> None:
    train, precision = OTHERS[loop]
    wanted = plain(name, precision if half else None)
    found = numbers(*train(name, precision if half else None))
    assert wanted.keys() == found.keys()
    # Lightning keeps no half copy of a weight, so gradients of a layer that is used twice add up in another precision.
    rtol, atol = (1e-2, 1e-3) if half and name == "cml" else (1e-6, 1e-7)
    for key, tensor in wanted.items():
        torch.testing.assert_close(
            found[key], tensor, rtol=rtol, atol=atol, equal_nan=True, msg=lambda m, k=key: f"{k}: {m}"
        )


def test_every_strategy_is_there_and_each_does_something_of_its_own() -> None:
    made = {type(small_model.make(name)[1]) for name in NAMES}
    exported = {getattr(cggm_ray, name) for name in cggm_ray.__all__ if name not in cggm_ray._API}
    strategies = {one for one in exported if isinstance(one, type) and issubclass(one, Strategy)} - {Strategy}
    # Several turns need a loop in which a batch has several steps, and a phase needs what is measured before an epoch.
    able = {one for one in strategies if one.turns == 1 and one.begin_epoch is Strategy.begin_epoch}
    assert made == able | {cggm_ray.PMR}, "add it to docs/loops/small_model.py"
    ends = {name: plain(name, None)["encoders.sound.0.weight"] for name in NAMES}
    for name, end in ends.items():
        assert not [other for other in NAMES if other != name and torch.equal(ends[other], end)], name


def test_the_loss_of_validation_falls(capsys: pytest.CaptureFixture[str]) -> None:
    plain_loop.train()
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == small_model.EPOCHS
    assert losses[-1] < losses[0]


def one_step(name: str, *, groups: bool = True) -> None:
    """A step of a loop that never calls adjust with its optimizer."""
    net, balance = small_model.make(name)
    optimizer = torch.optim.Adam(
        balance.groups(net.parameters(), net.encoders, 0.1) if groups else net.parameters(), 0.1
    )
    ((inputs, labels),) = small_model.batches(small_model.TRAIN[:4])
    head = net.fuse(balance.modulate(net.encode(inputs), labels))
    sum(balance.losses(head, labels)).backward()
    balance.adjust(*([] if groups else [optimizer]))
    optimizer.step()
    balance.step()


@pytest.mark.parametrize("name", ["mslr", "cggm-update"])
def test_learning_rates_that_the_optimizer_does_not_get(name: str) -> None:
    with pytest.warns(UserWarning, match=r"does not get the learning rates .* balance\.groups"):
        one_step(name)
    with pytest.raises(UsageError, match="no parameter group for the encoders of picture, sound; expected"):
        one_step(name, groups=False)


@pytest.mark.parametrize("name", ["cggm", "none"])
def test_several_workers_without_a_reduce(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    balance = small_model.make(name)[1]
    with warnings.catch_warnings(record=True) as found, monkeypatch.context() as patch:
        warnings.simplefilter("always")
        patch.setattr(torch.distributed, "is_initialized", lambda: True)
        patch.setattr(torch.distributed, "get_world_size", lambda: 2)
        balance.step()
    said = [
        str(each.message) for each in found if "there are 2 workers and the strategy has no reduce" in str(each.message)
    ]
    assert len(said) == (name == "cggm")


def test_a_strategy_with_phases() -> None:
    net, _ = small_model.make("none")
    balance = cggm_ray.ReLearning(net.encoders, task=cggm_ray.Classification(3))
    with pytest.warns(UserWarning, match="ReLearning: it measures .* call balance.begin_epoch"):
        balance.step()


def test_a_schedule_that_computes_the_rate_anew() -> None:
    """The scheduler of transformers sets every rate from that of the start; the ratio of the encoders stays all the same."""
    net, balance = small_model.make("mslr")
    optimizer = torch.optim.SGD(balance.groups(net.parameters(), net.encoders, 0.1), 0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    balance.factor_M.copy_(torch.tensor([3.0, 4.0]))
    for step in range(3):
        balance.adjust(optimizer)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([0.1 * 0.5**step * factor for factor in (1, 3, 4)])
        optimizer.step()
        schedule.step()


def test_an_epoch_needs_samples() -> None:
    net, balance = small_model.make("cggm")
    with pytest.raises(UsageError, match="batches: found none"):
        balance.finish_epoch(net, [])


@pytest.mark.slow
@pytest.mark.ray
def test_two_ray_workers_give_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are modulated before the all-reduce, by coefficients of the global batch."""
    import ray
    import ray.train.torch

    own = module("ray_torch_trainer")
    cases = [*((name, None) for name in NAMES if name not in ("modality-dropout", "opm")), ("cggm", HALF)]

    def loop(config: dict[str, Any]) -> None:
        for number, (name, half) in enumerate(cases):
            own.loop({"name": name, "half": half, "out": tmp_path / f"{number}.pt"})

    paths = {"PYTHONPATH": ":".join(map(str, (ROOT, LOOPS))), "OMP_NUM_THREADS": "1"}
    # The dashboard stays on, because Ray Train asks it which runs are alive.
    ray.init(num_cpus=2, runtime_env={"env_vars": paths})
    try:
        ray.train.torch.TorchTrainer(
            loop,
            scaling_config=ray.train.ScalingConfig(num_workers=2),
            run_config=ray.train.RunConfig(storage_path=str(tmp_path / "ray")),
        ).fit()
    finally:
        ray.shutdown()
    for number, (name, half) in enumerate(cases):
        wanted = plain(name, half)
        for key, tensor in torch.load(tmp_path / f"{number}.pt").items():
            off = 1e-5 if half is None else 1e-2
            torch.testing.assert_close(
                tensor, wanted[key], rtol=off, atol=off, msg=lambda m, k=key, n=name: f"{n}, {k}: {m}"
            )


@pytest.mark.slow
@pytest.mark.parametrize(
    "program", ["plain_loop", "accelerate_loop", "hf_trainer", "lightning_automatic", "lightning_manual"]
)
def test_as_a_program(program: str, tmp_path: Path) -> None:
    for file in LOOPS.glob("*.py"):
        (tmp_path / file.name).write_text(file.read_text())
    assert "validation loss" in python(tmp_path, f"{program}.py").stdout
