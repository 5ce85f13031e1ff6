"""The protocol of a balancing strategy, and joint training, the strategy that does nothing.

A strategy acts in three places of a training step, and between epochs if it wants to (`observe`, `end_epoch`, `rates`):

1. `modulate` sees the features of all modalities before fusion and may wrap them (`see` shows it the inputs before that);
2. `losses` sees the prediction and returns the task loss and the strategy's own term;
3. `adjust` may change the gradients of the global batch, and `step` moves whatever the strategy trains by itself, both after
   the backward pass.

All it computes from a batch is a vector of sums, so one all-reduce per step makes every worker see the global batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cggm_ray.core.batch import Feature, HeadOutput
from cggm_ray.core.reduction import Reduce, Totals, all_reduce_with_local_gradient, alone
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
    """

    observes = False
    rates_by_step = False

    def __init__(self, *, task: Task, reduce: Reduce = alone) -> None:
        super().__init__()
        self.totals: Totals | None = None
        self.task = task
        self.reduce = reduce
        self.diagnostics: dict[str, Tensor] = {}

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
        """Returns the features that the fusion shall see.

        Args:
            features: modality name to the output of its encoder.
            target: [N, ...].
            present: modality name to bool [N]; None when nothing is missing.
            weight: [N], 0 for samples that do not count; None when all do.
            masks: modality name to bool [N, T] or [N, 1], False at padding; None when there is none.
        """
        return features

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
        return self.task.combine(task_sums), self.combine(task_sums, own_sums)

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
        """Moves what the strategy trains by itself. Call it after the backward pass."""

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
