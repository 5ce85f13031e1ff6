"""The protocol of a balancing strategy, and joint training, the strategy that does nothing.

A strategy acts in three places of a training step, and between epochs if it wants to (`observe`, `end_epoch`, `rates`):

1. `modulate` sees the features of all modalities before fusion and may wrap them (`see` shows it the inputs before that);
2. `losses` sees the prediction and returns the task loss and the strategy's own term;
3. `adjust` may change the gradients of the global batch, and `step` moves whatever the strategy trains by itself, both after
   the backward pass.

All it computes from a batch is a vector of sums, so one all-reduce per step makes every worker see the global batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cggm_ray.core.batch import Feature, HeadOutput
from cggm_ray.core.errors import UsageError
from cggm_ray.core.reduction import Reduce, Totals, all_reduce_with_local_gradient, alone
from cggm_ray.strategies.steps import OpenStep, own_parameters
from cggm_ray.tasks.base import Task


class Strategy(nn.Module):
    """Base of all strategies; by itself it is joint training.

    Everything that a strategy remembers is in its `state_dict`.

    Args:
        task: what is predicted.
        reduce: sums a vector over workers; the default is for one worker.

    Attributes:
        diagnostics: quantities of the last step for the log, name to [M] (by modality) or a scalar; detached, on the
            device.
        observes: whether `observe` is to be called; an evaluation costs nothing more where it is not.
        rates_by_step: whether `rates` change with every step; they are read before the optimizer moves.
        totals: the sums of the global batch, where they are known before `losses`; None where it finds them.
        is_guarded: whether the loop itself finds out, on all workers alike, that a step is not finite, and takes it back; the
            package's own loop does. In any other loop the strategy does it; see `cggm_ray.strategies.steps`.
    """

    observes = False
    rates_by_step = False

    def __init__(self, *, task: Task, reduce: Reduce = alone) -> None:
        super().__init__()
        self.totals: Totals | None = None
        self.task = task
        self.reduce = reduce
        self.diagnostics: dict[str, Tensor] = {}
        self.is_guarded = False
        self._open_step = OpenStep()

    def see(self, inputs: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None) -> None:
        """Shows the inputs of a step, before they are encoded.

        Args:
            inputs: modality name to [N, ...].
            masks: see `modulate`.
        """

    def modulate(
        self,
        features: dict[str, Feature],
        target: Tensor,
        present: Mapping[str, Tensor] | None = None,
        weight: Tensor | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Feature]:
        """Returns the features that the fusion shall see. A subclass calls this first, because a step begins here.

        Args:
            features: modality name to the output of its encoder.
            target: [N, ...].
            present: modality name to bool [N]; None when nothing is missing.
            weight: [N], 0 for samples that do not count; None when all do.
            masks: modality name to bool [N, T] or [N, 1], False at padding; None when there is none.
        """
        if self._is_open_to_skips():
            self._open_step.enter(self, features.values())
        return features

    def _is_open_to_skips(self) -> bool:
        """Whether this pass belongs to a step that may be skipped without a word to the strategy."""
        return self.training and torch.is_grad_enabled() and not self.is_guarded and self.totals is None

    def sums(self, head: HeadOutput, target: Tensor, weight: Tensor | None) -> Tensor:
        """The strategy's own additive sums of this step, float64, 1-D."""
        return torch.zeros(0, dtype=torch.float64, device=head.logits.device)

    def combine(self, task_sums: Tensor, own_sums: Tensor) -> Tensor:
        """The strategy's term of the loss, from the sums of the global batch."""
        return own_sums.new_zeros(())

    def losses(self, head: HeadOutput, target: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Task loss and the strategy's term, both of the global batch. The caller adds them and goes backward once.

        Args:
            head: output of the fused head.
            target: [N, ...].
            weight: [N] or None.
        """
        local = self.local_sums(head, target, weight)
        if self.totals is None:
            total = all_reduce_with_local_gradient(local, self.reduce)
        else:
            total = self.totals.with_gradient_of(local)
        task_sums, own_sums = total[: self.task.n_sums], total[self.task.n_sums :]
        task_loss = self.task.combine(task_sums)
        if not self._is_open_to_skips():
            return task_loss, self.combine(task_sums, own_sums)
        before = [tensor.clone() for tensor in self.memory()]
        term = self.combine(task_sums, own_sums)
        return task_loss, self._open_step.check(self, term, total.detach(), before)

    def local_sums(self, head: HeadOutput, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """All sums of this worker's batch, those of the task and the strategy's own, float64, 1-D."""
        return torch.cat([self.task.sums(head.logits, target, weight), self.sums(head, target, weight)])

    def memory(self) -> list[Tensor]:
        """Tensors that `combine` moves, changed in place."""
        return []

    def loss(
        self,
        logits: Tensor,
        hidden: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        *,
        raw: Tensor | None = None,
    ) -> Tensor:
        """The strategy's term alone, for a training loop that computes its task loss itself.

        Args:
            logits: [N, C, ...] of the fused head.
            hidden: input of the fused head's last linear layer, [N, D, ...].
            target: [N, ...].
            weight: [N] or None.
            raw: the linear layer's own output, where `logits` is a resized version of it.
        """
        return self.losses(HeadOutput(logits, hidden, raw), target, weight)[1]

    def adjust(self) -> None:
        """Changes gradients of the global batch, between the backward pass and clipping.

        All workers hold the same gradients then, and must hold the same ones afterwards.
        """

    def step(self) -> None:
        """Ends a step: moves what the strategy trains by itself, and clears its gradients. Call it after the backward pass.

        In a loop that is not guarded it first divides the gradients by the loss scale; where they or the sums of the batch
        are not finite, nothing moves and the buffers go back to what they were before the step. So it may be called whether
        or not the model's optimizer skipped the step.
        """
        optimizer = self.own_optimizer()
        if self.is_guarded:
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            return
        if self._open_step.end(self) and optimizer is not None:
            self._open_step.look_for_moves(self)
            optimizer.step()
            self._open_step.note_moves(self)
        self._open_step.close(self)

    def skip(self) -> None:
        """Ends a step in place of `step`, for a loop that skips it for a reason of its own.

        Buffers go back to what they were before the step, and the gradients of what the strategy trains are dropped, whether
        they are finite or not. It may be called at any time after `modulate`, with or without a backward pass.
        """
        self._open_step.take_back(self)

    def without_own(self, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """The parameters that `step` does not move: those for the optimizer of a model that holds the strategy.

        Args:
            parameters: of the model, `model.parameters()`.
        """
        own = {id(parameter) for parameter in own_parameters(self)}
        return [parameter for parameter in parameters if id(parameter) not in own]

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Checks that an optimizer does not train what `step` trains.

        Args:
            optimizer: of the model.

        Raises:
            UsageError: parameters of the strategy would be trained twice.
        """
        given = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        own = {id(parameter) for parameter in own_parameters(self)}
        twice = [name for name, parameter in self.named_parameters() if id(parameter) in own & given]
        if twice:
            raise UsageError(
                f"optimizer: found {len(twice)} parameters that balance.step() moves by itself ({twice[0]}, ...), so they "
                "would be trained twice; expected an optimizer made from balance.without_own(model.parameters())"
            )

    def observe(
        self,
        features: dict[str, Feature],
        target: Tensor,
        present: Mapping[str, Tensor] | None = None,
        weight: Tensor | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Additive sums of a validation batch, float64, 1-D; see `modulate` for the arguments. Without gradient."""
        return torch.zeros(0, dtype=torch.float64, device=target.device)

    def end_epoch(self, train: Mapping[str, float], valid: Mapping[str, float], observed: Tensor) -> None:
        """Sees how an epoch went, after validation; all workers see the same.

        Args:
            train: means over the steps, by the names of the log ('train/loss', 'coefficient/text').
            valid: validation loss and metrics.
            observed: the sums of `observe` over the validation split and all workers; empty where it does not observe.
        """

    def rates(self) -> Mapping[str, float]:
        """Modality to the factor, above 0, by which its encoder's learning rate differs from the model's.

        Empty where there is one learning rate. The names stay the same over a run, the factors may change in `end_epoch`,
        and in every step where `rates_by_step` says so.
        """
        return {}

    def own_optimizer(self) -> Optimizer | None:
        """The optimizer of what the strategy trains by itself; None where it trains nothing."""
        return None
