"""Label smoothing and class weights, against torch's own cross-entropy."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cggm_ray.core.batch import Batch
from cggm_ray.tasks import Classification, Regression
from cggm_ray.tasks.base import Targets
from cggm_ray.tasks.settings import BALANCED, LossConfig

N, C = 12, 4


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(N, C, generator=generator, dtype=torch.float64), torch.randint(C, (N,), generator=generator)


def of_classes(counts: torch.Tensor) -> Targets:
    return Targets(counts, torch.zeros(0), torch.zeros(0))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradient_are_those_of_torch(smoothing: float, weighted: bool) -> None:
    logits, target = problem()
    counts = torch.bincount(target, minlength=C).double()
    settings = LossConfig(label_smoothing=smoothing, class_weights=BALANCED if weighted else "equal")
    task = Classification(C).with_loss(settings, of_classes(counts))
    weight = N / (C * counts) if weighted else None
    reference = nn.CrossEntropyLoss(weight=weight, label_smoothing=smoothing)

    logits.requires_grad_()
    (expected,) = torch.autograd.grad(reference(logits, target), logits)
    # In parts, as micro-batches and workers form it.
    parts = zip(logits.split(5), target.split(5), strict=True)
    sums = sum(task.sums(part, Batch.of_loop(t)) for part, t in parts)
    loss = task.combine(sums)
    assert float(loss.detach()) == pytest.approx(float(reference(logits, target).detach()), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.allclose(gradient, expected, rtol=1e-10, atol=1e-14)
    # The closed form that the direction term uses.
    closed = task.residuals(logits, Batch.of_loop(target))[0] * task.sum_slopes(sums)[0]
    assert torch.allclose(closed.detach(), expected, rtol=1e-10, atol=1e-14)


def test_a_class_without_training_samples_has_no_weight() -> None:
    task = Classification(3).with_loss(LossConfig(class_weights=BALANCED), of_classes(torch.tensor([2.0, 6.0, 0.0])))
    assert isinstance(task, Classification)
    assert task.class_weight is not None
    assert task.class_weight.tolist() == pytest.approx([2.0, 2 / 3, 0.0])


def test_a_regression_has_no_such_options() -> None:
    task = Regression()
    assert task.with_loss(LossConfig(label_smoothing=0.5)) is task
