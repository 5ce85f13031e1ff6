"""The closed-form direction term against autograd's double backward, for every task."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cggm_ray import CGGM, Classification, HeadOutput, Regression, Segmentation, Task, UsageError
from cggm_ray.core.batch import Batch

N, D, PIXELS = 7, 6, 5


class Guide(nn.Module):
    """A guide on vectors, or on maps with a 1x1 convolution, with or without resizing."""

    def __init__(self, outputs: int, maps: bool, resized: bool) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(4, D, 1) if maps else nn.Linear(4, D)
        self.head = nn.Conv2d(D, outputs, 1) if maps else nn.Linear(D, outputs)
        self.resized = resized

    def forward(self, feature: Tensor) -> HeadOutput:
        return predict(self.head, self.hidden(feature).tanh(), self.resized)


def predict(head: nn.Module, hidden: Tensor, resized: bool) -> HeadOutput:
    raw = head(hidden)
    if not resized:
        return HeadOutput(raw, hidden)
    logits = F.interpolate(raw, size=(2 * PIXELS, 2 * PIXELS), mode="bilinear", align_corners=True)
    return HeadOutput(logits, hidden, raw)


def problem(kind: str) -> tuple[Task, Tensor, bool, bool]:
    """Task, target, whether features are maps, whether logits are resized."""
    if kind == "regression":
        return Regression(), torch.randn(N, 1, dtype=torch.float64), False, False
    if kind == "classification":
        return Classification(4), torch.randint(4, (N,)), False, False
    size = PIXELS * (2 if kind == "resized segmentation" else 1)
    return Segmentation(), torch.randint(4, (N, size, size)), True, kind == "resized segmentation"


@pytest.mark.parametrize("kind", ["regression", "classification", "segmentation", "resized segmentation"])
def test_closed_form_is_the_double_backward(kind: str) -> None:
    torch.manual_seed(1)
    task, target, maps, resized = problem(kind)
    shape = (N, 4, PIXELS, PIXELS) if maps else (N, 4)
    inputs = {name: torch.randn(shape, dtype=torch.float64) for name in ("a", "b", "c")}
    encoders = nn.ModuleDict({name: nn.Conv2d(4, 4, 1) if maps else nn.Linear(4, 4) for name in inputs}).double()
    fuse = (nn.Conv2d(12, D, 1) if maps else nn.Linear(12, D)).double()
    head = (nn.Conv2d(D, task.outputs, 1) if maps else nn.Linear(D, task.outputs)).double()
    guides = {name: Guide(task.outputs, maps, resized).double() for name in inputs}
    balance = CGGM(guides, task=task, rho=1.3, lam=1.0, magnitude=False)
    model = [*encoders.parameters(), *fuse.parameters(), *head.parameters()]

    features = {name: encoder(inputs[name]).tanh() for name, encoder in encoders.items()}
    gated = balance.modulate(features, target)
    out = predict(head, fuse(torch.cat(list(gated.values()), 1)).tanh(), resized)
    term = balance.loss(out.logits, out.hidden, target, raw=out.raw) - balance.diagnostics["guide_loss"].sum()
    coefficient_M = balance.diagnostics["coefficient"]
    got = torch.autograd.grad(term, model, allow_unused=True)

    features = {name: encoder(inputs[name]).tanh() for name, encoder in encoders.items()}
    out = predict(head, fuse(torch.cat(list(features.values()), 1)).tanh(), resized)
    (fused,) = torch.autograd.grad(task.loss(out.logits, target), head.weight, create_graph=True)
    cosines = []
    for name, guide in guides.items():
        guide_loss = task.loss(guide(features[name].detach()).logits, target)
        (grad,) = torch.autograd.grad(guide_loss, guide.head.weight)
        cosines.append(torch.cosine_similarity(fused.flatten(), grad.flatten(), dim=0))
    cosine_M = torch.stack(cosines)
    oracle = (coefficient_M.abs() - coefficient_M * cosine_M).mean()
    want = torch.autograd.grad(oracle, model, allow_unused=True)

    assert torch.allclose(balance.diagnostics["cosine"], cosine_M, rtol=1e-9)
    assert torch.allclose(term, oracle, rtol=1e-9)
    for mine, autograd in zip(got, want, strict=True):
        autograd = torch.zeros_like(mine) if autograd is None else autograd
        assert torch.allclose(mine, autograd, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("kind", ["regression", "classification", "segmentation"])
def test_residuals_and_slopes_are_the_derivatives(kind: str) -> None:
    torch.manual_seed(2)
    task, target, maps, _ = problem(kind)
    shape = (N, task.outputs, PIXELS, PIXELS) if maps else (N, task.outputs)
    logits = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([1, 1, 0, 1, 1, 1, 0])
    batch = Batch.of_loop(target, weight=weight)
    sums = task.sums(logits, batch)
    (want,) = torch.autograd.grad(task.combine(sums), logits)
    residuals = task.residuals(logits, batch)
    got = torch.einsum("j,j...->...", task.sum_slopes(sums), residuals)
    assert torch.allclose(got, want, rtol=1e-9, atol=1e-14)
    part = task.sums(logits[weight == 1], Batch.of_loop(target[weight == 1]))
    assert torch.allclose(task.combine(sums), task.combine(part))


def test_heads_of_different_shape_are_refused() -> None:
    guides = {name: Guide(1, False, False).double() for name in ("a", "b")}
    balance = CGGM(guides, task=Regression())
    features = {name: torch.randn(3, 4, dtype=torch.float64) for name in guides}
    balance.modulate(features, torch.zeros(3, 1))
    with pytest.raises(UsageError, match=r"\[1, 6\].*\[1, 9\]"):
        balance.loss(torch.zeros(3, 1).double(), torch.zeros(3, 9).double(), torch.zeros(3, 1).double())


def test_one_modality_cannot_be_balanced() -> None:
    with pytest.raises(UsageError, match="at least two"):
        CGGM({"a": Guide(1, False, False)}, task=Regression())
