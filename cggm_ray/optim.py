"""Optimizers and learning-rate schedules by name, and clipping that also reports the norm of every encoder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

if TYPE_CHECKING:
    from cggm_ray.config import OptimConfig

OPTIMIZERS = ("Adam", "AdamW", "SGD")


def build_optimizer(name: str, parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float) -> Optimizer:
    """An optimizer of `OPTIMIZERS`; SGD has momentum 0.9, as in the released code."""
    if name == "SGD":
        return SGD(parameters, lr=lr, weight_decay=weight_decay, momentum=0.9)
    kind = {"Adam": Adam, "AdamW": AdamW}[name]
    return kind(parameters, lr=lr, weight_decay=weight_decay)


def model_optimizer(config: OptimConfig, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The optimizer of encoders, fusion and head."""
    return build_optimizer(config.optim, parameters, lr=config.lr, weight_decay=config.weight_decay)


def guide_optimizer(config: OptimConfig, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The optimizer of the guide classifiers."""
    return build_optimizer(config.optim, parameters, lr=config.cls_lr, weight_decay=config.cls_weight_decay)


def plateau_schedule(config: OptimConfig, optimizer: Optimizer) -> ReduceLROnPlateau:
    """A tenth of the learning rate after `when` epochs in which the validation loss did not fall (released code)."""
    return ReduceLROnPlateau(optimizer, mode="min", factor=0.1, patience=config.when)


def clip_by_total_norm(
    parameters: Iterable[nn.Parameter], encoders: Iterable[nn.Module], max_norm: float | None
) -> tuple[Tensor, Tensor]:
    """Clips the L2 norm of all gradients together, in place.

    Args:
        parameters: all parameters of the model, those of the encoders among them.
        encoders: one per modality.
        max_norm: the gradients are scaled by min(1, max_norm / (total + 1e-6)); None leaves them.

    Returns:
        The total norm before clipping, and the norm of each encoder's gradient [M].
    """
    parameters = list(parameters)
    groups = [list(encoder.parameters()) for encoder in encoders]
    in_encoder = {id(parameter) for group in groups for parameter in group}
    groups.append([parameter for parameter in parameters if id(parameter) not in in_encoder])
    norms = torch.stack([nn.utils.get_total_norm([p.grad for p in group if p.grad is not None]) for group in groups])
    total = torch.linalg.vector_norm(norms)
    if max_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, total)
    return total, norms[:-1]
