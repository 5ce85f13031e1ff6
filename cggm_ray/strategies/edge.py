"""CGGM at the edge of the encoders: its two ideas in a form that Adam does not undo.

CGGM (Guo et al., NeurIPS 2024) scales the gradient of each encoder, and turns that of the fused head towards those of the
guides. An optimizer that divides a gradient by its running size, like Adam, takes a scale out again. So here

    loss = task loss + sum_m w_m L_m

where the gradient of L_m, the loss of a guide on the features of encoder m, does flow into the encoder:

- **Magnitude** is the ratio in which the task's and the encoder's own gradient mix. The weights keep the mean `edge_rho` and
  follow CGGM's coefficient, the improvement of the others over that of all,

      w_m = rho M / (M - 1) * sum_(k != m) d_k / sum_k d_k,   d_m = s_m + floor,
      s_m <- a s_m + (1 - a) max(0, 1 - v_m / v'_m),   a = `edge_smoothing`,

  so a modality that improves by itself gets less of a gradient of its own, and one that does not gets more.
- **Direction** is what conflicts at that edge: the own gradient of a sample loses the part that opposes that of the task
  (`cggm_ray.strategies.multiloss`, where the projection is shown).
- **Utility** is measured on held-out samples: v_m is the loss of guide m on the validation split now, v'_m that of the epoch
  before.

Until there are two validations the weights are `edge_rho`, so `edge_rho` 1 starts as `multiloss` with the projection. One
backward pass; the projection concerns single samples and the weights come from losses of all workers, so any number of workers
does the same.

The source is this package: it is a variant under test, of which docs/verdict-registration.md says how it is judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cggm_ray.config.fields import check, option
from cggm_ray.core.reduction import SINGLE_WORKER, Reduce
from cggm_ray.strategies.base import Memo, Strategy
from cggm_ray.strategies.guided import MakeOptimizer
from cggm_ray.strategies.multiloss import MultiLoss
from cggm_ray.strategies.registry import STRATEGIES, Materials, StrategyInfo, StrategyOptions
from cggm_ray.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class EdgeOptions(StrategyOptions):
    """Flags of CGGM at the edge of the encoders."""

    edge_rho: float = option(1.0, "cggm-edge: mean weight of the losses of the guides")
    edge_smoothing: float = option(0.8, "cggm-edge: decay of the moving average of the improvements")
    edge_floor: float = option(
        0.01, "cggm-edge: amount added to every improvement; where none improves weights are equal"
    )
    edge_project: bool = option(
        True, "cggm-edge: remove from a guide's gradient the part that opposes that of the task"
    )

    def __post_init__(self) -> None:
        check(0 < self.edge_rho < float("inf"), self, "edge_rho", "a positive number")
        check(0 <= self.edge_smoothing < 1, self, "edge_smoothing", "a number in [0, 1)")
        check(0 < self.edge_floor < float("inf"), self, "edge_floor", "a positive number")


class Edge(MultiLoss):
    """The task loss and a loss for every modality, whose weights follow improvements on held-out samples.

    Args:
        guides: by modality, at least two.
        task: what is predicted.
        rho: mean of the weights.
        smoothing: decay of the moving average of the improvements, in [0, 1).
        floor: amount added to every improvement, positive.
        optimizer: makes the guides' optimizer from their parameters.
        project: whether conflicting gradients are projected.
        reduce: sums a vector over workers.
    """

    observes = True

    def __init__(
        self,
        guides: Mapping[str, nn.Module],
        *,
        task: Task,
        rho: float,
        smoothing: float,
        floor: float,
        optimizer: MakeOptimizer,
        project: bool = True,
        reduce: Reduce = SINGLE_WORKER,
    ) -> None:
        weights = dict.fromkeys(guides, rho)
        super().__init__(guides, task=task, weights=weights, optimizer=optimizer, project=project, reduce=reduce)
        self._rho, self._smoothing, self._floor = rho, smoothing, floor
        count = len(guides)
        self.register_buffer("weight_M", torch.full((count,), rho, dtype=torch.float64))
        self.register_buffer("gain_M", torch.zeros(count, dtype=torch.float64))
        # Zero before the first validation, which is no reference.
        self.register_buffer("valid_M", torch.zeros(count, dtype=torch.float64))

    weight_M: Tensor
    gain_M: Tensor
    valid_M: Tensor

    def combine(self, task_sums: Tensor, own_sums: Tensor, memo: Memo) -> Tensor:
        """sum_m w_m L_m."""
        losses_M = self.guide_losses(own_sums.reshape(len(self.guides), -1))
        weight_M = self.weight_M.clone()
        self.diagnostics = {"weight": weight_M, "guide_loss": losses_M.detach()}
        return (weight_M * losses_M).sum()

    def end_epoch(self, train: Mapping[str, float], valid: Mapping[str, float], observed: Tensor) -> None:
        """Weights the guides by how much their validation losses improved."""
        now_M = self.observed_losses(observed)
        # A loss that is not a number says nothing, and is no reference for the next one.
        known_M = torch.isfinite(now_M)
        gain_M = (1 - now_M / self.valid_M).clamp(min=0)
        compared_M = known_M & (self.valid_M > 0)
        smoothed_M = self._smoothing * self.gain_M + (1 - self._smoothing) * gain_M
        self.gain_M.copy_(torch.where(compared_M, smoothed_M, self.gain_M))
        self.valid_M.copy_(torch.where(known_M, now_M, self.valid_M))
        self.weight_M.copy_(weights(self.gain_M + self._floor, self._rho))


def weights(improvement_M: Tensor, rho: float) -> Tensor:
    """Returns rho M / (M - 1) * (1 - d_m / sum_k d_k), whose mean is rho, of positive improvements [M]; rho of a single one."""
    count = len(improvement_M)
    if count < 2:
        return torch.full_like(improvement_M, rho)
    return rho * count / (count - 1) * (1 - improvement_M / improvement_M.sum())


def _build(given: Materials[EdgeOptions]) -> Strategy:
    options = given.options
    return Edge(
        given.guides,
        task=given.task,
        rho=options.edge_rho,
        smoothing=options.edge_smoothing,
        floor=options.edge_floor,
        project=options.edge_project,
        optimizer=given.guide_optimizer,
        reduce=given.reduce,
    )


STRATEGIES.register("cggm-edge")(StrategyInfo(build=_build, options=EdgeOptions))
