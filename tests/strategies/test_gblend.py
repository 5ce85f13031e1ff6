"""G-Blending: weights against the formula, the blend of losses, and what overfits losing its weight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from strategy_runs import assert_resumes, assert_workers_follow_one, lines, pipeline
from torch import Tensor, nn

from cggm_ray import Classification, HeadOutput
from cggm_ray.strategies.gblend import GBlending, blend


class Guide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, feature: Tensor, mask: Tensor | None = None) -> HeadOutput:
        return HeadOutput(self.head(feature), feature)


def strategy(super_epoch: int = 1, floor: float = 0.0) -> GBlending:
    torch.manual_seed(0)
    guides = {name: Guide().double() for name in ("a", "b")}
    make = torch.optim.SGD
    return GBlending(
        guides,
        task=Classification(3),
        super_epoch=super_epoch,
        floor=floor,
        optimizer=lambda parameters: make(parameters, lr=0.1),
    ).double()


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_weights_against_the_formula() -> None:
    rng = np.random.default_rng(0)
    train_before, valid_before = rng.uniform(1, 2, 3), rng.uniform(1, 2, 3)
    train_now, valid_now = train_before - rng.uniform(0.3, 0.9, 3), valid_before - rng.uniform(0.1, 0.3, 3)
    parts = []
    for k in range(3):
        gap_before, gap_now = valid_before[k] - train_before[k], valid_now[k] - train_now[k]
        gain = valid_before[k] - valid_now[k]
        parts.append(gain / (gap_now - gap_before) ** 2)
    want = np.array(parts) / sum(parts)
    tensors = [torch.from_numpy(values) for values in (train_before, train_now, valid_before, valid_now)]
    got = blend(*tensors, floor=0.0, before=vector(1, 0, 0))
    np.testing.assert_allclose(got, want, rtol=1e-12)
    assert float(got.sum()) == pytest.approx(1)


def test_a_modality_that_overfits_loses_its_weight() -> None:
    # Both train equally fast; the second gains a tenth of it on validation.
    before, now = vector(2, 2, 2), vector(1, 1, 1)
    got = blend(before, now, vector(2, 2, 2), vector(1.4, 1.4, 1.9), floor=0.0, before=before)
    assert float(got[2]) < 0.1 < float(got[1])
    # What gets worse on validation has none, or the least there is.
    got = blend(before, now, vector(2, 2, 2), vector(1.4, 1.4, 2.5), floor=0.05, before=before)
    np.testing.assert_allclose(got, np.array([0.5, 0.5, 0.05]) / 1.05)


def test_no_gain_and_no_number_keep_the_weights() -> None:
    before, ones = vector(0.2, 0.3, 0.5), vector(1, 1, 1)
    for valid_now in (vector(2, 2, 2), vector(0.5, float("nan"), 0.5)):
        assert torch.equal(blend(ones, ones / 2, ones, valid_now, floor=0.0, before=before), before)


def batch() -> tuple[dict[str, Tensor], Tensor, Tensor, dict[str, Tensor]]:
    torch.manual_seed(1)
    features = {name: torch.randn(5, 4).double().requires_grad_() for name in ("a", "b")}
    present = {"a": torch.tensor([True, True, False, True, True])}
    return features, torch.randn(5, 3).double().requires_grad_(), torch.tensor([0, 1, 2, 1, 0]), present


def test_loss_and_gradient_are_those_of_the_blend() -> None:
    balance = strategy()
    balance.weight_L.copy_(vector(0.5, 0.2, 0.3))
    features, logits, target, present = batch()
    balance.modulate(features, target, present)
    task_loss, extra = balance.losses(HeadOutput(logits, logits), target)
    got = torch.autograd.grad(task_loss + extra, [logits, features["a"], features["b"]])
    rows = present["a"]
    want_loss = (
        0.5 * F.cross_entropy(logits, target)
        + 0.2 * F.cross_entropy(balance.guides["a"].head(features["a"][rows]), target[rows])
        + 0.3 * F.cross_entropy(balance.guides["b"].head(features["b"]), target)
    )
    want = torch.autograd.grad(want_loss, [logits, features["a"], features["b"]])
    torch.testing.assert_close(task_loss + extra, want_loss)
    for mine, other in zip(got, want, strict=True):
        torch.testing.assert_close(mine, other)
        assert float(other.abs().max()) > 0


def test_estimates_are_taken_at_the_ends_of_super_epochs() -> None:
    balance, equal = strategy(super_epoch=2), [1 / 3] * 3
    found = []
    trained, validated = [], []
    for epoch in range(5):
        losses_train = np.array([2.0, 2.0, 2.0]) - np.array([0.2, 0.3, 0.4]) * epoch
        losses_valid = np.array([2.2, 2.2, 2.2]) - np.array([0.1, 0.25, 0.05]) * epoch
        trained.append(losses_train)
        validated.append(losses_valid)
        balance.seen_LK.copy_(torch.from_numpy(np.stack([losses_train * 7, np.full(3, 7.0)], 1)))
        observed = [part for loss in losses_valid[1:] for part in (loss * 4, 4.0)] + [1.0] * 4
        balance.end_epoch({}, {"loss": losses_valid[0]}, vector(*observed))
        assert float(balance.seen_LK.abs().sum()) == 0
        found.append(balance.weight_L.tolist())
    assert found[0] == found[1] == equal
    gain, gap = validated[0] - validated[2], (validated[2] - trained[2]) - (validated[0] - trained[0])
    want = gain / gap**2 / (gain / gap**2).sum()
    np.testing.assert_allclose(found[2], want)
    assert found[2] == found[3]
    np.testing.assert_allclose(found[4], want)


@pytest.mark.parametrize("kind", ["classes", pytest.param("values", marks=pytest.mark.slow)])
def test_workers_follow_one(tmp_path: Path, kind: str) -> None:
    changes = {"modulation": "gblend", "gblend_super_epoch": 1, "lr": 0.02, "cls_lr": 0.05}
    one = assert_workers_follow_one(tmp_path, changes, kind=kind)
    weights = [values["weight"].tolist() for values in one["logged"]]
    assert weights[0] != weights[-1]


def test_resume(tmp_path: Path) -> None:
    run = assert_resumes(tmp_path, "--modulation", "gblend", "--gblend_super_epoch", "1", "--lr", "0.01")
    weights = [[line[f"weight/{name}"] for name in ("words", "age", "face")] for line in lines(run)]
    assert weights[0] != weights[-1]
    assert weights[-1][0] + weights[-1][1] + weights[-1][2] + lines(run)[-1]["train/fused_weight"] == pytest.approx(1)


def test_bf16_regression_and_skipping(tmp_path: Path) -> None:
    flags = ("--task", "regression", "--target", "mark", "--precision", "bf16", "--on_nonfinite", "skip")
    run = pipeline(tmp_path, "run", "--modulation", "gblend", *flags, "--accumulate", "2")
    assert all(line["train/loss"] is not None for line in lines(run))
