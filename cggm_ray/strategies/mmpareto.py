"""MMPareto: innocent uni-modal assistance for enhanced multi-modal learning (Wei and Hu, ICML 2024, arXiv 2405.17730).

Every encoder m serves two losses: the fused prediction's and that of a guide on its own features, whose gradient flows into
the encoder here. With g the gradient of the first and u that of the second, over all parameters of the encoder:

    cos(g, u) >= 0:  a = b = 1/2
    cos(g, u) <  0:  a, b >= 0, a + b = 1 that minimise |a g + b u|: a = (|u|^2 - g.u) / |g - u|^2      (Pareto integration)
    h = 2 a g + 2 b u
    gradient of encoder m = gamma * max(1, |g + u| / |h|) * h                                          (magnitude is enhanced)

Neither loss grows along -h: h.g >= 0 and h.u >= 0. Fusion, head and guides keep their own gradients.

The rule is linear in g and u, so it is two coefficients for each encoder, alpha of g and beta of u. They follow from |g|, |u|
and g.u of the global batch: before the backward pass of the step two more run through the encoders, and one all-reduce adds
up their results. These passes also give the gradients g_z and u_z at the feature z of encoder m, so that the step's own
backward pass carries alpha g_z + beta u_z into the encoder when the loss has the further term

    <z, (alpha - 1) g_z + (beta - 1) u_z>    (no gradient flows into the second factor, and the value counts as 0)

The ratio |g + u| / |h| is that of a whole encoder, which keeps the direction of h. The released code
(github.com/GeWu-Lab/MMPareto_ICML2024) takes it for every parameter by itself, which bends it: `mmpareto_norm parameter`. There
the guides share the optimizer of the network, SGD .002 without clipping; `--optim SGD --lr 0.002 --cls_lr 0.002 --clip 0`
gives them the same here. Where g and u cancel to one part in a million, their sum has no direction to speak of and is not
enhanced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from cggm_ray.config.fields import check, one_of, option
from cggm_ray.core.batch import Batch, Feature, HeadOutput
from cggm_ray.core.reduction import SINGLE_WORKER, Reduce, Totals
from cggm_ray.strategies.base import Memo, Strategy
from cggm_ray.strategies.features import check_several
from cggm_ray.strategies.guided import Guided, GuideOutputs
from cggm_ray.strategies.registry import STRATEGIES, Materials, StrategyInfo, StrategyOptions
from cggm_ray.tasks.base import Task
from cggm_ray.tasks.mean import combine_each


@dataclass(frozen=True, kw_only=True)
class MMParetoOptions(StrategyOptions):
    """Options of `mmpareto`."""

    mmpareto_gamma: float = option(1.5, "mmpareto: factor on the gradient of every encoder")
    mmpareto_norm: str = option(
        "encoder", "mmpareto: unit whose gradient magnitude is enhanced: encoder, parameter (released code)"
    )

    def __post_init__(self) -> None:
        check(self.mmpareto_gamma > 0, self, "mmpareto_gamma", "a positive number")
        one_of(self, "mmpareto_norm", ("encoder", "parameter"))


class _Memo(NamedTuple):
    """Of a pass: what the guides said, the tensors of every feature, and factors of single parameters' gradients."""

    outputs: GuideOutputs
    features: list[tuple[Tensor, ...]]
    scales: list[Tensor]


class Products(NamedTuple):
    """|g|^2, |u|^2 and g.u of every encoder, [M] each."""

    gg_M: Tensor
    uu_M: Tensor
    gu_M: Tensor


class Weights(NamedTuple):
    """Factors of g and u, [M] each."""

    fused_M: Tensor
    guided_M: Tensor


class Gradients(NamedTuple):
    """g and u of the parameters of all encoders, flat, in float64; and of this worker at the tensors of the features."""

    g: Tensor
    u: Tensor
    at_features: list[tuple[Tensor, Tensor]]


def pareto_shares(products: Products) -> Weights:
    """2 a and 2 b: the rule at the top of this file before magnitudes are enhanced."""
    gg, uu, gu = products
    apart = (gg + uu - 2 * gu).clamp(min=1e-300)
    a = torch.where(gu < 0, (uu - gu) / apart, 0.5)
    return Weights(2 * a, 2 * (1 - a))


def pareto_weights(products: Products, gamma: float) -> Weights:
    """Factors of g and u by the rule at the top of this file, with enhanced magnitudes."""
    gg, uu, gu = products
    apart = (gg + uu - 2 * gu).clamp(min=1e-300)
    a = torch.where(gu < 0, (uu - gu) / apart, 0.5)
    b = 1 - a
    h = 2 * (a**2 * gg + b**2 * uu + 2 * a * b * gu).clamp(min=0).sqrt()
    together = (gg + uu + 2 * gu).clamp(min=0).sqrt()
    cancelled = h <= 1e-6 * (gg.sqrt() + uu.sqrt())
    scale = gamma * torch.where(cancelled, 1.0, together / h.clamp(min=1e-300)).clamp(min=1)
    return Weights(2 * scale * a, 2 * scale * b)


class MMPareto(Guided):
    """MMPareto for a model and a loop of any kind.

    Args:
        guides: uni-modal head by modality, from the feature of its modality to a `HeadOutput`.
        encoders: by modality; their parameters are those whose gradients are compared.
        task: what is predicted.
        gamma: factor on the gradient of every encoder.
        by_parameter: whether magnitudes are enhanced parameter by parameter, in `adjust`.
        lr: learning rate of the guides, if no `optimizer` is given.
        optimizer: makes the guides' optimizer from their parameters; default Adam.
        reduce: sums a vector over workers.

    Raises:
        UsageError: fewer than two guides.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from cggm_ray import Classification, HeadOutput
        >>> from cggm_ray.strategies import MMPareto
        >>> class Guide(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.head = nn.Linear(8, 3)
        ...     def forward(self, feature):
        ...         return HeadOutput(self.head(feature), feature)
        >>> encoders = nn.ModuleDict({"image": nn.Linear(5, 8), "sound": nn.Linear(7, 8)})
        >>> head, task = nn.Linear(16, 3), Classification(3)
        >>> balance = MMPareto({"image": Guide(), "sound": Guide()}, encoders, task=task)
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
        encoders: Mapping[str, nn.Module],
        *,
        task: Task,
        gamma: float = 1.5,
        by_parameter: bool = False,
        lr: float = 5e-4,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
        reduce: Reduce = SINGLE_WORKER,
    ) -> None:
        check_several(guides)
        make = optimizer or (lambda parameters: Adam(parameters, lr=lr))
        super().__init__(guides, task=task, optimizer=make, detach=False, reduce=reduce)
        self.gamma = gamma
        self.adjusts = by_parameter
        # Lists of parameters that belong to others: nn.Module does not register what is in a list.
        self._parameters_by_encoder = [
            [parameter for parameter in encoders[name].parameters() if parameter.requires_grad] for name in guides
        ]

    def transform(
        self, features: dict[str, Feature], batch: Batch, totals: Totals | None = None
    ) -> tuple[dict[str, Feature], Memo]:
        """Runs the guides; the features stay as they are."""
        tensors = [_tensors(features[name]) for name in self.guides]
        return features, _Memo(self.run_guides(features, batch), tensors, [])

    def sums(self, head: HeadOutput, batch: Batch, memo: Memo) -> Tensor:
        """[guide losses M K | samples that have the modality M]."""
        counts = torch.stack([counted.sample_weights().sum() for _, counted in memo.outputs])
        return torch.cat([self.guide_sums(memo.outputs), counts])

    def combine(self, task_sums: Tensor, own_sums: Tensor, memo: Memo) -> Tensor:
        """Compares the two gradients of every encoder; returns the guides' losses and the term that weights gradients."""
        m, k = len(self.guides), self.task.n_sums
        seen_M = own_sums[m * k :].detach() > 0
        # A modality that no sample has gives 0 / 0; ones in its place keep the gradients of the others finite.
        guide_sums_MK = torch.where(seen_M[:, None], own_sums[: m * k].reshape(m, k), 1.0)
        losses_M = torch.where(seen_M, combine_each(self.task, guide_sums_MK), 0.0)
        gradients = self._gradients(self.task.combine(task_sums), losses_M.sum(), memo.features)
        products = self._products(gradients)
        weights = pareto_weights(products, self.gamma)
        if self.adjusts:
            weights = pareto_shares(products)
            memo.scales[:] = self._scales(gradients, weights)
        self.diagnostics = {
            "coefficient": weights.fused_M,
            "guide_coefficient": weights.guided_M,
            "cosine": products.gu_M / (products.gg_M * products.uu_M).sqrt().clamp(min=1e-300),
            "guide_loss": losses_M.detach(),
        }
        return losses_M.sum() + weighting_term(memo.features, gradients.at_features, weights)

    @torch.no_grad()
    def adjust_gradients(self, memo: Memo) -> None:
        """Enhances the magnitudes of single parameters' gradients."""
        parameters = [parameter for group in self._parameters_by_encoder for parameter in group]
        for parameter, scale in zip(parameters, memo.scales, strict=bool(memo.scales)):
            if parameter.grad is not None:
                parameter.grad.mul_(scale.to(parameter.grad.dtype))

    def _scales(self, gradients: Gradients, weights: Weights) -> list[Tensor]:
        """Of every parameter gamma max(1, |g + u| / |h|), for h without any factor."""
        sizes = [[parameter.numel() for parameter in group] for group in self._parameters_by_encoder]
        flat = [size for group in sizes for size in group]
        owners = [number for number, group in enumerate(sizes) for _ in group]
        parts = zip(gradients.g.split(flat), gradients.u.split(flat), owners, strict=True)
        found = []
        for g, u, number in parts:
            h = weights.fused_M[number] * g + weights.guided_M[number] * u
            # A parameter whose gradients cancel has no direction, and one that has none needs no factor.
            ratio = torch.where(h.norm() > 0, (g + u).norm() / h.norm().clamp(min=1e-300), 1.0)
            found.append(self.gamma * ratio.clamp(min=1))
        return found

    def _gradients(self, task_loss: Tensor, guide_loss: Tensor, features: Sequence[tuple[Tensor, ...]]) -> Gradients:
        """Of the global batch, from one backward pass of each loss through the encoders."""
        parameters = [parameter for group in self._parameters_by_encoder for parameter in group]
        inputs = [*parameters, *(tensor for tensors in features for tensor in tensors)]
        flat, at_features = [], []
        for loss in (task_loss, guide_loss):
            found = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)
            grads = [torch.zeros_like(x) if grad is None else grad for x, grad in zip(inputs, found, strict=True)]
            flat += [grad.flatten() for grad in grads[: len(parameters)]]
            at_features.append(grads[len(parameters) :])
        # The losses are global and carry the gradient of this worker's share, times the number of workers.
        total = self.reduce(torch.cat([*flat, torch.ones_like(flat[0][:1])]))
        g, u = (total[:-1] / total[-1]).double().chunk(2)
        return Gradients(g, u, list(zip(*at_features, strict=True)))

    def _products(self, gradients: Gradients) -> Products:
        g, u, _ = gradients
        sizes = [sum(parameter.numel() for parameter in group) for group in self._parameters_by_encoder]
        pairs = list(zip(g.split(sizes), u.split(sizes), strict=True))
        return Products(
            torch.stack([g_m @ g_m for g_m, _ in pairs]),
            torch.stack([u_m @ u_m for _, u_m in pairs]),
            torch.stack([g_m @ u_m for g_m, u_m in pairs]),
        )


def weighting_term(
    features: Sequence[tuple[Tensor, ...]], at_features: Sequence[tuple[Tensor, Tensor]], weights: Weights
) -> Tensor:
    """A scalar whose gradient at every feature is (alpha - 1) g + (beta - 1) u; with task and guide losses, alpha g + beta u.

    Args:
        features: by modality, one or several tensors each.
        at_features: g and u at each of these tensors, one tensor after the other.
        weights: alpha and beta.
    """
    parts = zip(
        ((number, tensor) for number, tensors in enumerate(features) for tensor in tensors), at_features, strict=True
    )
    total = weights.fused_M.new_zeros(())
    for (number, tensor), (g, u) in parts:
        missing = (weights.fused_M[number] - 1) * g + (weights.guided_M[number] - 1) * u
        total = total + ((tensor - tensor.detach()) * missing.detach()).sum()
    return total


def _tensors(feature: Feature) -> tuple[Tensor, ...]:
    """The tensors of a feature that have a gradient."""
    tensors = feature if isinstance(feature, tuple) else (feature,)
    return tuple(tensor for tensor in tensors if tensor.requires_grad)


def _build(given: Materials[MMParetoOptions]) -> Strategy:
    return MMPareto(
        given.guides,
        dict(given.net.encoders.items()),
        task=given.task,
        gamma=given.options.mmpareto_gamma,
        by_parameter=given.options.mmpareto_norm == "parameter",
        optimizer=given.guide_optimizer,
        reduce=given.reduce,
    )


RECIPE = {
    **{"optim": "SGD", "lr": 2e-3, "cls_lr": 2e-3, "weight_decay": 1e-4, "cls_weight_decay": 1e-4, "clip": 0.0},
    **{"batch_size": 64, "num_epochs": 50, "mmpareto_norm": "parameter"},
}
STRATEGIES.register("mmpareto")(StrategyInfo(build=_build, options=MMParetoOptions, whole_batch=True, recipe=RECIPE))
