"""The protocol of a balancing strategy, and joint training, the strategy that does nothing.

A strategy acts in three places of a training step, between epochs if it wants to (`observe`, `end_epoch`, `rates`), and
before an epoch (`measures`, `measure`, `begin_epoch`, `plan`):

1. `transform` sees the features of all modalities before fusion, may wrap them, and returns a memo of the batch;
2. `terms` sees the prediction and the memo, and returns the task loss and the strategy's own term: `sums` says what the batch
   adds, `combine` forms the term from the sums of the global batch;
3. `adjust_gradients` may change the gradients of the global batch, and `move` moves whatever the strategy trains by itself,
   both after the backward pass.

All it computes from a batch is a vector of sums, so one all-reduce per step makes every worker see the global batch. A loop of
a person's own calls `modulate`, `loss`, `adjust` and `step` instead (`cggm_ray.strategies.own_loop`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cggm_ray.core.batch import Batch, EpochPlan, Feature, HeadOutput
from cggm_ray.core.errors import UsageError
from cggm_ray.core.reduction import SINGLE_WORKER, Reduce, Totals, all_reduce_with_local_gradient, as_reduction
from cggm_ray.strategies.own_loop import Memo as Memo
from cggm_ray.strategies.own_loop import OwnLoop, Terms
from cggm_ray.strategies.steps import own_parameters
from cggm_ray.tasks.base import Task


class Strategy(OwnLoop):
    """Base of all strategies; by itself it is joint training.

    The state of a strategy from step to step is in its `state_dict`. Between the calls of one step it is the memo, which
    `transform` returns and the later calls get back.

    Args:
        task: what is predicted.
        reduce: sums a vector over workers; the default is for one worker.

    Attributes:
        diagnostics: quantities of the last step for the log, name to [M] (by modality) or a scalar; detached, on the
            device.
        turns: optimizer steps that are taken with every batch, one after the other; each has its own forward and backward
            pass.
        turn: which of them is taken now, counted from 0; the host's decisions in a step may depend on it.
        observes: whether `observe` is called in the validation.
        rates_by_step: whether `rates` change with every step; they are read before the optimizer moves.
        against_graph: why a step cannot be recorded as a CUDA graph; None where it can. A recorded step repeats the work of
            the device alone, so its memory is kept in buffers that change in place, and decisions that the host takes are
            those that `branch` names.
        beside_fusion: whether the fusion may run at the same time as `transform` in a recorded step, because it gets nothing
            but features from it. A subclass that defines another `transform` says so itself.
        against_compile: why forward and backward pass cannot be compiled as one graph; None where they can. What the
            backward pass needs may not depend on a buffer that `transform` or `combine` changes: torch may compute it anew
            there, from the new value.

    Raises:
        UsageError: a subclass overrides `adjust`, which the package's own loop does not call.
    """

    turns = 1
    observes = False
    rates_by_step = False
    against_graph: str | None = None
    against_compile: str | None = None
    beside_fusion = False

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "transform" in vars(cls) and "beside_fusion" not in vars(cls):
            cls.beside_fusion = False
        if "adjust" in vars(cls):
            raise UsageError(
                f"{cls.__name__}.adjust: expected the name adjust_gradients and the arguments (self, memo)"
            )

    def __init__(self, *, task: Task, reduce: Reduce = SINGLE_WORKER) -> None:
        super().__init__()
        self.task = task
        self.reduce = as_reduction(reduce)
        self.diagnostics: dict[str, Tensor] = {}
        self.turn = 0

    def transform(
        self, features: dict[str, Feature], batch: Batch, totals: Totals | None = None
    ) -> tuple[dict[str, Feature], Memo]:
        """The features for the fusion, and the memo, which `sums` and `combine` of this pass get.

        Args:
            features: modality name to the output of its encoder.
            batch: that they were computed from.
            totals: the sums of the global batch where they are known, for a batch that is a part of it.
        """
        return features, None

    def known_sums(self, local: Tensor, totals: Totals | None, start: int = 0) -> Tensor | None:
        """A part of the own sums of the global batch, where a training pass knows it before the fusion.

        Args:
            local: the part of this batch alone, 1-D, detached.
            totals: see `transform`.
            start: where the part begins in what `sums` returns.

        Returns:
            The part, with a single worker or with `totals`. None where an all-reduce is needed first, and where nothing is
            trained, so that no decision may be taken.
        """
        if not (self.training and torch.is_grad_enabled()):
            return None
        if totals is not None:
            first = self.task.n_sums + start
            return totals.sums[first : first + len(local)]
        return local if self.reduce.is_single else None

    def sums(self, head: HeadOutput, batch: Batch, memo: Memo) -> Tensor:
        """The strategy's own additive sums of a batch, float64, 1-D.

        Args:
            head: output of the fused head.
            batch: that it was computed from.
            memo: of `transform`.
        """
        return torch.zeros(0, dtype=torch.float64, device=head.logits.device)

    def combine(self, task_sums: Tensor, own_sums: Tensor, memo: Memo) -> Tensor:
        """The strategy's term of the loss, a scalar.

        Args:
            task_sums: of the task's loss over the global batch, [K].
            own_sums: of `sums` over the global batch.
            memo: of `transform`.
        """
        return own_sums.new_zeros(())

    def terms(self, head: HeadOutput, batch: Batch, memo: Memo, totals: Totals | None = None) -> Terms:
        """Task loss and the strategy's term, both of the global batch. The caller adds them and goes backward once.

        Args:
            head: output of the fused head.
            batch: that it was computed from.
            memo: of `transform`.
            totals: the sums of the global batch where they are known, for a batch that is a part of it.
        """
        local = self.local_sums(head, batch, memo)
        total = all_reduce_with_local_gradient(local, self.reduce) if totals is None else totals.with_gradient_of(local)
        task_sums, own_sums = total.split([self.task.n_sums, len(total) - self.task.n_sums])
        return Terms(self.task.combine(task_sums), self.combine(task_sums, own_sums, memo), total)

    def local_sums(self, head: HeadOutput, batch: Batch, memo: Memo) -> Tensor:
        """All sums of this worker's batch, those of the task and the strategy's own, float64, 1-D; see `sums`."""
        return torch.cat([self.task.sums(head.logits, batch), self.sums(head, batch, memo)])

    def branch(self) -> Hashable:
        """The value on which the host's decisions in a step depend; a step recorded as a CUDA graph serves one value."""
        return None

    def memory(self) -> list[Tensor]:
        """Tensors that a forward pass (`transform`, `combine`) changes in place."""
        return []

    def adjust_gradients(self, memo: Memo) -> None:
        """Changes gradients of the global batch, between the backward pass and clipping; by default none.

        All workers hold the same gradients then, and must hold the same ones afterwards.

        Args:
            memo: of `transform`; of a batch that is taken in parts, that of the last one.
        """

    def move(self) -> None:
        """Updates the parameters that the strategy trains by itself, after the backward pass, and clears their gradients."""
        optimizer = self.own_optimizer()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def without_own(self, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """The parameters that `step` does not update: those for the optimizer of a model that contains the strategy.

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

    def observe(self, features: dict[str, Feature], batch: Batch) -> Tensor:
        """Additive sums of a validation batch, float64, 1-D. Without gradient.

        Args:
            features: modality name to the output of its encoder.
            batch: that they were computed from.
        """
        return torch.zeros(0, dtype=torch.float64, device=batch.target.device)

    def end_epoch(self, train: Mapping[str, float], valid: Mapping[str, float], observed: Tensor) -> None:
        """Receives the results of an epoch after validation, the same on all workers.

        Args:
            train: means over the steps, by the names of the log ('train/loss', 'coefficient/text').
            valid: validation loss and metrics.
            observed: the sums of `observe` over the validation split and all workers; empty where it does not observe.
        """

    def measures(self, epoch: int) -> Mapping[str, int | None]:
        """The splits ('train', 'valid') that `measure` gets before an epoch, and the largest number of samples of each.

        None stands for all samples. A smaller number of samples is drawn once for a run.

        Args:
            epoch: that begins, counted from 0.
        """
        return {}

    def measure(self, features: dict[str, Feature], batch: Batch) -> Tensor:
        """K numbers for every sample of a batch [N, K], which `begin_epoch` gets. In evaluation mode, without gradient.

        Args:
            features: modality name to the output of its encoder.
            batch: that they were computed from.
        """
        return torch.zeros(len(batch), 0, dtype=torch.float64, device=batch.target.device)

    def begin_epoch(self, epoch: int, measured: Mapping[str, Tensor]) -> None:
        """Begins an epoch, before its first step, and with it a phase of the training.

        It may change parameters of the network and the state of the strategy in place. All workers call it alike. A run
        that goes on after an epoch calls it as an uninterrupted run does. A run that goes on within an epoch does not call it.

        Args:
            epoch: that begins, counted from 0.
            measured: split to the results of `measure`, float64 [samples, K] on the host, for the splits that `measures`
                names.
        """

    @property
    def begins_epochs(self) -> bool:
        """Whether `begin_epoch` does anything."""
        return type(self).begin_epoch is not Strategy.begin_epoch

    def fresh_optimizer(self, epoch: int) -> bool:
        """Whether the state of the network's optimizer is reset before an epoch.

        A step that is recorded as a CUDA graph remembers where that was, so `branch` changes there too.
        """
        return False

    def plan(self, order: Tensor, *, epoch: int, seed: int, batch_size: int) -> EpochPlan:
        """The samples of an epoch, which may differ from `order`, and values by sample that their batches get.

        It is a function of its arguments and of the state since `begin_epoch`, so any number of workers and a resumed run
        have the same. An epoch keeps its length, on which the schedule and the end of a run depend.

        Args:
            order: rows of the training split, int64 [samples of the epoch].
            epoch: counted from 0.
            seed: of the run.
            batch_size: samples of a global batch.
        """
        return EpochPlan(order, {})

    def rates(self) -> Mapping[str, float]:
        """Modality to the factor, above 0, by which its encoder's learning rate differs from the model's.

        Empty where there is one learning rate. The names stay the same over a run, the factors may change in `end_epoch`,
        and in every step where `rates_by_step` says so.
        """
        return {}

    def own_optimizer(self) -> Optimizer | None:
        """The optimizer of the parameters that the strategy trains by itself; None where there are none."""
        return None
