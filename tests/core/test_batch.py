"""Which samples of a batch count, and functions of own code that take the parts of a batch one by one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cggm_ray import Classification, Regression, Task, UsageError
from cggm_ray.core.batch import Batch, Feature
from cggm_ray.models.net import MultimodalNet
from cggm_ray.tasks.metrics import RegressionMetrics

HAS = {"text": torch.tensor([True, True, False, True]), "audio": torch.tensor([False, True, True, True])}
MASKS = {"text": torch.tensor([[True, True], [True, False]])}


def test_a_sample_counts_if_it_has_a_place_a_label_and_the_modalities() -> None:
    batch = Batch.of_loop(torch.zeros(4, 1))
    assert batch.sample_weights().tolist() == [1, 1, 1, 1]
    assert batch.sample_weights().dtype == torch.float64
    batch = replace(batch, present=HAS, weight=torch.tensor([2.0, 1, 1, 0]))
    assert batch.sample_weights().tolist() == [2, 1, 1, 0]
    assert batch.having("text").sample_weights().tolist() == [2, 1, 0, 0]
    assert batch.having("text", "audio", "vision").sample_weights().tolist() == [0, 1, 0, 0]
    assert batch.having("vision").weight is batch.weight
    labelled = replace(batch, labelled=torch.tensor([False, True, True, True]))
    assert labelled.sample_weights().tolist() == [0, 1, 1, 0]


def test_metrics_and_loss_leave_out_samples_without_a_label() -> None:
    logits, target = (
        torch.tensor([[1.0, 4.0], [2.0, 2.0], [9.0, 9.0]]),
        torch.tensor([[0.0, 1.0], [2.0, 3.0], [0.0, 0.0]]),
    )
    batch = replace(Batch.of_loop(target), labelled=torch.tensor([True, True, False]))
    task, metrics = Regression(2), RegressionMetrics()
    metrics.update(logits, batch)
    assert metrics.compute(metrics.sums)["mae"] == pytest.approx((1 + 3 + 0 + 1) / 4)
    assert float(task.combine(task.sums(logits, batch))) == pytest.approx((1 + 3 + 0 + 1) / 4)


@pytest.mark.parametrize(("samples", "parts"), [(1, 4), (2, 2), (4, 4), (5, 4), (6, 4), (7, 3), (9, 1)])
def test_workers_take_their_shares_in_the_same_number_of_parts(samples: int, parts: int) -> None:
    """The larger share is divided as `Tensor.chunk` divides it; the smaller one has as many parts, the last maybe a filler."""
    target = torch.arange(float(samples))
    larger = Batch.of_loop(target, present={"text": target > 2}).split(parts, samples)
    assert [part.target.tolist() for part in larger] == [part.tolist() for part in target.chunk(parts)]
    assert not any(part.is_filler for part in larger)
    if samples == 1:
        return
    smaller = Batch.of_loop(target[:-1], present={"text": target[:-1] > 2}).split(parts, samples)
    assert len(smaller) == len(larger)
    counted = [row for part in smaller for row in part.target[part.sample_weights() > 0].tolist()]
    assert counted == target[:-1].tolist()
    fillers = [part.is_filler for part in smaller]
    assert not any(fillers[:-1])
    assert fillers[-1] == (len(larger[-1]) == 1)


class Own(MultimodalNet):
    """A network whose class has an `encode` of its own, with the arguments inputs and masks."""

    def encode(self, inputs: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None) -> dict[str, Feature]:  # type: ignore[override]
        doubled = {name: 2 * values for name, values in inputs.items()}
        return super().encode(doubled, masks)


class Sum(nn.Module):
    def forward(self, features: dict[str, Tensor], masks: object = None) -> Tensor:
        return features["text"].sum(1)


class Same(nn.Module):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x


@pytest.mark.parametrize("masks", [None, MASKS])
def test_a_network_whose_encode_takes_inputs_and_masks_runs(masks: dict[str, Tensor] | None) -> None:
    net = Own({"text": Same()}, Sum(), nn.Identity())
    inputs = {"text": torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])}
    batch = Batch.of_loop(torch.zeros(2), inputs=inputs, masks=masks)
    want = [[6.0], [14.0 if masks is None else 6.0]]
    for one in (net, copy.deepcopy(net)):
        assert one.fuse(one.encode(batch), masks).logits.tolist() == want
        assert one.encode(inputs, masks)["text"].tolist() == one.encode(batch)["text"].tolist()
        assert one(inputs, masks).tolist() == want


def test_a_task_that_takes_targets_and_weights_is_refused_in_one_line() -> None:
    with pytest.raises(
        UsageError, match=r"^Focal\.sums: found the arguments \(self, logits, target, weight\); expected lo"
    ):

        class Focal(Classification):
            def sums(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:  # type: ignore[override]
                return torch.zeros(2)

    class Margin(Classification):
        utilities = {"margin": lambda logits, target, weight: logits.sum()}

    task: Task = Margin(3)
    with pytest.raises(UsageError, match=r"^Margin\.margin: found the arguments \(logits, target, weight\)"):
        task.utility("margin")
