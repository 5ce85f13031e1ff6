"""Inputs on one scale: (x - mean) / standard deviation, with the values of the training split.

The values are buffers of the network, so a checkpoint holds them, and whatever loads it (a resumed run, prediction, an exported
program) uses those that the network was trained with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cggm_ray.config.fields import check, one_of, option
from cggm_ray.core.kinds import feature_shape

AUTO, ON, MODALITY, OFF = "auto", "on", "modality", "off"


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """Standardisation of the inputs before they are encoded."""

    standardise: str = option(
        OFF,
        "subtract the mean of the training split from each feature and divide by its standard deviation (on), or by one for "
        "the whole modality (modality); off; or auto, which two short trainings decide",
    )
    clip_inputs: float = option(
        0.0, "with standardise on: largest distance of a feature from its mean, in standard deviations; 0 for no limit"
    )

    def __post_init__(self) -> None:
        one_of(self, "standardise", (AUTO, ON, MODALITY, OFF))
        check(self.clip_inputs >= 0, self, "clip_inputs", "zero or a positive number")

    @property
    def standardises(self) -> bool:
        """Whether the network has a `Standardise` for every modality, which may be the identity."""
        return self.standardise != OFF


class Standardise(nn.Module):
    """Standardises one modality; the identity until `fill` is called.

    Features of one unit, such as counts, word frequencies or embeddings, differ in size for a reason. `share_scale` keeps that.

    Args:
        shape: of a value per feature, which broadcasts over a sample (see `cggm_ray.core.kinds.feature_shape`).
    """

    mean: Tensor
    scale: Tensor
    limit: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))
        self.register_buffer("limit", torch.tensor(float("inf")))
        # Of use before training alone; a checkpoint has it as `scale` where the features share one.
        self._whole = 1.0

    @torch.no_grad()
    def fill(self, mean: Tensor, scale: Tensor, clip: float = 0.0, whole: float = 1.0) -> None:
        """Sets what is subtracted, and by what the difference is multiplied.

        Args:
            mean: of every feature.
            scale: 1 / standard deviation of every feature.
            clip: largest magnitude of a standardised value; 0 for no limit.
            whole: 1 / standard deviation of all features together, for `share_scale`.
        """
        self.mean.copy_(mean)
        self.scale.copy_(scale)
        self.limit.fill_(clip or float("inf"))
        self._whole = whole

    @torch.no_grad()
    def share_scale(self) -> None:
        """Divides all features by one standard deviation, without a limit, because a rare feature is far from its mean then."""
        self.scale.fill_(self._whole)
        self.limit.fill_(float("inf"))

    @property
    def shares_scale(self) -> bool:
        """Whether all features, of which there are several, are divided by one number, and it is not the identity."""
        same = bool((self.scale == self.scale.flatten()[0]).all())
        identity = bool((self.scale == 1).all() and (self.mean == 0).all())
        return self.scale.numel() > 1 and same and not identity

    def disable(self) -> None:
        """Makes it the identity, also for whatever loads a checkpoint of the network."""
        self.fill(torch.zeros_like(self.mean), torch.ones_like(self.scale))

    def forward(self, x: Tensor) -> Tensor:
        """Inputs [N, ...] to the same shape."""
        return ((x - self.mean) * self.scale).clamp(-self.limit, self.limit)


def standardise_modules(shapes: Mapping[str, tuple[int, ...]], kinds: Mapping[str, str]) -> dict[str, Standardise]:
    """Returns the identity for every modality, to be filled.

    Args:
        shapes: of a sample, by modality.
        kinds: one of `core.kinds.KINDS`, or `FRAMES`, for each.
    """
    return {name: Standardise(feature_shape(kinds[name], shape)) for name, shape in shapes.items()}


def standardisers(net: nn.Module) -> dict[str, Standardise]:
    """Returns all `Standardise` modules of a network by their names, those of its inputs and those inside encoders."""
    return {name: module for name, module in net.named_modules() if isinstance(module, Standardise)}
