"""Dropout that a CPU can draw quickly.

torch draws a Bernoulli number for every element and keeps a mask of floats: more than half of a training step of the
released transformer on a CPU. Here one 64-bit random integer serves four elements, whose 16 bits are compared with the
probability, and what the backward pass needs is kept in two bytes, or read from the output. The generator is numpy's, seeded
from torch's, so `torch.manual_seed` decides the masks. A GPU draws in its kernels; there, and without dropout, torch's own
functions are used.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cggm_ray.models.stacked import Linear, linear

_STEPS = 2**16
_aten = torch.ops.aten


class Rate(NamedTuple):
    """A dropout probability in the steps of 16 bits.

    Attributes:
        threshold: an element is kept where its random int16 is larger.
        scale: one over the probability of being kept, exactly.
    """

    threshold: float
    scale: float


def rate(p: float) -> Rate:
    """The rate next to p, 0 <= p < 1, at most 2^-17 away."""
    dropped = min(round(p * _STEPS), _STEPS - 1)
    return Rate(dropped - _STEPS // 2 - 0.5, _STEPS / (_STEPS - dropped))


class Bits:
    """Random bits of numpy's fastest generator, whose seed comes from torch's."""

    def __init__(self) -> None:
        seed = int(torch.empty((), dtype=torch.int64).random_())
        self._generator = np.random.Generator(np.random.SFC64(seed))

    def like(self, x: Tensor) -> Tensor:
        """Independent uniform int16 of the shape of x."""
        count = x.numel()
        words = self._generator.integers(0, 2**64 - 1, (count + 3) // 4, dtype=np.uint64, endpoint=True)
        return torch.from_numpy(words.view(np.int16)[:count]).view(x.shape)


class CompiledBits:
    """Random bits inside a graph of torch.compile, which cannot trace numpy's generator and calls it as an operator."""

    def like(self, x: Tensor) -> Tensor:
        """Independent uniform int16 of the shape of x."""
        return _random_bits(x)


# The tag keeps the compiler from drawing again in the backward pass what the forward pass drew.
@torch.library.custom_op("cggm_ray::random_bits", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _random_bits(x: Tensor) -> Tensor:
    return Bits().like(x)


@_random_bits.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.int16)


def random_bits() -> Bits | CompiledBits:
    """A source of random bits."""
    return CompiledBits() if torch.compiler.is_compiling() else Bits()


def drawn_here(x: Tensor, p: float, training: bool) -> bool:
    """Whether this module drops elements of x, and not torch."""
    return training and 0 < p < 1 and x.device.type == "cpu"


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """x with elements dropped with probability p, the others divided by 1 - p. The shape is any."""
    if not drawn_here(x, p, training):
        return F.dropout(x, p, training)
    return _Dropout.apply(x, p)  # type: ignore[no-untyped-call, no-any-return]


def add_dropped(residual: Tensor, x: Tensor, p: float, training: bool) -> Tensor:
    """`residual + dropout(x)`; both of one shape."""
    if not drawn_here(x, p, training):
        return residual + F.dropout(x, p, training)
    return _AddDropped.apply(residual, x, p)  # type: ignore[no-untyped-call, no-any-return]


def relu_dropout_linear(x: Tensor, layer: Linear, p: float, training: bool) -> Tensor:
    """`layer(dropout(relu(x)))`, for which of all before the layer only its input is kept."""
    if not drawn_here(x, p, training):
        return layer(F.dropout(F.relu(x), p, training))  # type: ignore[no-any-return]
    # The factor of the kept elements is taken into the weight, which is smaller.
    kept = _ReluKept.apply(x, p)  # type: ignore[no-untyped-call]
    return linear(kept, layer.weight * rate(p).scale, layer.bias)


def keep(x: Tensor, bits: Tensor, threshold: float) -> Tensor:
    """x where the bits say so and 0 elsewhere, unscaled; a new tensor."""
    if x.dtype.itemsize < 4:
        # Few bits of mantissa would round the threshold; the sign survives.
        return _aten.threshold_backward(x, bits.float().sub_(threshold).to(x.dtype), 0)
    return _aten.threshold_backward(x, bits.to(x.dtype), threshold)


def sign_dropped(x: Tensor, bits: Tensor, threshold: float) -> Tensor:
    """x >= 0 in place, negated where it is dropped: value and mask in one tensor."""
    return x.copysign_(bits.float().sub_(threshold).to(x.dtype))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        bits, ctx.rate = random_bits().like(x), rate(p)
        ctx.save_for_backward(bits)
        return keep(x, bits, ctx.rate.threshold).mul_(ctx.rate.scale)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (bits,) = ctx.saved_tensors
        return keep(grads[0], bits, ctx.rate.threshold).mul_(ctx.rate.scale), None


class _AddDropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Tensor, x: Tensor, p: float) -> Tensor:
        bits, ctx.rate = random_bits().like(x), rate(p)
        ctx.save_for_backward(bits)
        return torch.add(residual, keep(x, bits, ctx.rate.threshold), alpha=ctx.rate.scale)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (bits,) = ctx.saved_tensors
        return grads[0], keep(grads[0], bits, ctx.rate.threshold).mul_(ctx.rate.scale), None


class _ReluKept(torch.autograd.Function):
    """relu(x) where it is kept, unscaled."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        out = keep(x, random_bits().like(x), rate(p).threshold).relu_()
        ctx.save_for_backward(out)
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (out,) = ctx.saved_tensors
        return _aten.threshold_backward(grads[0], out, 0), None


def dropped_attention(qkv: Tensor, heads: int, mask: Tensor | None, p: float) -> Tensor:
    """Scaled dot-product self-attention with dropout of the weights, where `drawn_here`.

    Args:
        qkv: queries, keys and values side by side, [N, T, 3 D].
        heads: H; each has D / H channels of all three.
        mask: bool [N, T], False at steps that no query may attend to; every row has a step that it may.
        p: of dropout.

    Returns:
        [N, T, D].
    """
    return _Attention.apply(qkv, heads, mask, p)  # type: ignore[no-untyped-call, no-any-return]


BLOCK = 2**19
"""Attention weights that are worked on at a time: they stay in the cache, and their memory is used again."""


class _Attention(torch.autograd.Function):
    """With the short heads of this model, plain products are faster on a CPU than its fused attention.

    The weights are kept once, dropped ones with a minus sign. Everything is [rows, d, T] with rows = N H, because a product
    with few rows is faster than one with few columns.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int, mask: Tensor | None, p: float) -> Tensor:
        samples, steps, width = qkv.shape
        ctx.rate, ctx.heads, ctx.samples = rate(p), heads, samples
        ctx.scale = 1 / math.sqrt(width // (3 * heads))
        # One copy [3, rows, d, T], also where one sample of one step needs none to be contiguous: it is changed below. The
        # factors go where the tensors are small.
        q, k, v = (
            qkv.unflatten(-1, (3, heads, -1))
            .permute(2, 0, 3, 4, 1)
            .clone(memory_format=torch.contiguous_format)
            .flatten(1, 2)
        )
        q.mul_(ctx.scale)
        v.mul_(ctx.rate.scale)
        if mask is not None:
            mask = mask[:, None, None, :].expand(-1, heads, -1, -1).flatten(0, 1)
        bits = random_bits()
        weights = qkv.new_empty(len(q), steps, steps)
        out = torch.empty_like(q)
        for block in _blocks(len(q), steps * steps):
            part = torch.bmm(q[block].mT, k[block], out=weights[block])
            if mask is not None:
                part.masked_fill_(~mask[block], -math.inf)
            torch.softmax(part, -1, out=part)
            sign_dropped(part, bits.like(part), ctx.rate.threshold)
            torch.bmm(v[block], part.relu().mT, out=out[block])
        ctx.save_for_backward(q, k, v, weights, out)
        return out.unflatten(0, (samples, heads)).permute(0, 3, 1, 2).flatten(2)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        q, k, v, weights, out = ctx.saved_tensors
        grad = grads[0].unflatten(-1, (ctx.heads, -1)).permute(0, 2, 3, 1).flatten(0, 1)
        # The sum over steps of weight times gradient is that of output times gradient, dropout included.
        mean = (grad * out).sum(1).unsqueeze(-1)
        grad_qkv = k.new_empty(3, *k.shape)
        grad_q, grad_k, grad_v = grad_qkv
        for block in _blocks(*weights.flatten(1).shape):
            part, grad_part = weights[block], grad[block]
            kept = part.relu()
            torch.bmm(grad_part, kept, out=grad_v[block])
            # d score = kept weight * gradient - weight * mean
            scores = torch.bmm(grad_part.mT, v[block]).mul_(kept)
            scores.addcmul_(part.abs(), mean[block], value=-1)
            torch.bmm(k[block], scores.mT, out=grad_q[block])
            torch.bmm(q[block], scores, out=grad_k[block])
        grad_q.mul_(ctx.scale)
        grad_v.mul_(ctx.rate.scale)
        return grad_qkv.unflatten(1, (ctx.samples, -1)).permute(1, 4, 0, 2, 3).flatten(2), None, None, None


def _blocks(rows: int, elements: int) -> list[slice]:
    """Slices over rows of so many elements, of about `BLOCK` together; a compiler makes its own."""
    if torch.compiler.is_compiling():
        return [slice(0, rows)]
    size = max(1, BLOCK // elements)
    return [slice(start, start + size) for start in range(0, rows, size)]
