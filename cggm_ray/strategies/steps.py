"""Steps of a loop of any kind: one that is skipped leaves nothing behind, and the loss scale does not reach the guides.

A loop skips a step when a `GradScaler` finds an overflow, or for a reason of its own. The strategy is called three times in
a step (`modulate`, `losses`, `step`), and here is what it knows of a skipped one:

- The sums of the global batch are not finite: memory keeps what it held before. No number is read from the device for it.
- The guides' gradients are not finite when `step` is called: guides, their optimizer and memory stay as they were.
- The gradients of the encoders are gone when `modulate` is called again without a `step` in between. Between two micro-batches
  they would still be there, so the caller has cleared them: the step was skipped, and is taken back.
- The caller says so, by `skip`.

All of these are the same on all workers, because sums and gradients are those of the global batch.

The loss scale is the gradient with which the backward pass reaches the strategy's term. A leaf of value 0 that is added to the
term collects it; the guides' gradients are divided by it before their optimizer moves. So what a scaler, a weight or the
number of micro-batches multiplies the loss by cancels: the guides learn from the mean of their losses over the step.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cggm_ray.core.batch import Feature
from cggm_ray.core.reduction import Reduction


class Strategy(Protocol):
    """What of a strategy takes part in a step."""

    reduce: Reduction

    def modules(self) -> Iterator[nn.Module]:
        """The strategy and its parts."""
        ...

    def memory(self) -> list[Tensor]:
        """Tensors that a forward pass moves."""
        ...

    def own_optimizer(self) -> Optimizer | None:
        """The optimizer of what the strategy trains by itself."""
        ...


MOST_CALLS = 10
"""Training calls of `modulate` without a `step`, at which the strategy asks whether `step` was forgotten."""
MOVED_TWICE = 2
"""Own steps in a row before which the guides had moved already. Once is what loading a checkpoint does."""
MOST_LOOKS = 10
"""Own steps before which it is looked for; each waits for the device."""

Buffers = list[tuple[nn.Module, str, Tensor]]
"""Module, name of the buffer, and a copy."""


class OpenStep:
    """What the running step has put into a strategy, until `step` confirms it or it is taken back.

    The strategy is an argument of every method, so that the two do not hold each other.
    """

    def __init__(self) -> None:
        self._calls = 0
        self._has_ended_one = False
        self._is_open = False
        self._before: Buffers = []
        self._before_pass: Buffers = []
        self._leaves: list[nn.Parameter] = []
        self._finite: Tensor | None = None
        self._finite_of_pass: Tensor | None = None
        self._scale: Tensor | None = None
        self._fingerprint: Tensor | None = None
        self._looks = self._moves_in_a_row = 0
        self._has_warned_of_calls = False

    def enter(self, strategy: Strategy, features: Iterable[Feature]) -> None:
        """A forward pass of the training begins, before anything of the strategy changes.

        Args:
            strategy: whose pass it is.
            features: of the encoders, with their graph.
        """
        if self._is_open:
            if self._finite_of_pass is not None:
                # Running statistics of the guides; before the backward pass they must stay as they are.
                _put_back(self._before_pass, ~self._finite_of_pass)
            self._take_back_if_skipped(strategy)
        self._leaves, self._before_pass, self._finite_of_pass = first_parameters(features), buffers_of(strategy), None
        if not self._is_open:
            self._is_open, self._before = True, self._before_pass
        self._calls += 1
        if self._calls == MOST_CALLS and not self._has_warned_of_calls:
            self._has_warned_of_calls = True
            warnings.warn(
                f"{type(strategy).__name__}: modulate(...) was called {MOST_CALLS} times in training without balance.step(); "
                "this is right for that many micro-batches or skipped steps, otherwise the strategy does not learn: call "
                "balance.step() after optimizer.step(), and balance.skip() where you skip a step",
                stacklevel=3,
            )

    def check(self, strategy: Strategy, term: Tensor, sums: Tensor, memory_before: Sequence[Tensor]) -> Tensor:
        """After `combine`: undoes what the pass put into memory if that is not finite, and prepares to find the loss scale.

        Args:
            strategy: whose step it is.
            term: of the loss, a scalar.
            sums: of the global batch, detached, the same on all workers.
            memory_before: copies of `Strategy.memory` from before `transform`.

        Returns:
            The term, equal in value.
        """
        memory = strategy.memory()
        finite = torch.isfinite(torch.cat([sums, term.detach().to(sums.dtype).reshape(1)])).all()
        for tensor in memory:
            finite = finite & torch.isfinite(tensor).all()
        for tensor, before in zip(memory, memory_before, strict=True):
            tensor.copy_(torch.where(finite, tensor, _like(tensor, before)))
        self._finite_of_pass = finite
        self._finite = finite if self._finite is None else self._finite & finite
        if not term.requires_grad or strategy.own_optimizer() is None:
            return term
        if self._scale is None or self._scale.device != term.device:
            self._scale = torch.zeros((), dtype=term.dtype, device=term.device, requires_grad=True)
        # A leaf, because a gradient that the caller takes by torch.autograd.grad does not reach it.
        term = term + self._scale
        if self._calls > 1:
            term.register_hook(lambda _: self._drop_if_cleared(strategy))
        return term

    @torch.no_grad()
    def end(self, strategy: Strategy) -> bool:
        """Ends a step: unscales the guides' gradients; buffers go back, on the device, where something is not finite.

        Returns:
            Whether the strategy's own optimizer may move.
        """
        gradients = own_gradients(strategy)
        finite = self._finite
        if gradients:
            scale = None if self._scale is None else self._scale.grad
            if scale is not None:
                for gradient in gradients:
                    gradient.div_(scale.detach().to(gradient.device, gradient.dtype))
            good = are_finite(gradients)
            finite = good if finite is None else finite & good.to(finite.device)
        if finite is not None:
            _put_back(self._before, ~finite)
        return bool(gradients) and bool(finite)

    def is_finite(self) -> bool:
        """Whether the sums of the step are finite; waits for the device."""
        return self._finite is None or bool(self._finite)

    def close(self, strategy: Strategy) -> None:
        """Forgets the step: what it did is final. The guides' gradients are dropped."""
        self._calls, self._has_ended_one = 0, True
        self._close(strategy)

    def take_back(self, strategy: Strategy) -> None:
        """Puts buffers back to what they were before the step, and forgets it."""
        _put_back(self._before)
        self.close(strategy)

    def look_for_moves(self, strategy: Strategy) -> None:
        """Before an own step, one of the first: warns where something else moves the guides too."""
        if self._fingerprint is None:
            return
        self._looks += 1
        moved = bool(_fingerprint(strategy) != self._fingerprint)
        self._moves_in_a_row = self._moves_in_a_row + 1 if moved else 0
        if self._moves_in_a_row == MOVED_TWICE:
            self._looks = MOST_LOOKS
            warnings.warn(
                f"{type(strategy).__name__}: the parameters of the guides move between two calls of balance.step(), which has "
                "an optimizer of its own for them, so they are trained twice; make the other optimizer from "
                "balance.without_own(model.parameters())",
                stacklevel=3,
            )

    def note_moves(self, strategy: Strategy) -> None:
        """After an own step that moved the guides: keeps where they are."""
        self._fingerprint = _fingerprint(strategy) if self._looks < MOST_LOOKS else None

    def _take_back_if_skipped(self, strategy: Strategy) -> None:
        """Takes the open step back where the caller has given it up; decided on the device where it is not known here."""
        # A strategy that trains nothing by itself works without `step`, so its memory goes back only where `step` is in use.
        may_go = self._has_ended_one or strategy.own_optimizer() is not None
        gradients = [leaf.grad for leaf in self._leaves if leaf.grad is not None]
        if self._leaves and not gradients:
            if may_go:
                _put_back(self._before)
            self._close(strategy)
            return
        if gradients and len(gradients) == len(self._leaves):
            # Filled with zeros by zero_grad(set_to_none=False).
            filled = torch.stack([gradient.count_nonzero().to(self._leaves[0].device) for gradient in gradients]).sum()
            skipped = strategy.reduce(filled.double().reshape(1))[0] == 0
        elif not self._leaves and own_gradients(strategy):
            # Frozen encoders have no gradients to look at; those of the guides tell of an overflow at least.
            bad = ~are_finite(own_gradients(strategy))
            skipped = strategy.reduce(bad.double().reshape(1))[0] > 0
        else:
            return
        if may_go:
            _put_back(self._before, skipped)
        scale = None if self._scale is None or self._scale.grad is None else self._scale.grad
        for gradient in [*own_gradients(strategy), *([] if scale is None else [scale])]:
            gradient.masked_fill_(skipped.to(gradient.device), 0.0)
        if self._finite is not None:
            self._finite = self._finite | skipped.to(self._finite.device)

    def _drop_if_cleared(self, strategy: Strategy) -> None:
        """When a backward pass begins, for loops that clear gradients after the forward pass: drops what is stale."""
        if self._leaves and all(leaf.grad is None for leaf in self._leaves):
            self._finite = self._finite_of_pass
            self._drop_gradients(strategy)

    def _close(self, strategy: Strategy) -> None:
        self._is_open, self._leaves, self._finite, self._finite_of_pass = False, [], None, None
        self._before = self._before_pass = []
        self._drop_gradients(strategy)

    def _drop_gradients(self, strategy: Strategy) -> None:
        if self._scale is not None:
            self._scale.grad = None
        optimizer = strategy.own_optimizer()
        if optimizer is not None:
            optimizer.zero_grad(set_to_none=True)


def buffers_of(strategy: Strategy) -> Buffers:
    """Copies of all buffers that a pass may change."""
    return [
        (module, name, buffer.clone())
        for module in strategy.modules()
        # A module in evaluation mode inside a strategy that trains, such as a teacher, changes nothing.
        if module.training
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]


@torch.no_grad()
def _put_back(buffers: Buffers, where: Tensor | None = None) -> None:
    """Puts buffers back in place, everywhere or where a bool on the device says so."""
    for module, name, before in buffers:
        now = module._buffers[name]
        if now is None:
            continue
        before = _like(now, before)
        # Through `data`, because batch norm keeps its running statistics for a backward pass that may still come.
        now.data.copy_(before if where is None else torch.where(where.to(now.device), before, now))


def _like(now: Tensor, before: Tensor) -> Tensor:
    """What was in a buffer before, on its device; zeros where the first batch gave the buffer its width."""
    return before.to(now.device) if before.shape == now.shape else torch.zeros_like(now)


def own_parameters(strategy: Strategy) -> list[nn.Parameter]:
    """What the strategy's own optimizer moves."""
    optimizer = strategy.own_optimizer()
    return [] if optimizer is None else [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _fingerprint(strategy: Strategy) -> Tensor:
    """A number that changes when the strategy's parameters do. Fused optimizers leave no trace in a tensor's version."""
    return nn.utils.get_total_norm([parameter.detach() for parameter in own_parameters(strategy)])


def own_gradients(strategy: Strategy) -> list[Tensor]:
    """The gradients of `own_parameters`, as far as there are any."""
    return [parameter.grad for parameter in own_parameters(strategy) if parameter.grad is not None]


def are_finite(gradients: Sequence[Tensor]) -> Tensor:
    """Whether an optimizer can take the gradients, a bool on the device.

    Their norm must be finite, because Adam keeps squares: one that overflows would stay in its memory for good.
    """
    return torch.isfinite(nn.utils.get_total_norm(gradients))


def first_parameters(features: Iterable[Feature]) -> list[nn.Parameter]:
    """Of every feature one parameter that it was computed from: the first that a walk through its graph meets."""
    found = []
    for feature in features:
        parts = feature if isinstance(feature, tuple) else (feature,)
        nodes: list[Any] = [part.grad_fn for part in parts if part.grad_fn is not None]
        seen = set(nodes)
        while nodes:
            node = nodes.pop()
            variable = getattr(node, "variable", None)
            if isinstance(variable, nn.Parameter):
                found.append(variable)
                break
            new = [following for following, _ in node.next_functions if following is not None and following not in seen]
            seen.update(new)
            nodes += new
    return found
