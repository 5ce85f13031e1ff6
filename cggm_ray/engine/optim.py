"""Optimizers and learning-rate schedules by name, and clipping that also reports the norm of every encoder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from cggm_ray.config.fields import at_least, check, one_of, option
from cggm_ray.engine.budget import Budget
from cggm_ray.engine.schedules import SCHEDULES, CosineSchedule, PlateauSchedule, Schedule, StepSchedule
from cggm_ray.strategies.rates import parameter_groups, with_own_rate

OPTIMIZERS = ("Adam", "AdamW", "SGD")

Parameters = Iterable[nn.Parameter] | Iterable[dict[str, Any]]


def build_optimizer(name: str, parameters: Parameters, *, lr: float, weight_decay: float) -> Optimizer:
    """Builds an optimizer of `OPTIMIZERS` that updates all parameters in one call (fused).

    SGD has momentum 0.9, as in the released code.
    """
    if name == "SGD":
        optimizer = SGD(parameters, lr=lr, weight_decay=weight_decay, momentum=0.9, fused=True)
        optimizer.register_step_pre_hook(_start_momentum)
        return optimizer
    kind = {"Adam": Adam, "AdamW": AdamW}[name]
    return kind(parameters, lr=lr, weight_decay=weight_decay, fused=True)


def _start_momentum(optimizer: Optimizer, *_: Any) -> None:
    """Sets momentum 0 for all parameters, because fused SGD needs a buffer for all of them or for none.

    Some parameters get their first gradient later than others.
    """
    for group in optimizer.param_groups:
        moving = [parameter for parameter in group["params"] if parameter.grad is not None]
        new = [parameter for parameter in moving if "momentum_buffer" not in optimizer.state[parameter]]
        if len(new) < len(moving):
            for parameter in new:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def model_optimizer(
    settings: OptimConfig,
    parameters: Iterable[nn.Parameter],
    encoders: Mapping[str, nn.Module] | None = None,
    rates: Mapping[str, float] | None = None,
    trained: Sequence[nn.Module] = (),
) -> Optimizer:
    """Builds the optimizer of encoders, fusion and head.

    Args:
        settings: its name, learning rate and weight decay.
        parameters: all of the model.
        encoders: by modality.
        rates: modality to the factor of its encoder's learning rate. With any, the first group holds all that has none,
            and each of these encoders is a group of its own; without, there is one group.
        trained: models within the encoders that were trained before, whose learning rate is `encoder_lr`.
    """
    groups: Any = parameters
    if encoders is not None and rates:
        groups = parameter_groups(parameters, encoders, rates, settings.lr)
    if trained:
        whole = groups if rates else [{"params": list(parameters)}]
        groups = with_own_rate(whole, trained, settings.lr, settings.encoder_lr / settings.lr)
    return build_optimizer(settings.optim, groups, lr=settings.lr, weight_decay=settings.weight_decay)


def guide_optimizer(settings: OptimConfig, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Builds the optimizer of the guide classifiers."""
    return build_optimizer(settings.optim, parameters, lr=settings.cls_lr, weight_decay=settings.cls_weight_decay)


def build_schedule(settings: OptimConfig, budget: Budget | None, optimizer: Optimizer) -> Schedule:
    """Builds the learning-rate schedule of a run, for the optimizer of the model.

    Args:
        settings: its name and its rates.
        budget: length of the run; None for the schedule plateau, which does not need it.
        optimizer: of the model.
    """
    if settings.schedule == "plateau":
        return PlateauSchedule(optimizer, when=settings.when)
    assert budget is not None, f"the schedule {settings.schedule} needs the length of the run"
    if settings.schedule == "step":
        every = settings.decay_epochs * budget.steps_per_pass
        return StepSchedule(optimizer, every=every, peak=settings.lr, factor=settings.decay)
    warmup, total = settings.warmup_epochs * budget.steps_per_pass, budget.scheduled or budget.total
    return CosineSchedule(
        optimizer,
        total=total,
        warmup=round(settings.warmup_share * total) if settings.warmup_share else warmup,
        peak=settings.lr,
        final=settings.final_lr,
        start=settings.warmup_lr,
    )


def retune(optimizer: Optimizer, before: float, lr: float, weight_decay: float) -> None:
    """Continues with another learning rate and weight decay.

    Args:
        optimizer: as it was saved; a schedule may have moved its learning rate.
        before: the learning rate that the schedule started from.
        lr: what it starts from now; the schedule's factor stays.
        weight_decay: from now on.
    """
    for group in optimizer.param_groups:
        group["lr"] *= lr / before
        group["weight_decay"] = weight_decay


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
    # A group without any gradient has the norm 0, which would lie on the CPU.
    gradients = [[parameter.grad for parameter in group if parameter.grad is not None] for group in groups]
    zero = parameters[0].new_zeros(())
    norms = torch.stack([nn.utils.get_total_norm(group) if group else zero for group in gradients])
    total = torch.linalg.vector_norm(norms)
    if max_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, total)
    return total, norms[:-1]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizers, schedule and clipping."""

    optim: str = option("Adam", "optimizer of model and guides: Adam, AdamW, SGD")
    lr: float = option(1e-3, "learning rate of the model; with the schedule cosine the highest one", "base_lr")
    cls_lr: float = option(5e-4, "learning rate of the guide classifiers")
    encoder_lr: float = option(5e-5, "highest learning rate of pretrained encoders that are trained (--train_encoders)")
    weight_decay: float = option(0.0, "weight decay of the model")
    cls_weight_decay: float = option(0.0, "weight decay of the guide classifiers")
    schedule: str = option(
        "plateau",
        "schedule of the model's learning rate: plateau (by validation loss), cosine (by step, with warm-up), step (falls "
        "after every decay_epochs)",
    )
    decay_epochs: int = option(70, "step: passes over the training split between two falls of the learning rate")
    decay: float = option(0.1, "step: factor of each fall of the learning rate")
    when: int = option(
        10, "plateau: epochs without a lower validation loss that are allowed before the learning rate falls to a tenth"
    )
    warmup_epochs: int = option(0, "cosine: passes over the training split in linear warm-up")
    warmup_share: float = option(0.0, "cosine: share of all steps that is warm-up, in place of warmup_epochs")
    warmup_lr: float = option(0.0, "cosine: learning rate of the first warm-up step", "start_warmup_value")
    final_lr: float = option(0.0, "cosine: learning rate at the end of the run")
    clip: float = option(0.8, "largest L2 norm of the model's gradient; 0 switches clipping off")

    def __post_init__(self) -> None:
        one_of(self, "optim", OPTIMIZERS)
        one_of(self, "schedule", SCHEDULES)
        for name in ("lr", "cls_lr", "encoder_lr"):
            check(getattr(self, name) > 0, self, name, "a positive number")
        for name in ("weight_decay", "cls_weight_decay", "clip", "warmup_lr", "final_lr"):
            check(getattr(self, name) >= 0, self, name, "zero or a positive number")
        check(0 <= self.warmup_share < 1, self, "warmup_share", "a number in [0, 1)")
        check(0 < self.decay <= 1, self, "decay", "a number above 0, of at most 1")
        for name, least in (("when", 0), ("warmup_epochs", 0), ("decay_epochs", 1)):
            at_least(self, name, least)
