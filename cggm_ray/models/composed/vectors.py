"""Encoders that take a sample as one vector of numbers, whatever its kind: `linear` and `mlp`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cggm_ray.core.errors import UsageError
from cggm_ray.core.kinds import VECTOR
from cggm_ray.models.composed.registry import ENCODERS, EncoderInfo, EncoderPlan, Sizes
from cggm_ray.models.standardise import Standardise


class Perceptron(nn.Module):
    """`depth` linear layers with GELU and dropout, with a LayerNorm after the first.

    The first layer takes several groups of numbers, each with weights of its own size: a small group counts as much in the
    beginning as a large one. With a linear path beside the layers the features are a linear function and what the layers add
    to it (wide and deep, Cheng et al. 2016), and so a network with a linear fusion contains the linear model of all numbers.
    Where a run standardises its inputs every number is standardised by itself, because features of a sequence have one scale
    as a whole, but not at every step.

    Args:
        inputs: numbers in each group.
        sizes: width, depth and dropout.
    """

    def __init__(self, inputs: Sequence[int], sizes: Sizes) -> None:
        super().__init__()
        width, dropout = sizes.width, sizes.dropout
        self.scales = nn.ModuleList(Standardise((numbers,)) for numbers in inputs)
        self.dropout = nn.Dropout(sizes.input_dropout)
        self.first = nn.ModuleList(nn.Linear(numbers, width) for numbers in inputs)
        layers: list[nn.Module] = [nn.LayerNorm(width), nn.GELU(), nn.Dropout(dropout)]
        for _ in range(sizes.depth - 1):
            layers += [nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers)
        linears = [nn.Linear(numbers, width, bias=False) for numbers in inputs] if sizes.linear_path else []
        self.linear = nn.ModuleList(linears)

    def forward(self, *groups: Tensor) -> Tensor:
        """Groups of numbers [N, numbers] to features [N, D]."""
        scaled = [scale(numbers) for scale, numbers in zip(self.scales, groups, strict=True)]
        kept = [self.dropout(numbers) for numbers in scaled]
        first = [layer(numbers) for layer, numbers in zip(self.first, kept, strict=True)]
        h_ND: Tensor = self.layers(torch.stack(first).sum(0))
        for layer, numbers in zip(self.linear, kept, strict=False):
            h_ND = h_ND + layer(numbers)
        return h_ND


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
    return FlatEncoder(numbers, Perceptron([numbers], plan))


ENCODERS.register("linear")(EncoderInfo(build=_linear))
ENCODERS.register("mlp")(EncoderInfo(build=_mlp, default=(VECTOR,)))
