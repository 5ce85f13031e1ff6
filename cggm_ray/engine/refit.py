"""Training on the training and the validation split together (`--refit`).

Validation chooses the configuration and when to stop. A network that is then trained anew has no further use for it, and on a
small set its samples are a large part of all. Such a run takes the steps that validation chose, and tests its last weights.
Its validation metrics do not estimate how good it is on other samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cggm_ray.core.errors import UsageError
from cggm_ray.data.loading.split import Split, TensorSplit
from cggm_ray.engine.configuration import Config
from cggm_ray.models.standardise import AUTO, ON
from cggm_ray.strategies.registry import STRATEGIES

TRAINED_ON = (
    "the training split has the validation samples too, so validation metrics do not say how good the network is"
)


def against_refit(config: Config) -> str | None:
    """Returns why a configuration cannot be trained on the validation split; None where it can.

    Args:
        config: of the run.
    """
    strategy = config.modulation.modulation
    if STRATEGIES.get(strategy).validates:
        return f"the strategy {strategy!r} learns from the validation split"
    if config.optim.schedule == "plateau":
        return "the schedule plateau follows the validation loss (--schedule cosine does not)"
    if config.inputs.standardise == AUTO:
        return "--standardise auto decides on validation (on and off do not)"
    if config.train.linear_blend == ON:
        return "--linear_blend on decides on validation (off does not)"
    return None


def check_refit(config: Config) -> None:
    """Raises a UsageError if a run is to be trained on the validation split and cannot be."""
    reason = against_refit(config) if config.train.refit else None
    if reason is not None:
        raise UsageError(f"refit: found {config.train.refit:g}, but {reason}; expected 0")


def joined_splits(train: Split, valid: Split) -> TensorSplit:
    """Returns the samples of two splits as one, those of the first one first.

    Args:
        train, valid: in memory. Where the samples of the first have several views, those of the second that have one are the
            same in each.

    Raises:
        UsageError: the samples are read while the run trains.
    """
    if not (isinstance(train, TensorSplit) and isinstance(valid, TensorSplit)):
        raise UsageError(
            "refit: this set is read while a run trains; expected 0, or a set that is held in memory (--memory_budget)"
        )
    masks = {**train.masks, **valid.masks}
    views = {name: torch.cat([values, _views(valid, name, len(values))], 1) for name, values in train.views.items()}
    return TensorSplit(
        {name: torch.cat([values, valid.inputs[name]]) for name, values in train.inputs.items()},
        torch.cat([train.target, valid.target]),
        masks={name: torch.cat([_mask(split, name, like) for split in (train, valid)]) for name, like in masks.items()},
        views=views,
        seed=train.seed,
        labelled=_labelled(train, valid),
    )


def _views(split: TensorSplit, name: str, count: int) -> Tensor:
    found = split.views.get(name)
    return split.inputs[name].expand(count, *split.inputs[name].shape) if found is None else found


def _mask(split: TensorSplit, name: str, like: Tensor) -> Tensor:
    return split.masks.get(name, torch.ones(len(split), like.shape[1], dtype=torch.bool, device=like.device))


def _labelled(*splits: TensorSplit) -> Tensor | None:
    if all(split.labelled is None for split in splits):
        return None
    known = []
    for split in splits:
        every = torch.ones(len(split), dtype=torch.bool, device=split.target.device)
        known.append(every if split.labelled is None else split.labelled)
    return torch.cat(known)
