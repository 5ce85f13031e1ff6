"""The number of steps of a run, its epochs, and the order of the samples in them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from cggm_ray.core.errors import UsageError
from cggm_ray.data.loading.sampler import epoch_order
from cggm_ray.engine.budget import batch_size_for, budget_of
from cggm_ray.engine.settings import TrainConfig


def test_passes_alone_are_epochs_as_before() -> None:
    budget = budget_of(TrainConfig(num_epochs=3, batch_size=4), samples=10)
    assert (budget.steps, budget.epochs, budget.total) == (3, 3, 9)
    for epoch in range(3):
        assert torch.equal(budget.order(7, epoch, 3 * epoch)[:], epoch_order(10, 7, epoch))


def test_a_small_set_is_passed_over_until_the_steps_are_done() -> None:
    settings = TrainConfig(num_epochs=2, batch_size=8, min_steps=100, valid_interval=20)
    budget = budget_of(settings, samples=30)
    assert budget.total == 100
    assert budget.steps >= 20
    orders = [budget.order(1, epoch, epoch * budget.steps)[:] for epoch in range(budget.epochs)]
    steps = sum(-(-len(order) // 8) for order in orders)
    assert steps == 100
    # Every pass holds every sample once, and no two passes have the same order.
    passes = orders[0].split(30)
    assert all(torch.equal(order.sort().values, torch.arange(30)) for order in passes)
    assert len({tuple(order.tolist()) for order in passes}) == len(passes)
    assert not torch.equal(orders[0][:30], orders[1][:30])


def test_the_last_epoch_ends_with_the_steps() -> None:
    budget = budget_of(TrainConfig(num_epochs=50, batch_size=4, max_steps=7), samples=10)
    assert [len(budget.order(0, epoch, 3 * epoch)) for epoch in range(budget.epochs)] == [10, 10, 4]


def test_a_long_pass_is_validated_after_each_pass() -> None:
    budget = budget_of(TrainConfig(num_epochs=2, batch_size=4, valid_interval=5), samples=100)
    assert (budget.passes, budget.steps, budget.epochs) == (1, 25, 2)


@pytest.mark.parametrize(("samples", "size"), [(30, 32), (319, 32), (320, 64), (4000, 64), (5000, 128), (10**6, 256)])
def test_the_batch_grows_with_the_set(samples: int, size: int) -> None:
    assert batch_size_for(samples, 1) == size


def test_a_batch_has_a_sample_for_every_worker() -> None:
    assert batch_size_for(100, 40) == 40
    with pytest.raises(UsageError, match="workers: found 31 for 30 training samples"):
        batch_size_for(30, 31)


def test_a_number_of_epochs_takes_the_place_of_steps() -> None:
    settings = TrainConfig(min_steps=1500, max_steps=2000, valid_interval=50).of_epochs(4)
    assert budget_of(settings, samples=640).total == 40
    assert settings == dataclasses.replace(TrainConfig(), num_epochs=4)


def test_fewest_and_most_steps_must_fit() -> None:
    with pytest.raises(UsageError, match="min_steps: found 10, more than max_steps 5"):
        TrainConfig(min_steps=10, max_steps=5)
