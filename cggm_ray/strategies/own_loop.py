"""The methods that a training loop of a person's own calls: what a strategy returns is held here between two calls.

The package's own loop passes a `Batch` and the strategy's memo from call to call (`Strategy.transform`, `Strategy.terms`,
`Strategy.adjust_gradients`, `Strategy.move`). A loop of a person's own has a target, a feature here, a mask there, and three
lines to spend:

    features = balance.modulate(net.encode(inputs), target)
    loss = task.loss(logits, target) + balance.loss(logits, hidden, target)
    loss.backward(); optimizer.step(); balance.step()

`OwnLoop` translates: it makes the batch, holds the memo from `modulate` to `loss` and `adjust`, and notices steps that the loop
skips (see `cggm_ray.strategies.steps`), which the package's own loop does itself.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cggm_ray.core.batch import Batch, Feature, HeadOutput
from cggm_ray.core.reduction import Reduction, Totals
from cggm_ray.strategies.steps import OpenStep

Memo = Any
"""What a strategy hands from `transform` to `sums` and `combine` of the same batch; each strategy has a type of its own."""


class Terms(NamedTuple):
    """The loss of the global batch, in two parts.

    Attributes:
        task_loss: scalar.
        extra: the strategy's term, scalar.
        total: the sums of the global batch that they were formed from, 1-D.
    """

    task_loss: Tensor
    extra: Tensor
    total: Tensor


@dataclass(frozen=True)
class _Running:
    """A batch between `modulate` and `losses`."""

    batch: Batch
    memo: Memo
    memory_before: list[Tensor]


class _Unadjusted(NamedTuple):
    """The memo of a batch between `losses` and `adjust`."""

    memo: Memo


class _Shown(NamedTuple):
    """What `see` was given."""

    inputs: Mapping[str, Tensor] | None = None
    masks: Mapping[str, Tensor] | None = None


class OwnLoop(nn.Module):
    """What a strategy offers to a loop of a person's own; `Strategy` implements the abstract methods.

    Attributes:
        adjusts: whether the strategy changes gradients, so that the loop has to call `adjust`.
        turns: steps that the loop takes with every batch, each from `modulate` to `step`.
        turn: which of them is taken now, counted from 0.
    """

    reduce: Reduction
    adjusts = False
    turns = 1
    turn = 0

    def __init__(self) -> None:
        super().__init__()
        self._open_step = OpenStep()
        self._shown: _Shown = _Shown()
        self._running: _Running | None = None
        self._unadjusted: _Unadjusted | None = None

    @abstractmethod
    def transform(
        self, features: dict[str, Feature], batch: Batch, totals: Totals | None = None
    ) -> tuple[dict[str, Feature], Memo]:
        """The features for the fusion, and a memo."""

    @abstractmethod
    def terms(self, head: HeadOutput, batch: Batch, memo: Memo, totals: Totals | None = None) -> Terms:
        """Task loss and the strategy's term."""

    @abstractmethod
    def memory(self) -> list[Tensor]:
        """Tensors that a step moves, changed in place."""

    @abstractmethod
    def adjust_gradients(self, memo: Memo) -> None:
        """Changes gradients of the global batch."""

    @abstractmethod
    def move(self) -> None:
        """Moves what the strategy trains by itself."""

    @abstractmethod
    def own_optimizer(self) -> Optimizer | None:
        """The optimizer of what the strategy trains by itself; None where it trains nothing."""

    def see(self, inputs: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None) -> None:
        """Gives the inputs of a step before `modulate`, for a strategy that needs them (UMT).

        Args:
            inputs: modality name to [N, ...].
            masks: for a loop that does not give them to `modulate`.
        """
        self._shown = _Shown(inputs, masks)

    def modulate(
        self,
        features: dict[str, Feature],
        target: Tensor,
        present: Mapping[str, Tensor] | None = None,
        weight: Tensor | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Feature]:
        """Begins a step: returns the features that the fusion shall see, equal in value for most strategies.

        Args:
            features: modality name to the output of its encoder.
            target: [N, ...].
            present: modality name to bool [N], False for a sample without the modality; None when nothing is missing.
            weight: [N], 0 for samples that do not count; None when all do.
            masks: modality name to bool [N, T] or [N, 1], False at padding; None when there is none.
        """
        inputs, shown_masks = self._shown
        masks = shown_masks if masks is None else masks
        batch = Batch.of_loop(target, inputs=inputs, present=present, weight=weight, masks=masks)
        memory = []
        if self._may_be_skipped():
            self._open_step.enter(self, features.values())
            memory = [tensor.clone() for tensor in self.memory()]
        changed, memo = self.transform(features, batch)
        self._shown, self._running = _Shown(), _Running(batch, memo, memory)
        return changed

    def losses(self, head: HeadOutput, target: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Task loss and the strategy's term, both of the global batch. The caller adds them and goes backward once.

        Args:
            head: output of the fused head.
            target: [N, ...].
            weight: [N] or None.

        Raises:
            RuntimeError: `modulate` was not called for this batch.
        """
        running, self._running = self._running, None
        if running is None:
            raise RuntimeError("balance.loss(...) before balance.modulate(...)")
        batch = dataclasses.replace(running.batch, target=target, weight=weight)
        task_loss, extra, total = self.terms(head, batch, running.memo)
        if self._may_be_skipped():
            extra = self._open_step.check(self, extra, total.detach(), running.memory_before)
            self._unadjusted = _Unadjusted(running.memo) if self.adjusts else None
        return task_loss, extra

    def loss(
        self,
        logits: Tensor,
        hidden: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        *,
        raw: Tensor | None = None,
        members: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The strategy's term alone, for a training loop that computes its task loss itself.

        Args:
            logits: [N, C, ...] of the fused head.
            hidden: input of the fused head's last linear layer, [N, D, ...].
            target: [N, ...].
            weight: [N] or None.
            raw: the linear layer's own output, where `logits` is a resized version of it.
            members: modality name to the logits of its model, where an ensemble predicts.
        """
        return self.losses(HeadOutput(logits, hidden, raw, members), target, weight)[1]

    def adjust(self) -> None:
        """Changes the gradients where the strategy does that (OGM-GE, ReconBoost).

        Call it between the backward pass and `optimizer.step()`; for other strategies it does nothing.
        """
        if self._unadjusted is not None:
            self.adjust_gradients(self._unadjusted.memo)
            self._unadjusted = None

    def step(self) -> None:
        """Ends a step: moves what the strategy trains by itself, and clears its gradients. Call it after the backward pass.

        It first divides the gradients by the loss scale; where they or the sums of the batch are not finite, nothing moves
        and the buffers go back to what they were before the step. So it may be called whether or not the model's optimizer
        skipped the step.

        Raises:
            RuntimeError: `adjust` was forgotten.
        """
        if self._unadjusted is not None:
            raise RuntimeError(
                "call balance.adjust() between the backward pass and optimizer.step(), or balance.skip() where you skip a step"
            )
        if self._open_step.end(self) and self.own_optimizer() is not None:
            self._open_step.look_for_moves(self)
            self.move()
            self._open_step.note_moves(self)
        self._open_step.close(self)
        self.turn = (self.turn + 1) % self.turns

    def skip(self) -> None:
        """Ends a step in place of `step`, for a loop that skips it for a reason of its own.

        Buffers go back to what they were before the step, and the gradients of what the strategy trains are dropped, whether
        they are finite or not. It may be called at any time after `modulate`, with or without a backward pass, and needs no
        `adjust`.
        """
        self._unadjusted = None
        self._open_step.take_back(self)
        self.turn = (self.turn + 1) % self.turns

    def _may_be_skipped(self) -> bool:
        """Whether this pass belongs to a step that the loop may skip without a word to the strategy."""
        return self.training and torch.is_grad_enabled()
