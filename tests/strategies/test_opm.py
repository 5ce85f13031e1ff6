"""OPM against its formulas written out, and the seam that gives every sample its draws."""

from __future__ import annotations

import dataclasses
import doctest
from pathlib import Path

import numpy as np
import pytest
import torch
from strategy_cases import linear_inputs, linear_net, softmax
from strategy_runs import assert_resumes
from test_ogm import alone

import cggm_ray.strategies.opm
from cggm_ray import Classification, UsageError
from cggm_ray.core.batch import Batch, EpochPlan
from cggm_ray.data.loading.sampler import slices, with_given
from cggm_ray.engine.phases import planned, rest_of
from cggm_ray.engine.runtime import LocalRuntime, RunConfig
from cggm_ray.strategies.joint import JointTraining
from cggm_ray.strategies.opm import DRAWS, OPM


def opm(modalities: int = 2, **more: float) -> tuple[OPM, dict[str, torch.Tensor], Batch]:
    net = linear_net(modalities)
    inputs, target = linear_inputs(net, samples=9)
    balance = OPM(list(net.encoders), net.fuse, task=Classification(3), **{"warmup": 0, "execute": 1.0, **more})
    order = torch.arange(9)
    given = balance.plan(order, epoch=0, seed=5, batch_size=9).given
    batch = Batch(inputs=inputs, target=target, index=order, given=dict(given))
    return balance, net.encode(inputs), batch


@pytest.mark.parametrize("modalities", [2, 3, 4])
def test_features_are_dropped_by_the_formula(modalities: int) -> None:
    balance, features, batch = opm(modalities)
    net, names = linear_net(modalities), list(features)
    target = batch.target.numpy()
    score = np.array([softmax(alone(net, batch.inputs, n))[np.arange(9), target].mean() for n in names])
    rho = score / ((score.sum() - score) / (modalities - 1))
    q = np.where(rho > 1, 0.5 * (1 + 0.5 * np.tanh(rho - 1)), 0)
    assert q.max() > 0.5
    changed, _ = balance.transform(features, batch)
    assert np.allclose(balance.diagnostics["drop"], q, rtol=1e-12)
    assert batch.given is not None
    kept = batch.given[DRAWS][:, 1:].numpy() >= q
    assert kept.any(1).all()
    assert not kept.all()
    # All features are as wide as the others, so theta is the mean of q.
    for index, name in enumerate(names):
        want = features[name].detach().numpy() * kept[:, index, None] / (1 - q.mean())
        assert np.allclose(changed[name].detach(), want, rtol=1e-12)


def test_a_sample_keeps_one_modality_that_it_has() -> None:
    balance, features, batch = opm()
    q = balance.transform(features, batch) and balance.diagnostics["drop"]
    names = list(features)
    first, second = sorted(names, key=lambda name: float(q[names.index(name)]), reverse=True)
    lacking = dataclasses.replace(batch, present={second: torch.zeros(9, dtype=torch.bool)})
    assert bool((balance.transform(features, lacking)[0][first] != 0).any(1).all())


def test_some_batches_and_the_warm_up_are_left_alone() -> None:
    for more in ({"execute": 0.0}, {"warmup": 1}):
        balance, features, batch = opm(**more)
        changed, _ = balance.transform(features, batch)
        assert all(torch.equal(changed[name], features[name]) for name in features)
    balance.end_epoch({}, {}, torch.zeros(0))
    changed, _ = balance.transform(features, batch)
    assert not all(torch.equal(changed[name], features[name]) for name in features)
    balance.eval()
    assert balance.transform(features, batch)[0] is features


def test_draws_are_those_of_the_sample_for_any_number_of_workers(tmp_path: Path) -> None:
    balance, _, batch = opm()
    plan = planned(balance, torch.randperm(9), 3, 5, 4)
    assert torch.equal(plan.given[DRAWS], balance.plan(plan.order, epoch=3, seed=5, batch_size=4).given[DRAWS])
    # A batch has one draw of its own.
    assert [len(set(part[:, 0].tolist())) for part in plan.given[DRAWS].split(4)] == [1, 1, 1]
    for workers in (1, 2, 3):
        found = {}
        for rank in range(workers):
            for part in slices(plan.order, 4, rank, workers, plan.given):
                assert part.given is not None
                rows = zip(part.index.tolist(), part.given[DRAWS].tolist(), strict=True)
                found |= dict(rows) if part.weight is None else {}
        assert found == dict(zip(plan.order.tolist(), plan.given[DRAWS].tolist(), strict=True))
    part = next(iter(rest_of(plan, 4, 4, LocalRuntime(tmp_path, RunConfig(no_cuda=True)))))
    assert torch.equal(part.index, plan.order[4:8])
    left, right = with_given(batch, dataclasses.replace(part)).split(2)
    assert left.given is not None
    assert right.given is not None
    assert torch.equal(torch.cat([left.given[DRAWS], right.given[DRAWS]]), plan.given[DRAWS][4:8])


def test_a_plan_of_another_length_is_refused() -> None:
    class Short(JointTraining):
        def plan(self, order: torch.Tensor, *, epoch: int, seed: int, batch_size: int) -> EpochPlan:
            return EpochPlan(order, {"x": order[1:]})

    with pytest.raises(UsageError, match=r"Short.plan: found 3 samples in 'x'; expected 4"):
        planned(Short(task=Classification(3)), torch.arange(4), 0, 0, 2)


def test_resume(tmp_path: Path) -> None:
    assert_resumes(tmp_path, "--modulation", "opm", "--opm_warmup", "0")


def test_the_example() -> None:
    assert doctest.testmod(cggm_ray.strategies.opm).failed == 0
