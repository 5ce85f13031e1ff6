"""Encoders of sequences: `pool`, `segments` and `transformer`."""

from __future__ import annotations

from torch import Tensor, nn

from cggm_ray.core.kinds import SEQUENCE
from cggm_ray.models.composed.registry import ENCODERS, EncoderInfo, EncoderPlan
from cggm_ray.models.composed.steps import shares, summary, there
from cggm_ray.models.composed.transformer import TransformerLayers, sinusoids
from cggm_ray.models.composed.vectors import Perceptron

MOST_SEGMENTS = 64
MOST_NUMBERS = 4096
"""Largest size of all segments of a sample together."""


class PoolEncoder(nn.Module):
    """Mean, maximum and standard deviation over the steps, through a perceptron; the order of the steps does not matter."""

    def __init__(self, plan: EncoderPlan) -> None:
        super().__init__()
        self.layers = Perceptron([3 * plan.shape[-1]], plan)

    def forward(self, x_NTF: Tensor, mask: Tensor | None = None) -> Tensor:
        """[N, T, F] to [N, 1, D]."""
        h_ND: Tensor = self.layers(summary(x_NTF, mask))
        return h_ND[:, None]


class SegmentsEncoder(nn.Module):
    """The sequence brought to a fixed number of segments, with mean, maximum and standard deviation, through a perceptron.

    A sequence is cut in segments of equal length, each of which gives its mean. A short sequence of fixed length is taken
    step by step, and so a perceptron sees all that there is; a longer or shorter one is stretched to the same length.
    """

    def __init__(self, plan: EncoderPlan) -> None:
        super().__init__()
        steps, features = plan.shape
        self.segments = max(1, min(steps, MOST_SEGMENTS, MOST_NUMBERS // features))
        self.layers = Perceptron([self.segments * features, 3 * features], plan)

    def forward(self, x_NTF: Tensor, mask: Tensor | None = None) -> Tensor:
        """[N, T, F] to [N, 1, D]."""
        segments_NSF = shares(there(x_NTF, mask), self.segments).to(x_NTF.dtype) @ x_NTF
        h_ND: Tensor = self.layers(segments_NSF.flatten(1), summary(x_NTF, mask))
        return h_ND[:, None]


class TransformerEncoder(nn.Module):
    """Linear projection, sinusoidal positions and pre-norm transformer layers: a feature for every step.

    Positions are counted over the steps that are there, so padding in front changes nothing.
    """

    def __init__(self, plan: EncoderPlan) -> None:
        super().__init__()
        self.proj = nn.Linear(plan.shape[-1], plan.inner_width)
        self.layers = TransformerLayers(plan)

    def forward(self, x_NTF: Tensor, mask: Tensor | None = None) -> Tensor:
        """[N, T, F] to [N, T, D]."""
        there_NT = there(x_NTF, mask)
        positions_NTd = sinusoids(there_NT.cumsum(1), self.proj.out_features).to(x_NTF.dtype)
        h_NTD: Tensor = self.layers(self.proj(x_NTF) + positions_NTd, there_NT)
        return h_NTD


ENCODERS.register("pool")(EncoderInfo(build=PoolEncoder, kinds=(SEQUENCE,)))
ENCODERS.register("segments")(EncoderInfo(build=SegmentsEncoder, kinds=(SEQUENCE,), default=(SEQUENCE,)))
ENCODERS.register("transformer")(EncoderInfo(build=TransformerEncoder, kinds=(SEQUENCE,)))
