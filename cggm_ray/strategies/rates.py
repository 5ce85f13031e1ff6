"""Learning rates by modality: the parameter groups of an optimizer in which each encoder has its own factor.

A strategy that balances by learning rates says the factors (`Strategy.rates`). An optimizer follows them if every such encoder
is a parameter group of its own: `parameter_groups` makes the groups; `rescale` and `follow` set their rates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

MODALITY = "modality"
"""Key of a parameter group that holds the encoder of one modality, with a learning rate of its own."""
FACTOR = "factor"
"""Key of a parameter group: the ratio of its learning rate to that of the model."""

BASE = "base"
"""Key of a parameter group of a trained model: the part of `FACTOR` that stays when a strategy changes its rate."""


def parameter_groups(
    parameters: Iterable[nn.Parameter], encoders: Mapping[str, nn.Module], rates: Mapping[str, float], lr: float
) -> list[dict[str, Any]]:
    """Returns parameter groups for an optimizer.

    Args:
        parameters: all of the model.
        encoders: by modality.
        rates: modality to the factor of its encoder's learning rate.
        lr: learning rate of the model.

    Returns:
        First a group of all parameters that have no rate of their own, then one for each encoder in `rates`.
    """
    own = {name: list(encoders[name].parameters()) for name in rates}
    apart = {id(parameter) for group in own.values() for parameter in group}
    groups: list[dict[str, Any]] = [{"params": [each for each in parameters if id(each) not in apart]}]
    groups += [
        {"params": own[name], "lr": lr * factor, MODALITY: name, FACTOR: factor} for name, factor in rates.items()
    ]
    return groups


def with_own_rate(
    groups: Iterable[dict[str, Any]], modules: Iterable[nn.Module], lr: float, ratio: float
) -> list[dict[str, Any]]:
    """Returns parameter groups in which the parameters of some modules are groups of their own, behind all others.

    Args:
        groups: of the model.
        modules: parts of it.
        lr: learning rate of the model.
        ratio: of the modules' learning rate to that of the rest.
    """
    apart = {id(parameter) for module in modules for parameter in module.parameters()}
    rest, own = [], []
    for group in groups:
        parts: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for parameter in group["params"]:
            parts[id(parameter) in apart].append(parameter)
        rest.append({**group, "params": parts[0]})
        if parts[1]:
            factor = group.get(FACTOR, 1.0) * ratio
            own.append({**group, "params": parts[1], "lr": lr * factor, FACTOR: factor, BASE: ratio})
    return [*rest, *own]


def rescale(optimizer: Optimizer, rates: Mapping[str, float]) -> None:
    """Gives the encoders other learning-rate factors; the effect of the schedule stays.

    Args:
        optimizer: of the model.
        rates: modality to factor, with the names that the optimizer was made with.
    """
    for group in optimizer.param_groups:
        new = rates.get(group.get(MODALITY, ""))
        new = None if new is None else new * group.get(BASE, 1.0)
        if new is not None and new != group[FACTOR]:
            group["lr"] *= new / group[FACTOR]
            group[FACTOR] = new


def follow(optimizer: Optimizer, rates: Mapping[str, float]) -> None:
    """Sets the encoders' learning rates from that of the model, which is that of the first group without a modality.

    Whatever a scheduler of any kind made of the encoders' rates is replaced, so this may be called before every step.

    Args:
        optimizer: of the model, made from `parameter_groups`.
        rates: modality to factor.
    """
    lr = next(group["lr"] for group in optimizer.param_groups if MODALITY not in group)
    for group in optimizer.param_groups:
        if group.get(MODALITY) in rates:
            group[FACTOR] = rates[group[MODALITY]] * group.get(BASE, 1.0)
            group["lr"] = lr * group[FACTOR]


def missing_groups(optimizer: Optimizer, rates: Mapping[str, float]) -> list[str]:
    """Returns the modalities of `rates` for which the optimizer has no parameter group."""
    there = {group.get(MODALITY) for group in optimizer.param_groups}
    return [name for name in rates if name not in there]
