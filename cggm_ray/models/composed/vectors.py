"""Encoders that take a sample as one vector of numbers, whatever its kind: `linear` and `mlp`."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from cggm_ray.core.errors import UsageError
from cggm_ray.core.kinds import VECTOR
from cggm_ray.models.composed.registry import ENCODERS, EncoderInfo, EncoderPlan, Sizes


def perceptron(inputs: int, sizes: Sizes) -> nn.Sequential:
    """Returns `depth` linear layers from `inputs` to D numbers, the first one with dropout of its input and a LayerNorm."""
    width, dropout = sizes.width, sizes.dropout
    layers: list[nn.Module] = [nn.Dropout(dropout / 2), nn.Linear(inputs, width), nn.LayerNorm(width)]
    for _ in range(sizes.depth - 1):
        layers += [nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width)]
    return nn.Sequential(*layers, nn.GELU(), nn.Dropout(dropout))


class FlatEncoder(nn.Module):
    """The numbers of a sample, one after the other, through layers for vectors.

    Args:
        numbers: of a sample.
        layers: from [N, numbers] to [N, D].
    """

    def __init__(self, numbers: int, layers: nn.Module) -> None:
        super().__init__()
        self._numbers = numbers
        self.layers = layers

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[N, ...] to [N, 1, D]. What a mask says is not there is zero already; a shorter sequence gets zeros at its end.

        Raises:
            UsageError: a sequence is longer than those that the encoder was made for.
        """
        flat = x.flatten(1)
        missing = self._numbers - flat.shape[1]
        if missing < 0:
            raise UsageError(
                f"encoders: found samples of shape {list(x.shape[1:])} for an encoder of {self._numbers} numbers; expected no "
                "longer ones, or another encoder, such as 'segments'"
            )
        h_ND: Tensor = self.layers(F.pad(flat, (0, missing)) if missing else flat)
        return h_ND[:, None]


def _linear(plan: EncoderPlan) -> nn.Module:
    numbers = math.prod(plan.shape)
    return FlatEncoder(numbers, nn.Linear(numbers, plan.width))


def _mlp(plan: EncoderPlan) -> nn.Module:
    numbers = math.prod(plan.shape)
    return FlatEncoder(numbers, perceptron(numbers, plan))


ENCODERS.register("linear")(EncoderInfo(build=_linear))
ENCODERS.register("mlp")(EncoderInfo(build=_mlp, default=(VECTOR,)))
