"""Batch normalisation over the global batch, on CPU and GPU alike.

`torch.nn.SyncBatchNorm` needs CUDA and counts every sample. This one works with any process group, because all it asks of
distribution is a sum over workers, and leaves out samples of weight 0, which only fill a worker's place.
Shapes: N samples, C channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cggm_ray.core.arithmetic import in_precision
from cggm_ray.core.reduction import SINGLE_WORKER, Reduction


@dataclass(frozen=True)
class _Scope:
    """The pass that a network is in: over a part of a global batch with these weights or not, again or for the first time."""

    weight: Tensor | None = None
    is_repeated: bool = False
    is_global: bool = True


class GlobalBatch:
    """State that the `BatchNorm2d` of a network share: the sum over workers, and which samples count in this pass.

    Args:
        reduce: sums a vector over workers.
    """

    def __init__(self, reduce: Reduction = SINGLE_WORKER) -> None:
        self.reduce = reduce
        self.scope: _Scope | None = None

    def part(self, weight: Tensor | None) -> AbstractContextManager[None]:
        """Inside, training statistics are those of the global batch. Outside, those of the tensor at hand.

        Args:
            weight: [N], 0 for samples of this worker that do not count; None when all do.
        """
        return self.entered(_Scope(weight))

    def among(self, there: Tensor | None, repeats: int = 1) -> AbstractContextManager[None]:
        """Inside, only samples that are there count, and each of them fills several places of the batch dimension.

        Args:
            there: bool [N], such as whether a sample has the modality of an encoder; None when all have.
            repeats: places [N * repeats] that the layers get for N samples, such as the frames of a video.
        """
        scope = self.scope or _Scope(is_global=False)
        weight = scope.weight
        if there is not None:
            weight = there.to(torch.float32) if weight is None else weight * there
        if weight is not None and repeats > 1:
            weight = weight.repeat_interleave(repeats)
        return self.entered(replace(scope, weight=weight))

    @contextmanager
    def entered(self, scope: _Scope | None) -> Iterator[None]:
        """Inside, this is the scope."""
        before, self.scope = self.scope, scope
        try:
            yield
        finally:
            self.scope = before


def share_global_batch(reduce: Reduction, *networks: nn.Module) -> GlobalBatch:
    """Has all `BatchNorm2d` of some networks take their statistics together over workers; called once when they are built.

    Args:
        reduce: sums a vector over workers.
        networks: whose layers are meant.
    """
    shared = GlobalBatch(reduce)
    for network in networks:
        for layer in network.modules():
            if isinstance(layer, BatchNorm2d):
                layer.global_batch = shared
    return shared


def recompute_contexts(network: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For `torch.utils.checkpoint`: contexts of a forward pass and of its repetition.

    The repetition comes in the backward pass, outside of `GlobalBatch.part`. It takes the statistics of the same global batch,
    and moves no running statistics.

    Args:
        network: that is repeated.
    """
    shared = {layer.global_batch for layer in network.modules() if isinstance(layer, BatchNorm2d)}
    return nullcontext(), _Again([(one, one.scope) for one in shared])


class _Again(AbstractContextManager[None]):
    """Entered once for every backward pass; a strategy may take several through one graph."""

    def __init__(self, scopes: list[tuple[GlobalBatch, _Scope | None]]) -> None:
        self._scopes = scopes

    def __enter__(self) -> None:
        self._stack = ExitStack()
        for shared, scope in self._scopes:
            weight = None if scope is None else scope.weight
            self._stack.enter_context(shared.entered(_Scope(weight, is_repeated=True, is_global=scope is not None)))

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` whose training statistics are those of the global batch (see `GlobalBatch`).

    A global batch with a single value per channel, where torch raises, is normalised to zero. The arguments are torch's.

    Attributes:
        global_batch: shared by the layers of a network; see `share_global_batch`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.global_batch = GlobalBatch()

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """[N, C, H, W] to the same shape."""
        if not self.training:
            if not x_NCHW.requires_grad or self.running_mean is None or self.running_var is None:
                return super().forward(x_NCHW)
            # The backward pass reads them, and a pass in training mode may have moved them by then.
            kept = self.running_mean.clone(), self.running_var.clone()
            return F.batch_norm(x_NCHW, *kept, self.weight, self.bias, training=False, eps=self.eps)
        scope = self.global_batch.scope or _Scope(is_global=False)
        single = x_NCHW.numel() == x_NCHW.shape[1]
        reduce = self.global_batch.reduce if scope.is_global else SINGLE_WORKER
        if not single and reduce.is_single and scope.weight is None:
            if scope.is_repeated:
                assert self.running_mean is not None
                assert self.running_var is not None
                passing = self.running_mean.clone(), self.running_var.clone()
                return F.batch_norm(x_NCHW, *passing, self.weight, self.bias, training=True, eps=self.eps)
            return super().forward(x_NCHW)
        assert self.running_mean is not None
        normalised, moments = _Normalise.apply(x_NCHW, self.running_mean, scope.weight, reduce, self.eps)  # type: ignore[no-untyped-call]
        if not scope.is_repeated:
            self._follow(moments)
        return normalised * _channels(self.weight) + _channels(self.bias)

    @torch.no_grad()
    def _follow(self, moments: Tensor) -> None:
        """Moves the running statistics; the variance without bias, like torch."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        count, mean, variance = moments[0], *moments[1:].chunk(2)
        self.num_batches_tracked += 1
        momentum = 0.1 if self.momentum is None else self.momentum
        unbiased = variance * count / (count - 1).clamp(min=1)
        for running, found in ((self.running_mean, mean), (self.running_var, unbiased)):
            # A batch in which no sample counts, such as one without the modality, says nothing.
            running.copy_(torch.where(count > 0, running.lerp(found.to(running.dtype), momentum), running))


class _Normalise(torch.autograd.Function):
    """x to (x - mean) / sqrt(var + eps), with the sums of forward and backward taken over all workers."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        shift_C: Tensor,
        weight_N: Tensor | None,
        reduce: Callable[[Tensor], Tensor],
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        wide = in_precision(x)
        weight = None if weight_N is None else weight_N.to(wide.dtype)[:, None, None, None]
        # Shifted by the running mean, the same on all workers: less cancels in E[x^2] - E[x]^2.
        shifted = wide - _channels(shift_C.to(wide.dtype))
        counted = shifted if weight is None else shifted * weight
        samples = torch.full((1,), float(len(x)), dtype=torch.float64, device=x.device)
        samples = samples if weight_N is None else weight_N.double().sum()[None]
        first, second = (part.sum((0, 2, 3), dtype=torch.float64) for part in (counted, counted * shifted))
        sums = reduce(torch.cat([samples * x[0, 0].numel(), first, second]))
        count, (first, second) = sums[0].clamp(min=1), sums[1:].chunk(2)
        mean = first / count
        variance = (second / count - mean**2).clamp(min=0)
        inverse = (variance + eps).rsqrt()
        normalised = (shifted - _channels(mean.to(wide.dtype))) * _channels(inverse.to(wide.dtype))
        ctx.save_for_backward(normalised, inverse, count, weight)
        ctx.reduce, ctx.dtype = reduce, x.dtype
        moments = torch.cat([sums[:1], mean + shift_C, variance])
        ctx.mark_non_differentiable(moments)
        return normalised, moments

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, _ = grads
        normalised, inverse, count, weight = ctx.saved_tensors
        parts = (part.sum((0, 2, 3), dtype=torch.float64) for part in (grad, grad * normalised))
        level, slope = (ctx.reduce(torch.cat(list(parts))) / count).chunk(2)
        drift = _channels(level.to(grad.dtype)) + normalised * _channels(slope.to(grad.dtype))
        # A sample that does not count has no part in the statistics, so they send nothing back to it.
        result = (grad - (drift if weight is None else drift * weight)) * _channels(inverse.to(grad.dtype))
        return result.to(ctx.dtype), None, None, None, None


def _channels(values_C: Tensor) -> Tensor:
    return values_C[None, :, None, None]
