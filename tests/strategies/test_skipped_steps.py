"""Every strategy in a loop of one's own: loss scales, half precision, accumulation, and steps that the loop skips."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from strategy_cases import ACTIVE, Concatenation
from torch import Tensor, nn

from cggm_ray import CGGM, Classification, HeadOutput, Strategy, UsageError
from cggm_ray.core.batch import Batch
from cggm_ray.core.reduction import SINGLE_WORKER
from cggm_ray.engine.assembly import build_strategy
from cggm_ray.engine.configuration import Config
from cggm_ray.models.net import MultimodalNet
from cggm_ray.strategies import AGM, OGM, UMT
from cggm_ray.strategies.registry import STRATEGIES

NAMES = STRATEGIES.names()
WIDTH, CLASSES, BATCH, STEPS = 4, 3, 8, 10
OPTIONS: dict[str, dict[str, Any]] = {
    **ACTIVE,
    "mslr": {"mslr_strategy": "dynamic"},
    "umt": {"umt_teachers": ["a"]},
}
PER_PASS = {
    "modality-dropout": "draws for every pass",
    "mmpareto": "compares the gradients of a pass",
    "greedy": "averages the gates of passes",
    "mlb": "scores the guides in a pass",
    "mla": "learns from the features of a pass",
    **dict.fromkeys(("ogm", "ogm-ge", "opm", "agm", "pmr", "inforeg", "amco"), "scores the modalities in a pass"),
    **dict.fromkeys([name for name in NAMES if name.startswith("cggm")], "scores the guides in a pass"),
}
"""Strategies of which two halves of a batch are not the whole in a loop of one's own, and why."""


class Guide(nn.Module):
    """A classifier whose last layer is as wide as that of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.norm, self.head = (
            nn.Linear(WIDTH, 2 * WIDTH),
            nn.BatchNorm1d(2 * WIDTH),
            nn.Linear(2 * WIDTH, CLASSES),
        )

    def forward(self, feature: Tensor) -> HeadOutput:
        hidden = self.norm(self.hidden(feature)).relu()
        return HeadOutput(self.head(hidden), hidden)


@dataclass
class Loop:
    """A network, a strategy and a hand-written loop of single calls."""

    net: MultimodalNet
    balance: Strategy
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None = None

    def loss(self, inputs: dict[str, Tensor], target: Tensor, half: torch.dtype | None = None) -> Tensor:
        with torch.autocast("cpu", half, enabled=half is not None):
            self.balance.see(inputs)
            features = self.balance.modulate(self.net.encode(inputs), target)
            head = self.net.fuse(features)
            return self.balance.task.loss(head.logits, target) + self.balance.losses(head, target)[1]

    def move(self) -> bool:
        """Adjusts and moves the model; whether the scaler let it."""
        self.balance.adjust()
        if self.scaler is None:
            self.optimizer.step()
            return True
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return self.scaler.get_scale() >= before

    def take(self, inputs: dict[str, Tensor], target: Tensor) -> None:
        self.optimizer.zero_grad()
        self.loss(inputs, target).backward()
        self.move()
        self.balance.step()

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a step may move."""
        own = self.balance.own_optimizer()
        states = [] if own is None else [own.state[p] for group in own.param_groups for p in group["params"]]
        memory = {f"own.{i}.{k}": v for i, state in enumerate(states) for k, v in state.items() if torch.is_tensor(v)}
        found = {**self.net.state_dict(), **{f"balance.{k}": v for k, v in self.balance.named_buffers()}, **memory}
        found |= {f"balance.{k}": v for k, v in self.balance.named_parameters()}
        # What was never measured is NaN there.
        return {name: tensor.detach().clone() for name, tensor in found.items() if "history" not in name}

    def assert_finite(self) -> None:
        assert [name for name, tensor in self.tensors().items() if not bool(torch.isfinite(tensor).all())] == []

    def assert_equals(self, other: Loop, rtol: float = 0.0) -> None:
        mine, theirs = self.tensors(), other.tensors()
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            torch.testing.assert_close(
                tensor, theirs[name], rtol=rtol, atol=rtol, msg=lambda text, n=name: f"{n}: {text}"
            )


def make(name: str, *, scale: float | None = None, sgd: bool = False, norm: bool = True) -> Loop:
    """The strategy as the registry builds it, beside a small network in float32."""
    torch.manual_seed(0)
    encoders = {m: nn.Sequential(nn.Linear(5, WIDTH), nn.Tanh()) for m in ("a", "b")}
    net = MultimodalNet(encoders, Concatenation(), nn.Linear(2 * WIDTH, CLASSES))
    guides: dict[str, nn.Module] = {m: Guide() for m in encoders}
    if not norm:
        for guide in guides.values():
            guide.norm = nn.Identity()
    task = Classification(CLASSES)
    changes = {"modulation": name, "optim": "SGD" if sgd else "Adam", "cls_lr": 0.05, **OPTIONS.get(name, {})}
    config, info = Config().replace(changes), STRATEGIES.get(name)
    if info.network is not None:
        # The guides are the network: its running statistics are the loop's, which may let a bad batch into them.
        for guide in guides.values():
            guide.norm = nn.Identity()
        net = info.network(net, guides, config.strategy)
    if name == "umt":
        balance: Strategy = UMT(copy.deepcopy(encoders), task=task)
    else:
        balance = build_strategy(config, net, guides, task, SINGLE_WORKER)
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
    return Loop(net, balance, torch.optim.Adam(net.parameters(), lr=0.01), scaler)


def batch(number: int, gain: float = 1.0, size: int = BATCH) -> tuple[dict[str, Tensor], Tensor]:
    draw = torch.Generator().manual_seed(100 + number)
    target = torch.randint(CLASSES, (size,), generator=draw)
    return {m: gain * torch.randn(size, 5, generator=draw) + target[:, None] for m in ("a", "b")}, target


def poisoned(number: int) -> tuple[dict[str, Tensor], Tensor]:
    """A batch with a value that is not a number in one modality: the other's guide sees a good one."""
    inputs, target = batch(number)
    inputs["a"][2, 1] = torch.nan
    return inputs, target


@pytest.mark.parametrize("steps", [True, False], ids=["step", "no step"])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_with_a_scaler_that_starts_too_high(name: str, steps: bool) -> None:
    loop = make(name, scale=2.0**24)
    skipped = 0
    for number in range(40):
        loop.optimizer.zero_grad()
        assert loop.scaler is not None
        loop.scaler.scale(loop.loss(*batch(number), torch.float16)).backward()
        moved = loop.move()
        skipped += not moved
        if moved or steps:
            loop.balance.step()
        loop.assert_finite()
    assert 0 < skipped < 20


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16(name: str) -> None:
    loop = make(name)
    before = loop.tensors()
    for number in range(STEPS):
        loop.optimizer.zero_grad()
        loop.loss(*batch(number), torch.bfloat16).backward()
        loop.move()
        loop.balance.step()
    loop.assert_finite()
    after = loop.tensors()
    assert any(not torch.equal(after[key], value) for key, value in before.items() if key in after)


@pytest.mark.parametrize("scale", [2.0**-6, 2.0**10, 2.0**16])
@pytest.mark.parametrize("name", NAMES)
def test_the_loss_scale_reaches_nothing(name: str, scale: float) -> None:
    """Powers of two, so the two runs are equal to the bit; with SGD, which a factor of the gradient does not leave alone."""
    plain, scaled = make(name, sgd=True), make(name, sgd=True, scale=scale)
    for loop in (plain, scaled):
        torch.manual_seed(1)
        for number in range(STEPS):
            loop.optimizer.zero_grad()
            loss = loop.loss(*batch(number))
            (loss if loop.scaler is None else loop.scaler.scale(loss)).backward()
            if loop.scaler is not None:
                loop.scaler.unscale_(loop.optimizer)
            assert loop.move()
            loop.balance.step()
    plain.assert_equals(scaled, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_two_micro_batches(name: str) -> None:
    """Equal to the whole batch but for `PER_PASS`, where they are finite."""
    whole, parts = (make(name, sgd=True, norm=False) for _ in range(2))
    start = whole.tensors()
    for number in range(STEPS):
        inputs, target = batch(number)
        whole.take(inputs, target)
        parts.optimizer.zero_grad()
        for half in (slice(0, BATCH // 2), slice(BATCH // 2, BATCH)):
            (parts.loss({m: x[half] for m, x in inputs.items()}, target[half]) / 2).backward()
        parts.move()
        parts.balance.step()
    parts.assert_finite()
    if name not in PER_PASS:
        whole.assert_equals(parts, rtol=1e-4)
    moved = whole.tensors()
    assert any(not torch.equal(moved[key], value) for key, value in start.items())


SKIPS: dict[str, Callable[[Loop, Tensor], None]] = {
    "before the backward pass, no step": lambda loop, loss: None,
    "no step": lambda loop, loss: loss.backward(),
    "step": lambda loop, loss: (loss.backward(), loop.balance.adjust(), loop.balance.step())[0],
    "skip": lambda loop, loss: (loss.backward(), loop.balance.skip())[0],
    "skip before the backward pass": lambda loop, loss: loop.balance.skip(),
}


@pytest.mark.parametrize("how", SKIPS)
@pytest.mark.parametrize("name", NAMES)
def test_a_skipped_batch_that_is_not_finite_leaves_nothing(name: str, how: str) -> None:
    """Bit for bit the loop that never saw the batch, skipped at the beginning, in the middle and twice in a row."""
    clean, skipping = make(name), make(name)
    for number in range(STEPS):
        for loop in (clean, skipping):
            if loop is skipping and number in (0, 3, 4):
                loop.optimizer.zero_grad()
                SKIPS[how](loop, loop.loss(*poisoned(50 + number)))
            if isinstance(loop.balance, OGM):
                # The number that seeds the noise is never used twice.
                loop.balance.steps = number
            torch.manual_seed(number)
            loop.take(*batch(number))
    skipping.assert_finite()
    clean.assert_equals(skipping)


@pytest.mark.parametrize("how", ["no step", "before the backward pass, no step", "skip"])
@pytest.mark.parametrize("name", NAMES)
def test_a_finite_batch_that_is_skipped_leaves_nothing(name: str, how: str) -> None:
    """Nothing but the cleared gradients of the encoders, or the call of `skip`, says that it was skipped."""
    clean, skipping = make(name), make(name)
    for number in range(STEPS):
        for loop in (clean, skipping):
            if loop is skipping and number in (3, 4):
                loop.optimizer.zero_grad()
                SKIPS[how](loop, loop.loss(*batch(50 + number)))
            torch.manual_seed(number)
            loop.take(*batch(number))
    clean.assert_equals(skipping)


@pytest.mark.parametrize("clear", ["to zero", "after the forward pass"])
def test_gradients_that_are_cleared_otherwise(clear: str) -> None:
    """zero_grad(set_to_none=False), and loops that clear between forward and backward pass, skip without a call."""
    clean, skipping = make("cggm"), make("cggm")
    for number in range(STEPS):
        for loop in (clean, skipping):
            for inputs, target in ([poisoned(50)] if loop is skipping and number == 3 else []) + [batch(number)]:
                if clear == "to zero":
                    loop.optimizer.zero_grad(set_to_none=False)
                loss = loop.loss(inputs, target)
                if clear != "to zero":
                    loop.optimizer.zero_grad()
                loss.backward()
            loop.move()
            loop.balance.step()
    skipping.assert_finite()
    clean.assert_equals(skipping)


def test_an_overflow_in_one_of_two_micro_batches() -> None:
    """The scaler skips the whole step, and so does the strategy."""
    clean, skipping = make("cggm"), make("cggm")
    for number in range(STEPS):
        clean.take(*batch(number))
        if number == 3:
            skipping.optimizer.zero_grad()
            for inputs, target in (poisoned(50), batch(51)):
                (skipping.loss(inputs, target) / 2).backward()
            skipping.balance.step()
        skipping.take(*batch(number))
    clean.assert_equals(skipping)


@pytest.mark.parametrize("name", NAMES)
def test_ten_passes_without_a_step_warn_once(name: str) -> None:
    loop = make(name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(30):
            (loop.loss(*batch(number)) / 30).backward()
    (message,) = [str(w.message) for w in caught if "modulate" in str(w.message)]
    assert "10 times in training without balance.step()" in message
    assert "balance.skip()" in message


def test_passes_that_do_not_train_do_not_count() -> None:
    loop = make("cggm")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(12):
            with torch.no_grad():
                loop.loss(*batch(number))
            loop.take(*batch(number))
        loop.balance.eval()
        for number in range(12):
            loop.balance.modulate(loop.net.encode(batch(number)[0]), batch(number)[1])


def test_one_backward_pass_for_two_forward_passes() -> None:
    loop = make("cggm")
    for number in range(3):
        loop.optimizer.zero_grad()
        (loop.loss(*batch(2 * number)) + loop.loss(*batch(2 * number + 1))).backward()
        loop.move()
        loop.balance.step()
    loop.assert_finite()


def test_a_strategy_that_trains_nothing_works_without_step() -> None:
    loops = [make("agm") for _ in range(2)]
    for number in range(5):
        for loop, steps in zip(loops, (True, False), strict=True):
            loop.optimizer.zero_grad()
            loop.loss(*batch(number)).backward()
            loop.move()
            if steps:
                loop.balance.step()
    assert isinstance(loops[0].balance, AGM)
    loops[0].assert_equals(loops[1])


class Whole(nn.Module):
    """A module that holds network and strategy, as Lightning's and the HF Trainer's do."""

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self.net, self.balance = loop.net, loop.balance


def test_the_outer_optimizer_must_not_hold_the_guides() -> None:
    loop = make("cggm")
    whole = Whole(loop)
    outer = torch.optim.Adam(whole.parameters())
    with pytest.raises(
        UsageError, match=r"12 parameters that balance.step\(\) moves by itself \(guides.a.hidden.weight"
    ):
        loop.balance.check_optimizer(outer)
    right = torch.optim.Adam(loop.balance.without_own(whole.parameters()))
    loop.balance.check_optimizer(right)
    assert {id(p) for p in right.param_groups[0]["params"]} == {id(p) for p in loop.net.parameters()}


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
@pytest.mark.parametrize("fused", [False, True])
def test_guides_that_are_trained_twice_are_noticed(kind: type[torch.optim.Optimizer], fused: bool) -> None:
    loop = make("cggm")
    loop.optimizer = kind(Whole(loop).parameters(), lr=0.01, fused=fused)  # type: ignore[call-arg]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(STEPS):
            loop.take(*batch(number))
    (message,) = [str(warning.message) for warning in caught]
    assert "trained twice; make the other optimizer from balance.without_own(model.parameters())" in message


def test_a_loaded_checkpoint_is_no_second_training() -> None:
    loop = make("cggm")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(4):
            loop.take(*batch(number))
            if number == 1:
                loop.balance.load_state_dict(copy.deepcopy(loop.balance.state_dict()))


def test_the_engine_takes_the_decision_itself() -> None:
    """The form that the package's own loop calls adds nothing to a step: no leaf, no copy of memory, no warning."""
    loop = make("cggm")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(12):
            inputs, target = batch(number)
            given = Batch.of_loop(target, inputs=inputs)
            features, memo = loop.balance.transform(loop.net.encode(inputs), given)
            loop.balance.terms(loop.net.fuse(features), given, memo)
    assert isinstance(loop.balance, CGGM)
    assert loop.balance._open_step._before == []
