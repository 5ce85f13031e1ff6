"""The gate: an identity whose backward multiplies by a coefficient (Algorithm 1 of the paper, magnitude).

Scaling the gradient of every parameter of an encoder by B_m is the same as scaling the gradient that flows back into its
output. The gate does the latter, so it acts before any all-reduce and costs one multiplication per modality.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cggm_ray.core.batch import Feature
from cggm_ray.strategies.features import each


def scaled(feature: Feature, scale: Tensor) -> Feature:
    """The same feature, its gradient multiplied by a scalar that is known; every tensor of a tuple by the same.

    Args:
        feature: output of an encoder.
        scale: the coefficient, detached.
    """
    return each(feature, lambda part: _Scale.apply(part, scale))  # type: ignore[no-untyped-call, no-any-return]


class Gates:
    """Gates of one step whose coefficients are not known yet when they are placed; they read them in the backward pass.

    Two cases need them: with several workers a coefficient follows from an all-reduce, and the step has one, after the forward
    pass; and MMPareto's follow from gradients.
    """

    def __init__(self) -> None:
        self._scale_M: Tensor | None = None

    def close(self) -> None:
        """Forgets the coefficients: a backward pass before the next `open` is an error."""
        self._scale_M = None

    def open(self, scale_M: Tensor) -> None:
        """Sets the coefficients [M] of this step."""
        self._scale_M = scale_M.detach()

    def scale(self, index: int) -> Tensor:
        """The coefficient of one modality, a scalar.

        Raises:
            RuntimeError: the backward pass came before the coefficients were set.
        """
        if self._scale_M is None:
            raise RuntimeError("backward before the coefficients are set: call balance.loss(...) in every step")
        return self._scale_M[index]

    def place(self, feature: Feature, index: int) -> Feature:
        """The same feature, its gradient scaled by the coefficient of modality `index`; tuples are gated one by one."""
        return each(feature, lambda part: _Gate.apply(part, self, index))  # type: ignore[no-untyped-call, no-any-return]

    def hook(self, parameters: Iterable[nn.Parameter], index: int) -> None:
        """Scales the gradients of single parameters in place of those of features, before the all-reduce of DDP.

        Args:
            parameters: of one encoder.
            index: of its modality.
        """
        for parameter in parameters:
            parameter.register_hook(lambda grad: grad * self.scale(index).to(grad.dtype))


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feature: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return feature.view_as(feature)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,), (scale,) = grads, ctx.saved_tensors
        return grad * scale.to(grad.dtype), None


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feature: Tensor, gates: Gates, index: int) -> Tensor:
        ctx.gates, ctx.index = gates, index
        return feature.view_as(feature)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        return grad * ctx.gates.scale(ctx.index).to(grad.dtype), None, None
