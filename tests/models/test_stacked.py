"""Guides that are called together give what each gives by itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from cggm_ray import CGGM, Classification, HeadOutput, Regression
from cggm_ray.core.batch import Batch
from cggm_ray.models.sequence import sequence_guides
from cggm_ray.models.settings import ModelConfig
from cggm_ray.models.stacked import LayerNorm, Linear, Stackable, alike, call_together, parts_of, product_of_rows
from cggm_ray.tasks import MultiLabel, Task

NAMES = ("text", "audio", "vision")
SIZES = ModelConfig(proj_dim=8, num_heads=2, attn_dropout=0.0, relu_dropout=0.0, embed_dropout=0.0, res_dropout=0.0)


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def _gradients(modules: list[nn.Module], outputs: list[HeadOutput], inputs: list[Tensor]) -> list[Tensor]:
    loss = sum((output.logits.square().sum() + output.hidden.sum() for output in outputs), torch.zeros(()))
    return list(torch.autograd.grad(loss, [p for module in modules for p in module.parameters()] + inputs))


@pytest.mark.parametrize(("rows", "parts"), [(3200, 10), (9600, 32), (257, 1), (2 * 263, 2), (509, 1), (1, 1)])
def test_products_in_parts(rows: int, parts: int) -> None:
    """Parts are equal, of 256 rows at least; 257 and 509 are primes."""
    assert parts_of(rows) == parts
    left, right = torch.randn(3, rows, 5), torch.randn(3, rows, 4)
    wanted = torch.einsum("src,srd->scd", left, right)
    torch.testing.assert_close(product_of_rows(left, right, parts), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_together_is_one_by_one(masked: bool) -> None:
    guides = list(sequence_guides(SIZES, NAMES, 4).values())
    inputs = [torch.randn(5, 6, 8, requires_grad=True) for _ in guides]
    masks = [torch.rand(5, 6) > 0.4 for _ in guides] if masked else []
    alone = [guide(x, *masks[at : at + 1]) for at, (guide, x) in enumerate(zip(guides, inputs, strict=True))]
    joined = call_together(guides, torch.cat(inputs), *([torch.cat(masks)] if masked else []))
    together = [HeadOutput(*parts) for parts in zip(joined.logits.chunk(3), joined.hidden.chunk(3), strict=True)]
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one.logits, other.logits, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one.hidden, other.hidden, rtol=1e-12, atol=1e-12)
    wanted, found = _gradients(guides, alone, inputs), _gradients(guides, together, inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_together_is_one_by_one_in_half_precision() -> None:
    torch.set_default_dtype(torch.float32)
    guides = list(sequence_guides(SIZES, NAMES, 4).values())
    inputs = [torch.randn(5, 6, 8, requires_grad=True) for _ in guides]
    with torch.autocast("cpu", torch.bfloat16):
        alone = [guide(x) for guide, x in zip(guides, inputs, strict=True)]
        joined = call_together(guides, torch.cat(inputs))
    together = [HeadOutput(*parts) for parts in zip(joined.logits.chunk(3), joined.hidden.chunk(3), strict=True)]
    assert together[0].logits.dtype == alone[0].logits.dtype == torch.bfloat16
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one.logits, other.logits, rtol=0.05, atol=0.05)
    wanted, found = _gradients(guides, alone, inputs), _gradients(guides, together, inputs)
    size = max(float(each.norm()) for each in wanted)
    assert all(float((one - other).norm()) < 0.02 * size for one, other in zip(wanted, found, strict=True))


def test_gradients_of_gradients() -> None:
    layers = [_Normed() for _ in NAMES]
    x = torch.randn(6, 2, 3, requires_grad=True)

    def of_inputs(values: Tensor, *_: Tensor) -> Tensor:
        found: Tensor = call_together(layers, values)
        return found

    values = (x, *(parameter for layer in layers for parameter in layer.parameters()))
    assert torch.autograd.gradcheck(of_inputs, values)
    assert torch.autograd.gradgradcheck(of_inputs, values)


class _Small(Stackable):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = Linear(width, 2)

    def forward(self, h_ND: Tensor) -> HeadOutput:
        return HeadOutput(self.head(h_ND), h_ND)


class _Normed(Stackable):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = LayerNorm(3), Linear(3, 2)

    def forward(self, h_NTD: Tensor) -> Tensor:
        return self.layer(self.norm(h_NTD).sin())  # type: ignore[no-any-return]


class _Other(_Small):
    pass


class _Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)


@pytest.mark.parametrize(
    ("modules", "wanted"),
    [
        ([_Small(3), _Small(3)], True),
        ([_Small(3)], False),
        ([_Small(3), _Small(4)], False),
        ([_Small(3), _Other(3)], False),
        ([_Plain(), _Plain()], False),
    ],
)
def test_which_modules_are_alike(modules: list[nn.Module], wanted: bool) -> None:
    assert alike(modules) is wanted


def _strategy(task: Task) -> CGGM:
    return CGGM({name: _Small(3) for name in NAMES}, task=task)


class _Squared(Regression):
    """Overrides `sums`, so `of_samples` of its base class does not describe it."""

    def sums(self, logits: Tensor, batch: Batch) -> Tensor:
        weight = batch.sample_weights()
        error = (logits - batch.target.reshape_as(logits)).square().sum(1)
        return torch.stack([(weight * error).sum(), weight.sum()])


TASKS: dict[str, tuple[Task, Tensor]] = {
    "regression": (Regression(2), torch.randn(5, 2)),
    "in units": (Regression(2).scaled(torch.zeros(2), torch.tensor([2.0, 3.0])), torch.randn(5, 2)),
    "own sums": (_Squared(2), torch.randn(5, 2)),
    "classes": (Classification(2, 0.1, torch.tensor([1.0, 3.0])), torch.tensor([0, 1, 1, 0, 1])),
    "labels": (MultiLabel(2), torch.tensor([[0.0, 1], [1, 1], [0, 0], [1, 0], [0, 1]])),
}


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", TASKS)
def test_sums_over_all_guides_are_those_of_each(name: str, missing: bool) -> None:
    task, target = TASKS[name]
    strategy = _strategy(task)
    features = {modality: torch.randn(5, 3) for modality in NAMES}
    present = {"text": torch.tensor([True, True, False, True, False])} if missing else None
    batch = Batch(
        inputs={},
        target=target.double() if target.is_floating_point() else target,
        index=torch.arange(5),
        present=present,
        labelled=torch.tensor([True, True, True, False, True]) if missing else None,
    )
    outputs = strategy.run_guides(features, batch)
    assert (outputs.joined is None) == (name == "own sums")
    alone = [(guide(features[modality]), batch.having(modality)) for modality, guide in strategy.guides.items()]
    wanted = torch.cat([task.sums(head.logits, counted) for head, counted in alone])
    torch.testing.assert_close(outputs.sums(task), wanted, rtol=1e-12, atol=1e-12)
    for utility in task.utilities.values():
        each = torch.cat([utility(head.logits, counted) for head, counted in alone])
        torch.testing.assert_close(outputs.sums(utility), each, rtol=1e-12, atol=1e-12)
    wanted = strategy.direction.sums((alone[0][0], batch), type(outputs)(alone, None))
    torch.testing.assert_close(strategy.direction.sums((alone[0][0], batch), outputs), wanted, rtol=1e-12, atol=1e-12)
