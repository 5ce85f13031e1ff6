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
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cggm_ray.core.batch import Batch, Feature, HeadOutput
from cggm_ray.core.errors import UsageError
from cggm_ray.core.reduction import Reduction, Totals
from cggm_ray.strategies.features import inference
from cggm_ray.strategies.rates import follow, missing_groups, parameter_groups
from cggm_ray.strategies.steps import OpenStep
from cggm_ray.tasks.base import Task

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
    """The methods of a strategy for a training loop of your own; `Strategy` implements the abstract ones.

    Attributes:
        adjusts: whether the strategy changes gradients, so that the loop has to call `adjust`.
        turns: steps that the loop takes with every batch, each from `modulate` to `step`.
        turn: which of them is taken now, counted from 0.
        needs_reduce: whether it uses sums over the batch, so that several workers need a `reduce`.
    """

    task: Task
    reduce: Reduction
    adjusts = False
    turns = 1
    turn = 0
    needs_reduce = True

    def __init__(self) -> None:
        super().__init__()
        self._open_step = OpenStep()
        self._shown: _Shown = _Shown()
        self._running: _Running | None = None
        self._unadjusted: _Unadjusted | None = None
        self._is_checked = self._gives_rates = False

    @property
    @abstractmethod
    def begins_epochs(self) -> bool:
        """Whether `begin_epoch` does anything."""

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
        """Tensors that a step changes in place."""

    @abstractmethod
    def adjust_gradients(self, memo: Memo) -> None:
        """Changes gradients of the global batch."""

    @abstractmethod
    def move(self) -> None:
        """Updates the parameters that the strategy trains by itself."""

    @abstractmethod
    def observe(self, features: dict[str, Feature], batch: Batch) -> Tensor:
        """Additive sums of a validation batch."""

    @abstractmethod
    def end_epoch(self, train: Mapping[str, float], valid: Mapping[str, float], observed: Tensor) -> None:
        """Receives the results of an epoch."""

    @abstractmethod
    def rates(self) -> Mapping[str, float]:
        """Modality to the factor of its encoder's learning rate."""

    @abstractmethod
    def without_own(self, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """The parameters that `step` does not update."""

    @abstractmethod
    def own_optimizer(self) -> Optimizer | None:
        """The optimizer of the parameters that the strategy trains by itself; None where there are none."""

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
        """Begins a step and returns the features for the fusion, which most strategies leave equal in value.

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

    def groups(
        self, parameters: Iterable[nn.Parameter], encoders: Mapping[str, nn.Module], lr: float
    ) -> list[dict[str, Any]]:
        """Returns parameter groups for the model's optimizer, without those that `step` updates, with the encoders' rates.

        Args:
            parameters: of the model, `model.parameters()`.
            encoders: by modality.
            lr: learning rate of the model.
        """
        return parameter_groups(self.without_own(parameters), encoders, self.rates(), lr)

    def adjust(self, optimizer: Optimizer | None = None) -> None:
        """Changes gradients where `adjusts` is set (OGM-GE, MLA, ...), or learning rates (MSLR, CGGM with `update`).

        Call it between the backward pass and `optimizer.step()`; for other strategies it does nothing.

        Args:
            optimizer: of the model, made from `groups`; only learning rates need it.

        Raises:
            UsageError: the strategy has learning rates, and the optimizer has no groups for them.
        """
        if optimizer is not None and (rates := self.rates()):
            if missing := missing_groups(optimizer, rates):
                raise UsageError(
                    f"optimizer: found no parameter group for the encoders of {', '.join(missing)}; expected an optimizer made "
                    "from balance.groups(model.parameters(), encoders, lr)"
                )
            follow(optimizer, rates)
            self._gives_rates = True
        if self._unadjusted is not None:
            self.adjust_gradients(self._unadjusted.memo)
            self._unadjusted = None

    def step(self) -> None:
        """Ends a step after the backward pass: updates what the strategy trains by itself, and clears its gradients.

        It first divides the gradients by the loss scale; where they or the sums of the batch are not finite, it updates
        nothing and the buffers go back to what they were before the step. So it may be called whether or not the model's
        optimizer skipped the step.

        Raises:
            RuntimeError: `adjust` was forgotten.
        """
        if self._unadjusted is not None:
            raise RuntimeError(
                "call balance.adjust() between the backward pass and optimizer.step(), or balance.skip() where you skip a step"
            )
        if not self._is_checked:
            self._check()
        if self._open_step.end(self) and self.own_optimizer() is not None:
            self._open_step.look_for_moves(self)
            self.move()
            self._open_step.note_moves(self)
        # A turn whose sums were not finite is skipped, and taken with the next batch.
        if self.turns > 1 and self._open_step.is_finite():
            self.turn = (self.turn + 1) % self.turns
        self._open_step.close(self)

    def skip(self) -> None:
        """Ends a step in place of `step`, for a loop that skips it for a reason of its own.

        Buffers go back to what they were before the step, and the gradients of what the strategy trains are dropped, whether
        they are finite or not. It may be called at any time after `modulate`, with or without a backward pass, and needs no
        `adjust`.
        """
        self._unadjusted = None
        self._open_step.take_back(self)

    @torch.no_grad()
    def finish_epoch(self, net: Any, batches: Iterable[tuple[Mapping[str, Tensor], Tensor]]) -> float:
        """Ends an epoch: validates the network and calls `end_epoch` of the strategy with the results.

        Strategies that define `end_epoch` need it (MSLR, ReconBoost, ...); for others it only computes the loss.

        Args:
            net: with `encode` and `fuse`; it is left in the mode that it was in.
            batches: inputs by modality and targets of the validation split, of this worker's part where there are several.

        Returns:
            The validation loss over all workers.

        Raises:
            UsageError: there is no batch.
        """
        sums: Tensor | None = None
        with inference((net, self)):
            for inputs, target in batches:
                batch = Batch.of_loop(target, inputs=inputs)
                features = net.encode(inputs)
                seen = torch.cat([self.task.sums(net.fuse(features)[0], batch), self.observe(features, batch)])
                sums = seen if sums is None else sums + seen
        if sums is None:
            raise UsageError("batches: found none; expected the batches of a validation split")
        sums = self.reduce(sums)
        loss = float(self.task.combine(sums[: self.task.n_sums]))
        self.end_epoch({}, {"loss": loss}, sums[self.task.n_sums :])
        return loss

    def _check(self) -> None:
        """Warns at the first step about what is wrong with the loop as a whole."""
        self._is_checked = True
        name = type(self).__name__
        if not self._gives_rates and self.rates():
            warnings.warn(
                f"{name}: the model's optimizer does not get the learning rates of the encoders, so the strategy does not "
                "balance; make it from balance.groups(model.parameters(), encoders, lr), and call balance.adjust(optimizer) "
                "before optimizer.step()",
                stacklevel=3,
            )
        if self.begins_epochs:
            warnings.warn(
                f"{name}: it measures the training and validation splits before some epochs, which calls of `modulate` do not; "
                "in a loop of your own call balance.begin_epoch(epoch, measured) there, or train in a run of the package",
                stacklevel=3,
            )
        group = torch.distributed
        workers = group.get_world_size() if group.is_available() and group.is_initialized() else 1
        if self.needs_reduce and self.reduce.is_single and workers > 1:
            warnings.warn(
                f"{name}: there are {workers} workers and the strategy has no reduce, so each of them decides by its own share "
                "of the batch; give the strategy reduce=..., which sums a vector over the workers",
                stacklevel=3,
            )

    def _may_be_skipped(self) -> bool:
        """Whether this pass belongs to a step that the loop may skip without a word to the strategy."""
        return self.training and torch.is_grad_enabled()
