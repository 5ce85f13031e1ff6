"""G-Blending: Wang, Tran and Feiszli, "What Makes Training Multi-Modal Classification Networks Hard?" (CVPR 2020).

The loss is a blend of the multimodal loss and one loss for each modality alone (section 3.2),

    L_blend = sum_k w_k L_k,   k over the fused head and the M guides, whose gradient does flow into the encoders,

with weights that minimise the overfitting-to-generalisation ratio (OGR). Between two checkpoints, n epochs apart, let

    O_k = (L*_k - L_k)(N + n) - (L*_k - L_k)(N),   the growth of the gap between validation and training loss,
    G_k = L*_k(N) - L*_k(N + n),                   the gain on validation, which stands for the true loss L*.

The best weights are w_k = (1 / Z) G_k / O_k^2 with Z = sum_k G_k / O_k^2 (proposition 1 and algorithm 1): a loss by which
the network generalises counts, one by which it overfits does not. Online G-Blend estimates them anew every
`gblend_super_epoch` epochs.

What is not the paper's:
- The paper trains copies of the network, one a loss, for each estimate. Here the losses of the common training are taken:
  nothing is trained twice. The first super-epoch, before which nothing is known, has equal weights.
- G_k below 0 counts as 0, and every weight is at least `gblend_floor`: a guide without any weight would not learn, and
  could not be measured again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cggm_ray.config.fields import at_least, check, option
from cggm_ray.core.errors import UsageError
from cggm_ray.core.reduction import SINGLE_WORKER, Reduce
from cggm_ray.strategies.base import Memo, Strategy
from cggm_ray.strategies.guided import Guided, MakeOptimizer
from cggm_ray.strategies.registry import STRATEGIES, Materials, StrategyInfo, StrategyOptions
from cggm_ray.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class GBlendOptions(StrategyOptions):
    """Flags of G-Blending."""

    gblend_super_epoch: int = option(5, "gblend: epochs between two estimates of the weights")
    gblend_floor: float = option(0.01, "gblend: least weight of a loss, before the weights are made to sum to 1")

    def __post_init__(self) -> None:
        at_least(self, "gblend_super_epoch", 1)
        check(0 <= self.gblend_floor < 1, self, "gblend_floor", "a number in [0, 1)")


class GBlending(Guided):
    """Blends the loss of the fused head with those of the guides by how well each generalises.

    Index 0 of all vectors [1 + M] is the fused head.

    Args:
        guides: by modality.
        task: what is predicted.
        super_epoch: epochs between two estimates; the first reference is the end of the first epoch.
        floor: least weight of a loss, before the weights are made to sum to 1.
        optimizer: makes the guides' optimizer from their parameters.
        reduce: sums a vector over workers.

    Raises:
        UsageError: no guides.
    """

    observes = True

    def __init__(
        self,
        guides: Mapping[str, nn.Module],
        *,
        task: Task,
        super_epoch: int,
        floor: float,
        optimizer: MakeOptimizer,
        reduce: Reduce = SINGLE_WORKER,
    ) -> None:
        if not guides:
            raise UsageError("modulation: gblend needs a guide for every modality")
        super().__init__(guides, task=task, optimizer=optimizer, detach=False, reduce=reduce)
        self._super_epoch, self._floor = super_epoch, floor
        losses = 1 + len(guides)
        self.register_buffer("weight_L", torch.full((losses,), 1 / losses, dtype=torch.float64))
        # Of the running epoch.
        self.register_buffer("seen_LK", torch.zeros(losses, task.n_sums, dtype=torch.float64))
        # Losses at the end of the epoch from which the next estimate is taken.
        self.register_buffer("train_L", torch.zeros(losses, dtype=torch.float64))
        self.register_buffer("valid_L", torch.zeros(losses, dtype=torch.float64))
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))

    weight_L: Tensor
    seen_LK: Tensor
    train_L: Tensor
    valid_L: Tensor
    epochs: Tensor

    def combine(self, task_sums: Tensor, own_sums: Tensor, memo: Memo) -> Tensor:
        """The blend minus the task loss, to which it is added: (w_0 - 1) L_0 + sum_m w_m L_m."""
        sums_MK = own_sums.reshape(len(self.guides), -1)
        self.seen_LK.add_(torch.cat([task_sums[None], sums_MK]).detach())
        weight_L = self.weight_L.clone()
        losses_M = self.guide_losses(sums_MK)
        self.diagnostics = {
            "weight": weight_L[1:],
            "fused_weight": weight_L[0],
            "guide_loss": losses_M.detach(),
        }
        return (weight_L[0] - 1) * self.task.combine(task_sums) + (weight_L[1:] * losses_M).sum()

    def memory(self) -> list[Tensor]:
        """The sums of the running epoch."""
        return [self.seen_LK]

    def end_epoch(self, train: Mapping[str, float], valid: Mapping[str, float], observed: Tensor) -> None:
        """Estimates the weights where a super-epoch ends; the first epoch only gives the reference."""
        if int(self.epochs) % self._super_epoch == 0:
            fused = torch.full((1,), valid["loss"], dtype=torch.float64, device=observed.device)
            valid_L = torch.cat([fused, self.observed_losses(observed)])
            train_L = self.guide_losses(self.seen_LK)
            if int(self.epochs):
                self.weight_L.copy_(
                    blend(self.train_L, train_L, self.valid_L, valid_L, floor=self._floor, before=self.weight_L)
                )
            # A validation that overflowed is no reference; with none before it, it stands for one that is not known.
            taken = torch.isfinite(torch.cat([train_L, valid_L])).all() | (self.epochs == 0)
            self.train_L.copy_(torch.where(taken, train_L, self.train_L))
            self.valid_L.copy_(torch.where(taken, valid_L, self.valid_L))
        self.epochs += 1
        self.seen_LK.zero_()


def blend(
    train_before: Tensor, train_now: Tensor, valid_before: Tensor, valid_now: Tensor, *, floor: float, before: Tensor
) -> Tensor:
    """The weights [1 + M] from losses at two times; those before where nothing is gained or a loss is not finite."""
    gain = (valid_before - valid_now).clamp(min=0)
    overfitting = (valid_now - train_now) - (valid_before - train_before)
    # A gap that does not grow at all would have an infinite weight.
    ratio = gain / overfitting.square().clamp(min=1e-12)
    total = ratio.sum()
    if not bool(total > 0) or not bool(total.isfinite()):
        return before
    weight = (ratio / total).clamp(min=floor)
    return weight / weight.sum()


def _build(given: Materials[GBlendOptions]) -> Strategy:
    return GBlending(
        given.guides,
        task=given.task,
        super_epoch=given.options.gblend_super_epoch,
        floor=given.options.gblend_floor,
        optimizer=given.guide_optimizer,
        reduce=given.reduce,
    )


STRATEGIES.register("gblend")(StrategyInfo(build=_build, options=GBlendOptions, validates=True))
