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


def rescale(optimizer: Optimizer, rates: Mapping[str, float]) -> None:
    """Gives the encoders other learning-rate factors; the effect of the schedule stays.

    Args:
        optimizer: of the model.
        rates: modality to factor, with the names that the optimizer was made with.
    """
    for group in optimizer.param_groups:
        new = rates.get(group.get(MODALITY, ""))
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
            group[FACTOR] = rates[group[MODALITY]]
            group["lr"] = lr * group[FACTOR]


def missing_groups(optimizer: Optimizer, rates: Mapping[str, float]) -> list[str]:
    """Returns the modalities of `rates` for which the optimizer has no parameter group."""
    there = {group.get(MODALITY) for group in optimizer.param_groups}
    return [name for name in rates if name not in there]
