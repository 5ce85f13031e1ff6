"""Equal modules, one for each modality, as one call with their weights side by side.

A GPU then starts one kernel where it would start one for each modality. The modules are made of the layers of this file, which
take the weights of one module, as torch's own do, or those of S modules: then every parameter has S in front, and an input
has the samples of the first module first, then those of the second, [S N, ...].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST_ROWS = 256
"""Rows that a part of a weight's gradient has at least. On an H200 smaller parts gain nothing, and larger ones take longer."""


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Returns `F.linear` of one module, or of each of several.

    Args:
        x: [N, ..., D], or [S N, ..., D].
        weight: [C, D], or [S, C, D].
        bias: [C], or [S, C].
    """
    if weight.ndim == 2:
        return F.linear(x, weight, bias)
    if torch.is_autocast_enabled(x.device.type):
        # As autocast does for `F.linear`; the backward pass, which runs without it, then has the same type.
        half = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(half), weight.to(half), bias.to(half)
    copies, outputs, width = weight.shape
    y_SRC: Tensor = _Linears.apply(x.reshape(copies, -1, width), weight, bias)  # type: ignore[no-untyped-call]
    return y_SRC.view(*x.shape[:-1], outputs)


class Linear(nn.Linear):
    """A linear layer with a bias, of one module or of several."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, ..., D] to [N, ..., C]."""
        return linear(x, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """A layer normalisation over the last axis, of one module or of several."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, ..., D] to the same shape."""
        if self.weight.ndim == 1:
            return super().forward(x)
        rows_SRD = F.layer_norm(x, self.normalized_shape, eps=self.eps).reshape(len(self.weight), -1, x.shape[-1])
        y_SRD: Tensor = _Affine.apply(rows_SRD, self.weight, self.bias)  # type: ignore[no-untyped-call]
        # Of the type that a layer norm of one module has under autocast, which takes weights of another type than x.
        return y_SRD.view(x.shape).to(rows_SRD.dtype)


class _Linears(torch.autograd.Function):
    """A product for each module, whose weights get gradients in their own layout, which those of torch's `baddbmm` have not."""

    @staticmethod
    def forward(ctx: Any, x_SRD: Tensor, weight_SCD: Tensor, bias_SC: Tensor) -> Tensor:
        ctx.save_for_backward(x_SRD, weight_SCD)
        return torch.baddbmm(bias_SC[:, None], x_SRD, weight_SCD.mT)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        (grad_SRC,), (x_SRD, weight_SCD) = grads, ctx.saved_tensors
        of_x = grad_SRC @ weight_SCD if ctx.needs_input_grad[0] else None
        parts = parts_of(grad_SRC.shape[1]) if grad_SRC.is_cuda else 1
        return of_x, product_of_rows(grad_SRC, x_SRD, parts), grad_SRC.sum(1)


class _Affine(torch.autograd.Function):
    """A scale and a shift for each module."""

    @staticmethod
    def forward(ctx: Any, x_SRD: Tensor, scale_SD: Tensor, shift_SD: Tensor) -> Tensor:
        ctx.save_for_backward(x_SRD, scale_SD)
        return torch.addcmul(shift_SD[:, None], x_SRD, scale_SD[:, None])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_SRD, scale_SD = ctx.saved_tensors
        return grads[0] * scale_SD[:, None], (grads[0] * x_SRD).sum(1), grads[0].sum(1)


def product_of_rows(left_SRC: Tensor, right_SRD: Tensor, parts: int) -> Tensor:
    """Returns for each module the sum of the rows' outer products, [S, C, D].

    A GPU gives each tile of a result to one of its processors. Gradients of weights have few tiles and are sums over many rows,
    which cuBLAS divides among processors in a single product but not in several, so they are taken in parts here.

    Args:
        left_SRC: R rows of each module.
        right_SRD: as many.
        parts: in which the rows are taken, whose products are then added up; a divisor of R.
    """
    if parts == 1:
        return left_SRC.mT @ right_SRD
    left, right = (rows.unflatten(1, (parts, -1)).flatten(0, 1) for rows in (left_SRC, right_SRD))
    return (left.mT @ right).unflatten(0, (-1, parts)).sum(1)


def parts_of(rows: int) -> int:
    """Returns the most equal parts of rows that have at least `LEAST_ROWS` each."""
    return next((parts for parts in range(rows // LEAST_ROWS, 1, -1) if rows % parts == 0), 1)


class Stackable(nn.Module):
    """A module all of whose parameters are in layers of this file, and which computes every sample by itself.

    Buffers are not put side by side, so they are the same in modules that are called together.
    """


def alike(modules: Sequence[nn.Module]) -> bool:
    """Returns whether modules can be called together: several of one class, with parameters of the same shapes."""
    if len(modules) < 2 or not all(isinstance(module, Stackable) for module in modules):
        return False
    shapes = [{name: value.shape for name, value in module.named_parameters()} for module in modules]
    return len(set(map(type, modules))) == 1 and all(each == shapes[0] for each in shapes)


def has_hooks(module: nn.Module) -> bool:
    """Returns whether calls of a module, or of one in it, run more than `forward` of its class.

    Hooks, and a `forward` that was put into the module, would not run where it is called together with others.
    """
    return any(
        each._forward_hooks
        or each._forward_pre_hooks
        or each._backward_hooks
        or each._backward_pre_hooks
        or "forward" in each.__dict__
        for each in module.modules()
    )


def call_together(modules: Sequence[nn.Module], *inputs: Tensor) -> Any:
    """Returns what modules that are alike give, each for its own samples.

    Args:
        modules: S of them.
        inputs: arguments [S N, ...], with the samples of the first module first.

    Returns:
        What one of them returns, each tensor [S N, ...].
    """
    return torch.func.functional_call(modules[0], _side_by_side(modules), inputs)


def _side_by_side(modules: Sequence[nn.Module]) -> dict[str, Tensor]:
    """Returns the parameters of modules by name, with the modules as first axis.

    They are copied into one tensor and cut out of it, which is one kernel, and one in the backward pass, and not one for each
    parameter. Large ones come first, so that what a kernel reads begins at a multiple of its size.
    """
    parameters = [dict(module.named_parameters()) for module in modules]
    first = parameters[0]
    names = sorted(first, key=lambda name: first[name].numel(), reverse=True)
    flat = torch.cat([each[name].flatten() for name in names for each in parameters])
    parts = flat.split([len(modules) * first[name].numel() for name in names])
    return {name: part.view(len(modules), *first[name].shape) for name, part in zip(names, parts, strict=True)}
