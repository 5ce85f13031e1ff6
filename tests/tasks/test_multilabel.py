"""Several labels of a sample: loss and its slopes against torch, metrics against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from cggm_ray.core.batch import Batch
from cggm_ray.tasks import MultiLabel

N, LABELS = 40, 5


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(N, LABELS, generator=random), (torch.rand(N, LABELS, generator=random) < 0.4).float()


def test_loss_and_residuals_are_those_of_torch() -> None:
    logits, target = drawn()
    logits.requires_grad_()
    task = MultiLabel(LABELS)
    loss = task.loss(logits, target)
    expected = torch.nn.BCEWithLogitsLoss()(logits, target)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    (slope,) = torch.autograd.grad(expected, logits)
    batch = Batch.of_loop(target)
    found = task.residuals(logits, batch)[0] * task.sum_slopes(task.sums(logits, batch))[0]
    torch.testing.assert_close(found.float(), slope)


def test_metrics_are_those_of_scikit_learn_in_any_parts_and_with_weights() -> None:
    logits, target = drawn(1)
    task = MultiLabel(LABELS)
    weight = torch.ones(N)
    weight[-3:] = 0
    state = task.metrics()
    for rows in (slice(0, 17), slice(17, N)):
        state.update(logits[rows], Batch.of_loop(target[rows], weight=weight[rows]))
    found = state.compute(state.sums)
    truth, predicted = target[:-3].numpy() > 0, logits[:-3].numpy() > 0
    assert found["f1_micro"] == pytest.approx(f1_score(truth, predicted, average="micro"))
    assert found["f1_macro"] == pytest.approx(f1_score(truth, predicted, average="macro", zero_division=0))
    assert found["exact_match"] == pytest.approx(accuracy_score(truth, predicted))
    right, count = task.utility("accuracy")(logits[:-3], Batch.of_loop(target[:-3])).tolist()
    assert right / count == pytest.approx(float(np.mean(truth == predicted)))
