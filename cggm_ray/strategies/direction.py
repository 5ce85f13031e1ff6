"""Direction rules: how the fused gradient is steered (equations 12 and 13).

    L_gm = (1 / M) sum_m ( |B_m| - B_m cos(G_F, G_m) )

The heads F and f_m are linear, so their weight gradients are `residual^T hidden`, a closed form that is differentiable
without a second backward pass.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cggm_ray.core.arithmetic import in_precision
from cggm_ray.core.batch import Batch, HeadOutput
from cggm_ray.core.errors import UsageError
from cggm_ray.strategies.guided import GuideOutputs
from cggm_ray.tasks.base import Task
from cggm_ray.tasks.mean import slopes_of_each

LEAST_NORM = 1e-8
"""A shorter gradient counts as one of this length, as in `torch.cosine_similarity`."""
Predicted = tuple[HeadOutput, Batch]
"""Output of a head, and the batch that it was predicted for, whose weights say which samples count."""


class Term(NamedTuple):
    """Value of a direction rule in one step.

    Attributes:
        loss: L_gm of this step's loss, a scalar with gradient.
        cosine_M: the cosines, detached; None where the rule forms none.
    """

    loss: Tensor
    cosine_M: Tensor | None


def weight_gradient_sums(task: Task, head: HeadOutput, batch: Batch) -> Tensor:
    """The parts of the gradient of a head's weight that are additive over samples, float64 [J, C, D].

    Contract it with `Task.sum_slopes` to get dL/dW; see `weight_gradient_sums_of_each`.
    """
    return weight_gradient_sums_of_each(task, head, batch, 1)[0]


def weight_gradient_sums_of_each(task: Task, head: HeadOutput, batch: Batch, heads: int) -> Tensor:
    """The parts of the gradients of the weights of several heads that are additive over samples.

    Args:
        task: gives the residuals.
        head: output of the fused head, or of guides, with the samples of the first one first.
        batch: that it was predicted for.
        heads: S.

    Returns:
        float64 [S, J, C, D], differentiable in logits and hidden.

    Raises:
        UsageError: the pass has no gradient, and the network does not say how it resizes its logits.
    """
    logits = in_precision(head.logits)
    residuals = task.residuals(logits, batch)
    if head.raw is not None:
        residuals = torch.stack([_pull_back(*_resizing(head), residual) for residual in residuals])
    hidden = head.hidden.to(residuals.dtype)
    # p runs over pixels; a prediction per sample is one pixel.
    residuals_JSNCp = residuals.reshape(len(residuals), heads, -1, residuals.shape[2], math.prod(residuals.shape[3:]))
    hidden_SNDp = hidden.reshape(heads, -1, hidden.shape[1], math.prod(hidden.shape[2:]))
    return torch.einsum("jsncp,sndp->sjcd", residuals_JSNCp, hidden_SNDp).double()


def _resizing(head: HeadOutput) -> tuple[Tensor, Tensor]:
    """Logits and the output of the linear layer that they were resized from, with a graph between them."""
    assert head.raw is not None
    if head.logits.requires_grad:
        return head.logits, head.raw
    if head.resize is None:
        raise UsageError(
            "accumulate: parts of a batch need HeadOutput.resize of a network that resizes its logits; expected it beside raw"
        )
    with torch.enable_grad():
        raw = head.raw.detach().requires_grad_()
        return head.resize(raw), raw


def _pull_back(logits: Tensor, raw: Tensor, residual: Tensor) -> Tensor:
    """Residual at the output of the linear layer, through the resizing that lies between it and the logits."""
    (pulled,) = torch.autograd.grad(
        logits, raw, residual.to(logits.dtype), create_graph=residual.requires_grad, retain_graph=True
    )
    return pulled.to(residual.dtype)


def steering_loss(coefficient_M: Tensor, cosine_M: Tensor) -> Tensor:
    """L_gm, equation 13: (1 / M) sum_m ( |B_m| - B_m cos_m )."""
    return (coefficient_M.abs() - coefficient_M * cosine_M).mean()


class DirectionRule(nn.Module):
    """A rule for the direction term.

    Args:
        task: what is predicted.
        head_weight: W_F, [C, D, ...].
        guide_weights: W_m by modality, of the same shape.
    """

    def __init__(self, *, task: Task, head_weight: Tensor | None, guide_weights: Sequence[Tensor] | None) -> None:
        super().__init__()
        self.task = task
        self.modalities = 0 if guide_weights is None else len(guide_weights)

    def sums(self, fused: Predicted, guides: GuideOutputs) -> Tensor:
        """Additive sums that the rule needs from this step, float64, 1-D.

        Args:
            fused: of the fused head.
            guides: of every guide.
        """
        return torch.zeros(0, dtype=torch.float64, device=fused[0].logits.device)

    @abstractmethod
    def forward(self, own_sums: Tensor, task_sums: Tensor, guide_sums_MK: Tensor, coefficient_M: Tensor) -> Term:
        """L_gm from the sums of the global batch.

        Args:
            own_sums: of `sums`, 1-D.
            task_sums: of the loss of the fused head, [K].
            guide_sums_MK: of the losses of the guides.
            coefficient_M: B_m, the weight of each modality.
        """

    @torch.no_grad()
    def move(self) -> None:
        """Ends a step, after its backward pass: takes over what the rule remembers for the next one."""


class NoDirection(DirectionRule):
    """`off`: no direction term."""

    def forward(self, own_sums: Tensor, task_sums: Tensor, guide_sums_MK: Tensor, coefficient_M: Tensor) -> Term:
        """Returns a term of 0."""
        return Term(task_sums.new_zeros(()), None)


class GradientDirection(DirectionRule):
    """`gradient`: cosines between the gradients of the head's weight and of the guides' weights, in the same step."""

    def sums(self, fused: Predicted, guides: GuideOutputs) -> Tensor:
        """G_F with gradient and G_m without, [(1 + M) J C D].

        Raises:
            UsageError: the heads of a guide and of the network have weights of different shape.
        """
        of_fused = weight_gradient_sums(self.task, *fused)
        with torch.no_grad():
            if guides.joined is not None:
                of_guides = weight_gradient_sums_of_each(self.task, *guides.joined, len(guides)).unbind()
            else:
                of_guides = tuple(weight_gradient_sums(self.task, *guide) for guide in guides)
        for of_guide in of_guides:
            if of_guide.shape != of_fused.shape:
                raise UsageError(
                    f"guide: its head's weight has shape {list(of_guide.shape[1:])}, the fused head's "
                    f"{list(of_fused.shape[1:])}; the direction term needs them equal"
                )
        return torch.stack([of_fused, *of_guides]).flatten()

    def forward(self, own_sums: Tensor, task_sums: Tensor, guide_sums_MK: Tensor, coefficient_M: Tensor) -> Term:
        """Returns L_gm of this step, with the cosines of the gradients."""
        of_guides = slopes_of_each(self.task, guide_sums_MK.detach())
        slopes = torch.cat([self.task.sum_slopes(task_sums)[None], of_guides])
        parts = own_sums.reshape(*slopes.shape, -1)
        gradients = torch.einsum("mj,mjw->mw", slopes, parts)
        # Only the fused gradient has a gradient of its own.
        fused_W, guides_MW = gradients[0], gradients[1:].detach()
        units_MW = guides_MW / torch.linalg.vector_norm(guides_MW, dim=1, keepdim=True).clamp(min=LEAST_NORM)
        cosine_M = units_MW @ (fused_W / torch.linalg.vector_norm(fused_W).clamp(min=LEAST_NORM))
        return Term(steering_loss(coefficient_M, cosine_M), cosine_M.detach())


class ReleasedDirection(DirectionRule):
    """`released`: cosines between the weights W_F and W_m, added to the loss of the next step.

    The released code forms L_gm after the backward pass of step t and adds it, with its graph, to the loss of step t + 1.
    Its only lasting effect is a fixed gradient on W_F, taken at the weights of step t; the buffers hold that gradient and
    the value until they are used. `forward` writes other buffers, which `move` copies: a compiled step may read a buffer that
    it writes as late as in its backward pass, and would find the new value there.

    Raises:
        UsageError: the weights of the head or of the guides are not given.
    """

    def __init__(self, *, task: Task, head_weight: Tensor | None, guide_weights: Sequence[Tensor] | None) -> None:
        super().__init__(task=task, head_weight=head_weight, guide_weights=guide_weights)
        if head_weight is None or guide_weights is None:
            raise UsageError("direction: 'released' compares weights; pass head= and guides with a .head")
        # In a tuple, so that nn.Module does not register parameters that belong to others a second time.
        self._weights = (head_weight, tuple(guide_weights))
        self.register_buffer("pending_value", torch.zeros((), dtype=torch.float64))
        self.register_buffer("pending_gradient", torch.zeros_like(head_weight))
        # Not saved: they are known between `forward` and `move` alone.
        self.register_buffer("next_value", torch.zeros((), dtype=torch.float64), persistent=False)
        self.register_buffer("next_gradient", torch.zeros_like(head_weight), persistent=False)

    pending_value: Tensor
    pending_gradient: Tensor
    next_value: Tensor
    next_gradient: Tensor

    def forward(self, own_sums: Tensor, task_sums: Tensor, guide_sums_MK: Tensor, coefficient_M: Tensor) -> Term:
        """Returns L_gm of the step before, with the cosines of the weights in this step."""
        head_weight, guide_weights = self._weights
        # Value of the last step's term, and its gradient at the weights of that step. The clones keep the graph of this step
        # apart from the buffers, which a step that is taken back writes.
        slope = self.pending_gradient.clone()
        loss = self.pending_value.clone() + (slope * (head_weight - head_weight.detach())).sum()

        with torch.no_grad():
            fused_W = head_weight.detach().flatten()
            guides_MW = torch.stack([weight.detach().flatten() for weight in guide_weights])
            unit_W = fused_W / fused_W.norm()
            cosine_M = torch.cosine_similarity(guides_MW, fused_W, dim=1)
            # d cos_m / d W_F, in the plane across W_F.
            units_MW = guides_MW / guides_MW.norm(dim=1, keepdim=True)
            slope_MW = (units_MW - cosine_M[:, None] * unit_W) / fused_W.norm()
            gradient_W = -(coefficient_M[:, None].to(slope_MW.dtype) * slope_MW).mean(0)
            self.next_value.copy_(steering_loss(coefficient_M, cosine_M))
            self.next_gradient.copy_(gradient_W.view_as(head_weight))
        return Term(loss, cosine_M)

    @torch.no_grad()
    def move(self) -> None:
        """Takes over the value and the gradient of the step that ends."""
        self.pending_value.copy_(self.next_value)
        self.pending_gradient.copy_(self.next_gradient)


DIRECTION_RULES: dict[str, type[DirectionRule]] = {
    "gradient": GradientDirection,
    "released": ReleasedDirection,
    "off": NoDirection,
}
"""Rules by the name that `--direction` takes."""
