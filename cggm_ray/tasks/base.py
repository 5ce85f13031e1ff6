"""The task: a loss, utilities and metrics, all formed from sums over samples.

A loss is `combine(sums(logits, batch))`. The sums are additive over micro-batches and workers, `combine` is not linear
in general (a mean, or a pooled Dice). With the sums added over all workers first, every worker computes the loss of the
global batch, whatever its own share of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from cggm_ray.core.batch import Batch, check_takes_batch
from cggm_ray.core.errors import UsageError
from cggm_ray.core.registry import nearest
from cggm_ray.tasks.metrics import Metrics
from cggm_ray.tasks.settings import LossConfig

Utility = Callable[[Tensor, Batch], Tensor]
"""A function of logits and batch that returns two float64 sums, numerator and count; their ratio is eps_m."""


class Targets(NamedTuple):
    """Statistics of the training targets.

    Attributes:
        counts: samples of every class, [C]; empty for a regression.
        mean, deviation: of every value of a regression, [C]; empty for classes.
    """

    counts: Tensor
    mean: Tensor
    deviation: Tensor


class Task(ABC):
    """A kind of prediction, with its loss, utilities and metrics.

    Attributes:
        outputs: C, the number of outputs of the head.
        values: length of the target of a sample, for a task that is not dense.
        n_sums: K, the length of `sums`.
        dense: whether a prediction is a map, too large to keep for every sample.
        utilities: the named utilities of a guide's prediction; larger is better.
        default_utility: the utility of the rules `stable` and `paper`.
        released_utility: the utility that the released code uses.
        selection: the validation metric that chooses the best checkpoint, and which way it improves.
    """

    outputs: int
    values: int = 1
    n_sums: ClassVar[int]
    dense: ClassVar[bool] = False
    utilities: Mapping[str, Utility]
    default_utility: ClassVar[str]
    released_utility: ClassVar[str]
    selection: ClassVar[tuple[str, Literal["min", "max"]]]

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        check_takes_batch(cls.__name__, {name: vars(cls)[name] for name in ("sums", "residuals") if name in vars(cls)})

    @abstractmethod
    def sums(self, logits: Tensor, batch: Batch) -> Tensor:
        """Returns the additive sums of the loss, float64 [K], differentiable in the logits.

        Args:
            logits: [N, C, ...].
            batch: that they were predicted for. Its `sample_weights` say which samples count.
        """

    @abstractmethod
    def combine(self, sums: Tensor) -> Tensor:
        """Returns the scalar loss from the sums [K] of a whole batch."""

    @abstractmethod
    def residuals(self, logits: Tensor, batch: Batch) -> Tensor:
        """Returns d sums_j / d logits for the J sums that depend on the logits.

        Args:
            logits: [N, C, ...].
            batch: see `sums`.

        Returns:
            [J, N, C, ...], the shape of the logits with J in front; differentiable in the logits.
        """

    @abstractmethod
    def sum_slopes(self, sums: Tensor) -> Tensor:
        """Returns d combine / d sums_j for the same J sums, float64 [J]; differentiable in the sums."""

    @abstractmethod
    def metrics(self, device: torch.device | str = "cpu", groups: int | None = None) -> Metrics:
        """Returns a new state of the task's metrics.

        `groups` is the number of volumes in the split, or None if samples stand alone.
        """

    def with_loss(self, settings: LossConfig, targets: Targets | None = None) -> Task:
        """Returns the task with these options of the loss; by default itself, because the loss has no options.

        Args:
            settings: of the run.
            targets: statistics of the training targets; None where the loss does not depend on them.
        """
        return self

    def loss(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Returns the loss of one batch on one worker, for a training loop that has its tensors one by one.

        Args:
            logits: [N, C, ...].
            target: [N, ...].
            weight: [N] or None, see `Batch`.
        """
        return self.combine(self.sums(logits, Batch.of_loop(target, weight=weight)))

    def metric_names(self) -> list[str]:
        """Returns the validation metrics, 'loss' first."""
        # The names do not depend on the samples, so an empty state has them too.
        metrics = self.metrics(groups=1)
        return ["loss", *metrics.compute(torch.ones_like(metrics.sums))]

    def better(self, metric: str) -> Literal["min", "max"]:
        """Returns 'min' or 'max', the direction in which a validation metric improves."""
        name, mode = self.selection
        if metric == name:
            return mode
        return "min" if metric in ("loss", "mae") else "max"

    def utility(self, name: str) -> Utility:
        """Returns the utility of that name.

        Raises:
            UsageError: the task has no such utility, the message lists those it has; or it takes no batch.
        """
        if name not in self.utilities:
            raise UsageError(
                f"utility: {type(self).__name__} has no utility {name!r}{nearest(name, self.utilities)}; "
                f"available: {', '.join(self.utilities)}"
            )
        check_takes_batch(type(self).__name__, {name: self.utilities[name]})
        return self.utilities[name]


def per_sample(batch: Batch, like: Tensor) -> Tensor:
    """Returns the weights of the samples in the type of `like` [N, ...], shaped to multiply it."""
    return batch.sample_weights().to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))
