"""Modality dropout: how often, what is left, and that nothing is dropped where it must not be."""

from __future__ import annotations

import doctest
import itertools

import pytest
import torch
from torch import Tensor

import cggm_ray.strategies.modality_dropout
from cggm_ray import Classification, UsageError
from cggm_ray.strategies.modality_dropout import ModalityDropout

N = 20000
TARGET = torch.zeros(N, dtype=torch.int64)


def kept(p: float, modalities: int = 3, present: dict[str, Tensor] | None = None) -> Tensor:
    """Bool [M, N] of what is left of features of ones."""
    torch.manual_seed(0)
    features = {name: torch.ones(N, 2) for name in "abcd"[:modalities]}
    left = ModalityDropout(task=Classification(2), p=p).modulate(features, TARGET, present)
    stacked = torch.stack(list(left.values()))
    assert bool(((stacked == 0) | (stacked == 1)).all())
    assert torch.equal(stacked[..., 0], stacked[..., 1])
    return stacked[..., 0] == 1


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("modalities", [2, 3])
def test_every_combination_is_as_frequent_as_it_should_be(p: float, modalities: int) -> None:
    left_MN = kept(p, modalities)
    for pattern in itertools.product([False, True], repeat=modalities):
        share = float((torch.tensor(pattern) == left_MN.T).all(1).double().mean())
        number = sum(pattern)
        want = (1 - p) ** number * p ** (modalities - number) if number else 0.0
        # Where all would go, each is as likely to stay.
        want += p**modalities / modalities if number == 1 else 0.0
        assert share == pytest.approx(want, abs=0.015), pattern
        assert number or share == 0


def test_a_sample_keeps_one_of_those_that_it_has() -> None:
    there = torch.arange(N) % 4 > 0
    left_MN = kept(0.9, 3, {"a": there, "b": ~there})
    assert bool((left_MN[0] <= there).all())
    assert bool((left_MN[1] <= ~there).all())
    assert bool(left_MN.any(0).all())


def test_no_gradient_reaches_what_was_dropped_and_tuples_go_together() -> None:
    torch.manual_seed(0)
    first, second = torch.ones(50, 2, requires_grad=True), torch.ones(50, 3, 4, requires_grad=True)
    other = torch.ones(50, 2)
    balance = ModalityDropout(task=Classification(2), p=0.5)
    left = balance.modulate({"a": (first, second), "b": other}, TARGET[:50])
    assert isinstance(left["a"], tuple)
    sum(part.sum() for part in left["a"]).backward()
    rows = left["a"][0][:, 0] == 1
    assert 0 < int(rows.sum()) < 50
    assert torch.equal(first.grad[:, 0] == 1, rows)
    assert torch.equal(second.grad[:, 0, 0] == 1, rows)


def test_not_in_evaluation() -> None:
    features = {"a": torch.ones(9, 2), "b": torch.ones(9, 2)}
    assert ModalityDropout(task=Classification(2), p=0.9).eval().modulate(features, TARGET[:9]) is features


def test_not_a_probability() -> None:
    with pytest.raises(UsageError, match=r"^p: found 1; expected a probability in \[0, 1\)$"):
        ModalityDropout(task=Classification(2), p=1)


def test_its_example() -> None:
    result = doctest.testmod(cggm_ray.strategies.modality_dropout)
    assert result.attempted > 5
    assert result.failed == 0
