"""Modality-specific learning rates: every encoder moves at its own, and schedules and resumes keep them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from strategy_runs import assert_resumes, assert_workers_follow_one, last, lines, pipeline
from torch import nn

from cggm_ray import Classification, Regression
from cggm_ray.core.errors import UsageError
from cggm_ray.engine.budget import budget_of
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.optim import build_schedule, model_optimizer, retune
from cggm_ray.strategies.mslr import MSLR, MSLROptions, learning_rates
from cggm_ray.strategies.rates import rescale

RATES = ("--modulation", "mslr", "--mslr_lrs", "words=1e-3,age=4e-3,face=1e-2", "--lr", "2e-3")


def strategy(
    kind: str, window: int = 2, task: Classification | Regression | None = None, compounds: bool = True
) -> MSLR:
    return MSLR(
        {name: nn.Identity() for name in ("a", "b")},
        task=task or Classification(3),
        factors={"a": 0.5, "b": 4.0},
        strategy=kind,
        window=window,
        compounds=compounds,
        optimizer=lambda parameters: torch.optim.SGD([nn.Parameter(torch.zeros(1)), *parameters], lr=1.0),
    )


def encoders() -> tuple[nn.ModuleDict, nn.Module]:
    torch.manual_seed(0)
    return nn.ModuleDict({name: nn.Linear(3, 3) for name in ("a", "b")}), nn.Linear(3, 2)


@pytest.mark.parametrize(("kind", "want"), [("keep", {"a": 0.5, "b": 4.0}), ("smooth", {"a": 0.75, "b": 2.5})])
def test_keep_and_smooth(kind: str, want: dict[str, float]) -> None:
    balance = strategy(kind)
    for _ in range(4):
        balance.end_epoch({}, {"loss": 1.0}, torch.zeros(0, dtype=torch.float64))
    assert balance.rates() == want
    assert not balance.observes
    assert not list(balance.parameters())


def observed(task: Classification | Regression, *performance: float) -> torch.Tensor:
    losses = [1.0, 10.0] * len(performance)
    return torch.tensor(losses + [part for p in performance for part in (10 * p, 10)], dtype=torch.float64)


def test_dynamic_against_the_formula() -> None:
    balance = strategy("dynamic", window=3)
    history = {"a": [0.2, 0.4, 0.9, 0.8, 0.5, 0.2], "b": [0.5, 0.5, 0.5, 0.1, 0.0, 0.3]}
    want = {"a": 0.5, "b": 4.0}
    for epoch in range(6):
        balance.end_epoch({}, {"loss": 1.0}, observed(balance.task, history["a"][epoch], history["b"][epoch]))
        if epoch in (2, 5):
            for name, values in history.items():
                recent = values[epoch - 2 : epoch + 1]
                want[name] *= recent[-1] / (sum(recent) / 3)
        assert balance.rates() == pytest.approx(want)
    # What improved in the first window became faster.
    assert want["b"] == pytest.approx(4.0 * 0.3 / (0.4 / 3))


def test_the_rule_from_the_initial_rate() -> None:
    balance = strategy("dynamic", compounds=False)
    a, b = [0.5, 0.7, 0.9, 0.8], [0.4, 0.4, 0.2, 0.3]
    for epoch in range(4):
        balance.end_epoch({}, {"loss": 1.0}, observed(balance.task, a[epoch], b[epoch]))
        want = {"a": 0.5, "b": 4.0}
        if epoch >= 2:
            want["a"] *= a[epoch] / ((a[epoch - 1] + a[epoch - 2]) / 2)
            want["b"] *= b[epoch] / ((b[epoch - 1] + b[epoch - 2]) / 2)
        assert balance.rates() == pytest.approx(want)


def test_dynamic_with_errors_of_which_less_is_better() -> None:
    balance = strategy("dynamic", task=Regression())
    for a, b in ((-0.9, -0.3), (-0.3, -0.9)):
        balance.end_epoch({}, {"loss": 1.0}, observed(balance.task, a, b))
    assert balance.rates() == pytest.approx({"a": 0.5 * 0.6 / 0.3, "b": 4.0 * 0.6 / 0.9})


def test_a_modality_that_validation_lacks_keeps_its_rate() -> None:
    balance = strategy("dynamic", window=1)
    sums = observed(balance.task, 0.5, 0.5)
    sums[-2:] = 0
    balance.end_epoch({}, {"loss": 1.0}, sums)
    assert balance.rates() == {"a": 0.5, "b": 4.0}


def test_encoders_move_at_their_rates() -> None:
    parts, head = encoders()
    config = Config().replace({"optim": "SGD", "lr": 0.1}).optim
    parameters = [*parts.parameters(), *head.parameters()]
    optimizer = model_optimizer(config, parameters, dict(parts.items()), {"a": 0.5, "b": 4.0})
    before = [parameter.detach().clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = [float((old - new.detach()).mean()) for old, new in zip(before, parameters, strict=True)]
    assert moved == pytest.approx([0.05, 0.05, 0.4, 0.4, 0.1, 0.1])


def test_others_have_one_group() -> None:
    parts, head = encoders()
    for rates in (None, {}):
        optimizer = model_optimizer(
            Config().optim, [*parts.parameters(), *head.parameters()], dict(parts.items()), rates
        )
        (group,) = optimizer.param_groups
        assert len(group["params"]) == 6
        assert not {"modality", "factor"} & group.keys()


def test_schedules_and_retuning_keep_the_ratios() -> None:
    parts, head = encoders()
    config = Config().replace({"lr": 0.1, "when": 0, "num_epochs": 4, "final_lr": 0.01})
    parameters = [*parts.parameters(), *head.parameters()]
    optimizer = model_optimizer(config.optim, parameters, dict(parts.items()), {"a": 0.5, "b": 4.0})

    def assert_rates(lr: float, a: float, b: float) -> None:
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([lr, lr * a, lr * b])

    plateau = build_schedule(config.optim, budget_of(config.train, 5 * config.train.batch_size), optimizer)
    plateau.after_epoch(1.0)
    assert_rates(0.1, 0.5, 4.0)
    plateau.after_epoch(2.0)
    assert_rates(0.01, 0.5, 4.0)
    rescale(optimizer, {"a": 1.5, "b": 4.0})
    assert_rates(0.01, 1.5, 4.0)
    retune(optimizer, 0.1, 0.2, 0.3)
    assert_rates(0.02, 1.5, 4.0)
    cosine = config.replace({"schedule": "cosine"}).optim
    build_schedule(cosine, budget_of(config.train, 5 * config.train.batch_size), optimizer).before_step(0)
    assert_rates(0.1, 1.5, 4.0)


@pytest.mark.parametrize("kind", [pytest.param("keep", marks=pytest.mark.slow), "dynamic"])
def test_workers_follow_one(tmp_path: Path, kind: str) -> None:
    lrs = ["text=0.01", "audio=0.05", "vision=0.1"]
    changes = {"modulation": "mslr", "mslr_strategy": kind, "mslr_lrs": lrs, "mslr_window": 2}
    rates = assert_workers_follow_one(tmp_path, changes)["rates"]
    if kind == "keep":
        assert rates == pytest.approx({"text": 0.2, "audio": 1.0, "vision": 2.0})
    else:
        assert rates != pytest.approx({"text": 0.2, "audio": 1.0, "vision": 2.0})


@pytest.mark.parametrize("kind", ["keep", "smooth", "dynamic"])
def test_resume(tmp_path: Path, kind: str) -> None:
    run = assert_resumes(tmp_path, *RATES, "--mslr_strategy", kind, "--mslr_window", "1", "--when", "0")
    optimizer = json.loads((last(run) / "training.json").read_text())["optimizer"]
    groups = [(group.get("modality"), group.get("factor")) for group in optimizer["param_groups"]]
    assert groups[0] == (None, None)
    assert {name for name, _ in groups[1:]} == {"words", "age", "face"}
    if kind != "dynamic":
        at = {"keep": {"words": 0.5, "age": 2.0, "face": 5.0}, "smooth": {"words": 0.75, "age": 1.5, "face": 3.0}}
        assert dict(groups[1:]) == pytest.approx(at[kind])
    assert {f"rate/{name}" for name in ("words", "age", "face")} <= lines(run)[-1].keys()


def test_bf16_and_regression(tmp_path: Path) -> None:
    flags = ("--task", "regression", "--target", "mark", "--precision", "bf16")
    run = pipeline(tmp_path, "run", "--modulation", "mslr", "--mslr_strategy", "dynamic", *flags, "--mslr_window", "1")
    assert all(line["train/loss"] is not None for line in lines(run))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "mslr_lrs: the strategy 'keep' needs the learning rate of every modality"),
        (("a=1", "c=2"), "mslr_lrs: no modality 'c'"),
        (("a=1",), "mslr_lrs: found none for b"),
        (("a=1", "b=-1"), "mslr_lrs: found '-1' for b; expected a positive number"),
        (("1", "many"), "mslr_lrs: found 'many' for b"),
    ],
)
def test_rates_that_cannot_be(given: tuple[str, ...] | None, message: str) -> None:
    with pytest.raises(UsageError) as error:
        learning_rates(MSLROptions(mslr_lrs=given), ["a", "b"], 0.1)
    assert message in str(error.value)


def test_rates_in_the_order_of_the_modalities() -> None:
    assert learning_rates(MSLROptions(mslr_lrs=("0.1", "0.2")), ["a", "b"], 1.0) == {"a": 0.1, "b": 0.2}
