"""Sample-level valuation: copies, the plan of an epoch, and what a copy shows the fusion."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from strategy_cases import linear_inputs, linear_net, lines
from strategy_runs import assert_resumes, assert_workers_follow_one

from cggm_ray import Classification
from cggm_ray.core.batch import Batch
from cggm_ray.strategies.valuation import KEPT, Valuation, copies

NAN = float("nan")


def valuation(modalities: int = 2, **more: object) -> Valuation:
    net = linear_net(modalities)
    return Valuation(list(net.encoders), net.fuse, task=Classification(3), **more)  # type: ignore[arg-type]


def test_values_are_shapley_values_of_right_predictions() -> None:
    net = linear_net(3)
    inputs, target = linear_inputs(net, samples=12)
    balance = valuation(3)
    batch = Batch(inputs=inputs, target=target, index=torch.arange(12), present={"b": torch.arange(12) > 2})
    values = balance.measure(net.encode(batch), batch)
    with torch.no_grad():
        features = net.encode(batch)
        right = {}
        for kept in ("a", "b", "c", "ab", "ac", "bc", "abc"):
            shown = {name: part if name in kept else torch.zeros_like(part) for name, part in features.items()}
            right[kept] = len(kept) * (net.fuse(shown).logits.argmax(1) == target).double()
    want = right["a"] / 3 + (right["ab"] - right["b"] + right["ac"] - right["c"]) / 6 + (right["abc"] - right["bc"]) / 3
    torch.testing.assert_close(values[:, 0], want)
    assert values[:3, 1].isnan().all()
    assert not values[3:].isnan().any()


def test_a_plan_has_all_samples_and_their_copies() -> None:
    balance = valuation(warmup=0)
    order = torch.arange(4)
    assert torch.equal(balance.plan(order, epoch=0, seed=1, batch_size=2).order, order)
    values = torch.tensor([[1.0, 0.5], [0.0, 1.5], [-0.5, NAN], [1.0, 1.0]]).double()
    assert copies(values).tolist() == [[0, 1], [2, 0], [3, 0], [0, 0]]
    balance.begin_epoch(0, {"train": values})
    long = torch.arange(10)
    plan = balance.plan(long, epoch=3, seed=1, batch_size=2)
    rows = sorted(zip(plan.order.tolist(), map(tuple, plan.given[KEPT].tolist()), strict=True))
    both, first, second = (True, True), (True, False), (False, True)
    assert rows == sorted(
        [(0, both), (1, both), (2, both), (3, both), (0, second), *[(1, first)] * 2, *[(2, first)] * 3]
    )
    again = balance.plan(long, epoch=3, seed=1, batch_size=2)
    assert torch.equal(plan.order, again.order)
    assert not torch.equal(plan.order, balance.plan(long, epoch=4, seed=1, batch_size=2).order)
    # A shorter epoch is a part of the list, and a longer one begins it anew.
    assert len(balance.plan(order, epoch=0, seed=1, batch_size=2).order) == 4
    assert len(balance.plan(torch.arange(25), epoch=0, seed=1, batch_size=2).order) == 25


def test_the_level_of_modalities() -> None:
    balance = valuation(level="modality", part=1.0)
    values = torch.tensor([1.5, 0.0]).double().expand(600, 2).clone()
    balance.begin_epoch(5, {"train": values})
    plan = balance.plan(torch.arange(1200), epoch=5, seed=1, batch_size=2)
    alone = plan.given[KEPT].sum(1) == 1
    # The gaps are -.5 and 1, so the whole number of samples is drawn again, all with the second modality alone.
    assert int(alone.sum()) == 600
    assert plan.given[KEPT][alone].tolist() == [[False, True]] * 600


def test_a_copy_shows_the_fusion_one_modality() -> None:
    net, balance = linear_net(), valuation()
    inputs, target = linear_inputs(net, samples=2)
    kept = torch.tensor([[True, False], [True, True]])
    batch = Batch(inputs=inputs, target=target, index=torch.arange(2), given={KEPT: kept})
    features = net.encode(batch)
    changed, _ = balance.transform(features, batch)
    assert torch.equal(changed["a"], features["a"])
    assert changed["b"][0].tolist() == [0] * 4
    assert torch.equal(changed["b"][1], features["b"][1])
    balance.eval()
    assert balance.transform(features, batch)[0] is features


@pytest.mark.slow
def test_two_workers_follow_one(tmp_path: Path) -> None:
    one = assert_workers_follow_one(tmp_path, {"modulation": "valuation"})
    assert float(one["parameters"]["strategy.value_M"].abs().max()) > 0


@pytest.mark.parametrize("level", [pytest.param("modality", marks=pytest.mark.slow), "sample"])
def test_resume(tmp_path: Path, level: str) -> None:
    whole = assert_resumes(tmp_path, "--modulation", "valuation", "--valuation_warmup", "1", "--valuation_level", level)
    assert any(line["value/words"] for line in lines(whole))
