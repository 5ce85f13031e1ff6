"""When the coefficients of a step are decided, and that a step of a single worker is one graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cggm_ray import CGGM, Batch, Classification, HeadOutput, Strategy
from cggm_ray.core.reduction import SINGLE_WORKER, Reduce, Reduction, Totals, as_reduction, global_sums
from cggm_ray.strategies.agm import AGM
from cggm_ray.strategies.ogm import OGM

NAMES = ("a", "b", "c")


class Guide(nn.Module):
    """A linear guide with a hidden layer of the fused head's width."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, feature: Tensor) -> HeadOutput:
        hidden = self.hidden(feature).tanh()
        return HeadOutput(self.head(hidden), hidden)


class Model(nn.Module):
    """Three linear encoders under a late fusion."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({name: nn.Linear(5, 4) for name in NAMES})
        self.hidden, self.head = nn.Linear(12, 6), nn.Linear(6, 3)

    def encode(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: encoder(inputs[name]) for name, encoder in self.encoders.items()}

    def fuse(self, features: dict[str, Tensor]) -> HeadOutput:
        hidden = self.hidden(torch.cat([features[name] for name in NAMES], 1)).tanh()
        return HeadOutput(self.head(hidden), hidden)


def build(kind: str, model: Model, reduce: Reduce) -> Strategy:
    task = Classification(3)
    if kind == "cggm":
        return CGGM({name: Guide().double() for name in NAMES}, task=task, reduce=reduce)
    return {"ogm": OGM, "agm": AGM}[kind](NAMES, model.fuse, task=task, reduce=reduce)


def batches() -> list[Batch]:
    torch.manual_seed(5)
    found = []
    for _ in range(3):
        inputs = {name: torch.randn(7, 5, dtype=torch.float64) for name in NAMES}
        found.append(Batch.of_loop(torch.randint(3, (7,)), inputs=inputs))
    return found


def trained(kind: str, reduce: Reduce, known: bool = False) -> dict[str, Tensor]:
    """Gradients of three steps, and all that the strategy remembers."""
    torch.manual_seed(4)
    model = Model().double()
    strategy = build(kind, model, reduce)
    found = {}
    for number, batch in enumerate(batches()):
        model.zero_grad()
        totals: Totals | None = None
        if known:
            with torch.no_grad():
                features, memo = strategy.transform(model.encode(batch.inputs), batch)
                totals = global_sums(strategy.local_sums(model.fuse(features), batch, memo), SINGLE_WORKER)
        features, memo = strategy.transform(model.encode(batch.inputs), batch, totals)
        terms = strategy.terms(model.fuse(features), batch, memo, totals)
        (terms.task_loss + terms.extra).backward()
        found |= {f"{number} {name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        strategy.move()
    return found | {name: value for name, value in strategy.state_dict().items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("kind", ["cggm", "ogm", "agm"])
@pytest.mark.parametrize("other", ["after the all-reduce", "from known sums"])
def test_the_time_of_the_decision_changes_no_bit(kind: str, other: str) -> None:
    before_fusion = trained(kind, SINGLE_WORKER)
    if other == "after the all-reduce":
        # One worker whose reduction does not say so; a vector of another worker would be added here.
        seen = trained(kind, lambda sums: sums.clone())
    else:
        seen = trained(kind, SINGLE_WORKER, known=True)
    assert seen.keys() == before_fusion.keys()
    different = [name for name, value in before_fusion.items() if not torch.equal(value, seen[name])]
    assert not different


@pytest.mark.parametrize("mode", ["evaluation", "without gradient"])
def test_nothing_is_decided_where_nothing_is_trained(mode: str) -> None:
    model = Model().double()
    strategy = build("cggm", model, SINGLE_WORKER)
    before = [tensor.clone() for tensor in strategy.memory()]
    strategy.train(mode != "evaluation")
    (batch, *_) = batches()
    with torch.set_grad_enabled(mode == "evaluation"):
        strategy.transform(model.encode(batch.inputs), batch)
    assert all(torch.equal(one, other) for one, other in zip(before, strategy.memory(), strict=True))


def test_a_step_of_a_single_worker_is_one_graph() -> None:
    model = Model().double()
    strategy = build("cggm", model, SINGLE_WORKER)

    def loss(inputs: dict[str, Tensor], target: Tensor) -> Tensor:
        batch = Batch(inputs=inputs, target=target, index=target)
        features, memo = strategy.transform(model.encode(inputs), batch)
        terms = strategy.terms(model.fuse(features), batch, memo)
        return terms.task_loss + terms.extra

    (batch, *_) = batches()
    state = {name: value.clone() for name, value in strategy.coefficients.named_buffers()}

    def gradients(run: Callable[..., Tensor]) -> list[Tensor]:
        for name, value in strategy.coefficients.named_buffers():
            value.copy_(state[name])
        model.zero_grad()
        run(batch.inputs, batch.target).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    want = gradients(loss)
    got = gradients(torch.compile(loss, fullgraph=True, backend="eager"))
    assert all(torch.equal(one, other) for one, other in zip(want, got, strict=True))


def test_a_reduction_says_whether_it_has_a_single_worker() -> None:
    sums = torch.tensor([1.0, 2.0])
    assert SINGLE_WORKER.is_single
    assert SINGLE_WORKER(sums) is sums
    own = as_reduction(lambda vector: 3 * vector)
    assert (own.world_size, own.is_single) == (None, False)
    assert as_reduction(own) is own
    assert Reduction(lambda vector: 3 * vector, 3)(sums).tolist() == [3.0, 6.0]
    totals = global_sums(sums, own, parts=2)
    assert totals.sums.tolist() == [3.0, 6.0]
    assert float(totals.shares) == 6.0
    with pytest.raises(ValueError, match="found 2 without a function"):
        Reduction(None, 2)
