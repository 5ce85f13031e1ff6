"""Pre-norm transformer layers over tokens, for the encoders that give a feature for every step or patch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cggm_ray.models.composed.registry import Sizes
from cggm_ray.models.dropout import dropout
from cggm_ray.models.transformer import EncoderLayer, TransformerConfig


def sinusoids(position_NT: Tensor, width: int) -> Tensor:
    """Returns the sines and cosines of positions at `width / 2` rates from 1 to 1 / 10000, [N, T, width]."""
    half = (width + 1) // 2
    rate_d = torch.exp(torch.arange(half, device=position_NT.device) * -(math.log(10000) / max(half - 1, 1)))
    angle_NTd = position_NT[..., None].float() * rate_d
    return torch.cat([angle_NTd.sin(), angle_NTd.cos()], -1)[..., :width]


class TransformerLayers(nn.Module):
    """Layers of the inner width, then LayerNorm and a linear layer to D features."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        p = sizes.dropout
        config = TransformerConfig(
            width=sizes.inner_width,
            heads=sizes.heads,
            layers=sizes.depth,
            attn_dropout=p / 2,
            relu_dropout=p / 2,
            res_dropout=p / 2,
        )
        self._dropout = p / 2
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(sizes.inner_width)
        self.out = nn.Linear(sizes.inner_width, sizes.width)

    def forward(self, x_NTd: Tensor, there_NT: Tensor | None = None) -> Tensor:
        """Tokens [N, T, inner width], and which are there, to features [N, T, D]."""
        if there_NT is not None:
            # A sample without any token attends to all of them, so that its numbers are finite; nothing uses them.
            there_NT = there_NT | ~there_NT.any(1, keepdim=True)
        x = dropout(x_NTd, self._dropout, self.training)
        for layer in self.layers:
            x = layer(x, there_NT)
        h_NTD: Tensor = self.out(self.norm(x))
        return h_NTD
