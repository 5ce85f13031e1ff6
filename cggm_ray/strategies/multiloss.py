"""Training with a loss for every modality: the plain control of all strategies that give encoders something of their own.

    loss = task loss + sum_m w_m L_m

L_m is the loss of a guide on the features of encoder m, over the samples that have the modality, and its gradient flows into
the encoder; the weights w_m are constant. This is the baseline that MMPareto (Wei and Hu, ICML 2024) calls uniform, and
`gblend`, `mlb` and `mmpareto` differ from it by how they weight.

With `multiloss_project` a guide may not work against the task: at the edge of the encoder, where both gradients live in the
same space, the gradient u_i of the weighted guide's loss loses what opposes the gradient g_i of the task loss, sample by
sample,

    gradient into h_m,i = g_i + u_i - min(0, <u_i, g_i>) / |g_i|^2 * g_i

(the projection of Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, of one of the two and for each sample).
The products are over all entries of a sample's feature. As it concerns single samples, it needs no communication; and as it
changes the ratio in which two gradients mix, an optimizer that divides by the size of a gradient, like Adam, does not undo it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cggm_ray.config.fields import check, option
from cggm_ray.core.arithmetic import in_precision
from cggm_ray.core.batch import Batch, Feature
from cggm_ray.core.errors import UsageError
from cggm_ray.core.reduction import SINGLE_WORKER, Reduce, Totals
from cggm_ray.strategies.base import Memo, Strategy
from cggm_ray.strategies.by_modality import numbers_by_modality
from cggm_ray.strategies.guided import Guided, MakeOptimizer
from cggm_ray.strategies.registry import STRATEGIES, Materials, Setting, StrategyInfo, StrategyOptions
from cggm_ray.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class MultiLossOptions(StrategyOptions):
    """Flags of training with a loss for every modality."""

    multiloss_weight: float = option(1.0, "multiloss: weight of the loss of every guide")
    multiloss_weights: tuple[str, ...] | None = option(
        None, "multiloss: the same by guide: text=1,audio=0.5, or one number for each, in their order"
    )
    multiloss_project: bool = option(
        False, "multiloss: remove from a guide's gradient the part that opposes that of the task, sample by sample"
    )

    def __post_init__(self) -> None:
        check(0 <= self.multiloss_weight < float("inf"), self, "multiloss_weight", "zero or a positive number")


class MultiLoss(Guided):
    """The task loss and a loss for every modality, with constant weights.

    Args:
        guides: by modality.
        task: what is predicted.
        weights: modality to the weight of its guide's loss.
        optimizer: makes the guides' optimizer from their parameters.
        project: whether conflicting gradients are projected.
        reduce: sums a vector over workers.

    Raises:
        UsageError: no guides.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from cggm_ray import Classification, HeadOutput
        >>> from cggm_ray.strategies import MultiLoss
        >>> class Guide(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.head = nn.Linear(8, 3)
        ...     def forward(self, feature):
        ...         return HeadOutput(self.head(feature), feature)
        >>> encoders = nn.ModuleDict({"image": nn.Linear(5, 8), "sound": nn.Linear(7, 8)})
        >>> head, task = nn.Linear(16, 3), Classification(3)
        >>> guides, weights = {"image": Guide(), "sound": Guide()}, {"image": 1.0, "sound": 0.5}
        >>> balance = MultiLoss(guides, task=task, weights=weights, optimizer=torch.optim.Adam)
        >>> inputs, target = {"image": torch.randn(4, 5), "sound": torch.randn(4, 7)}, torch.tensor([0, 1, 2, 0])
        >>> features = balance.modulate({name: encoders[name](inputs[name]) for name in inputs}, target)
        >>> hidden = torch.cat(list(features.values()), 1)
        >>> logits = head(hidden)
        >>> loss = task.loss(logits, target) + balance.loss(logits, hidden, target)
        >>> loss.backward(); balance.step()
    """

    beside_fusion = True

    def __init__(
        self,
        guides: Mapping[str, nn.Module],
        *,
        task: Task,
        weights: Mapping[str, float],
        optimizer: MakeOptimizer,
        project: bool = False,
        reduce: Reduce = SINGLE_WORKER,
    ) -> None:
        if not guides:
            raise UsageError("modulation: multiloss needs a guide for every modality")
        super().__init__(guides, task=task, optimizer=optimizer, detach=False, reduce=reduce)
        self.weights = [weights[name] for name in guides]
        self.project = project

    def transform(
        self, features: dict[str, Feature], batch: Batch, totals: Totals | None = None
    ) -> tuple[dict[str, Feature], Memo]:
        """Runs the guides, whose outputs are the memo; features are parted where gradients are projected."""
        if not self.project:
            return super().transform(features, batch, totals)
        parted = {name: part(feature) for name, feature in features.items()}
        memo = self.run_guides({name: for_guide for name, (_, for_guide) in parted.items()}, batch)
        return {name: for_fusion for name, (for_fusion, _) in parted.items()}, memo

    def combine(self, task_sums: Tensor, own_sums: Tensor, memo: Memo) -> Tensor:
        """sum_m w_m L_m."""
        losses_M = self.guide_losses(own_sums.reshape(len(self.guides), -1))
        self.diagnostics = {"guide_loss": losses_M.detach()}
        return sum((w * loss for w, loss in zip(self.weights, losses_M, strict=True)), own_sums.new_zeros(()))


def part(feature: Feature) -> tuple[Feature, Feature]:
    """The feature twice, for the fusion and for a guide, whose gradient is projected where it opposes the fusion's."""
    tensors = feature if isinstance(feature, tuple) else (feature,)
    found = _Part.apply(*tensors)  # type: ignore[no-untyped-call]
    halves = tuple(found[: len(tensors)]), tuple(found[len(tensors) :])
    return halves if isinstance(feature, tuple) else (halves[0][0], halves[1][0])


class _Part(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in (*tensors, *tensors))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        half = len(grads) // 2
        # In full precision, as all sums; a product of numbers in bfloat16 has two digits.
        fused, guided = ([_wide(grad) for grad in grads[begin : begin + half]] for begin in (0, half))
        product_N = torch.stack([_by_sample(u * g) for u, g in zip(guided, fused, strict=True)]).sum(0)
        square_N = torch.stack([_by_sample(g * g) for g in fused]).sum(0)
        opposed_N = product_N.clamp(max=0) / torch.where(square_N > 0, square_N, 1.0)
        return tuple(
            (g + u - opposed_N.reshape(-1, *[1] * (g.ndim - 1)) * g).to(grad.dtype)
            for g, u, grad in zip(fused, guided, grads[:half], strict=True)
        )


def _wide(grad: Tensor) -> Tensor:
    return in_precision(grad)


def _by_sample(products: Tensor) -> Tensor:
    return products.flatten(1).sum(1)


def _weights(given: Setting[MultiLossOptions]) -> dict[str, float]:
    entries = given.options.multiloss_weights
    if entries is None:
        return dict.fromkeys(given.modalities, given.options.multiloss_weight)
    return numbers_by_modality("multiloss_weights", entries, given.modalities, zero=True)


def _build(given: Materials[MultiLossOptions]) -> Strategy:
    return MultiLoss(
        given.guides,
        task=given.task,
        weights=_weights(given),
        optimizer=given.guide_optimizer,
        project=given.options.multiloss_project,
        reduce=given.reduce,
    )


STRATEGIES.register("multiloss")(StrategyInfo(build=_build, options=MultiLossOptions, check=_weights))
