"""The transformer of the released code, batch first and with fused attention.

Pre-norm, scaled embedding, sinusoidal positions, ReLU feed-forward of four times the width, final LayerNorm. Parameter
names are those of the released code. Shapes: N samples, T time steps, D width, H heads, Q query steps (T, or 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cggm_ray.models.dropout import add_dropped, drawn_here, dropout, dropped_attention, relu_dropout_linear
from cggm_ray.models.stacked import LayerNorm, Linear, Stackable, linear


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Size and dropouts of a stack of encoder layers."""

    width: int
    heads: int
    layers: int
    attn_dropout: float = 0.0
    relu_dropout: float = 0.0
    embed_dropout: float = 0.0
    res_dropout: float = 0.0


class SinusoidalPositions(nn.Module):
    """Positions as in the released code: step t has row t + 1 of the table, row 0 is zero.

    A step whose channel 0 is exactly 0 before scaling counts as padding and takes row 0.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        # Not buffers, because a compiled graph would be traced again when one changes. A table is never removed, because a CUDA
        # graph reads it at its address.
        self._tables: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}

    def forward(self, x_NTD: Tensor) -> Tensor:
        """Position vectors [N, T, D] for the unscaled input."""
        steps = x_NTD.shape[1]
        if torch.compiler.is_compiling():
            # A graph that is traced as a whole can change nothing of a module that it has read.
            table_TD = position_table(steps + 1, self.width, x_NTD.device).to(x_NTD.dtype)
        else:
            # Sizes are powers of two, so there are few tables, also where every batch has another length.
            key = ((steps + 1).bit_length(), x_NTD.device, x_NTD.dtype)
            if key not in self._tables:
                self._tables[key] = position_table(2 ** key[0], self.width).to(x_NTD)
            table_TD = self._tables[key]
        return table_TD[1 : steps + 1] * (x_NTD[..., :1] != 0)


def position_table(rows: int, width: int, device: torch.device | None = None) -> Tensor:
    """The sinusoidal table [rows, width]; row 0 is zero, and an odd width ends in a zero column."""
    half = width // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float64, device=device) * -(math.log(10000) / (half - 1)))
    angles = torch.arange(rows, dtype=torch.float64, device=device)[:, None] * rates
    table = torch.cat([angles.sin(), angles.cos(), angles.new_zeros(rows, width % 2)], 1)
    table[0] = 0
    return table


class SelfAttention(nn.Module):
    """Multi-head attention with packed query, key and value projections."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.attn_dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * config.width, config.width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * config.width))
        self.out_proj = Linear(config.width, config.width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x_NTD: Tensor, mask_NT: Tensor | None, first_query_only: bool) -> Tensor:
        """Attention output [N, Q, D]. `mask_NT` is False at steps that no query may attend to."""
        width, weight, bias = x_NTD.shape[-1], self.in_proj_weight, self.in_proj_bias
        # A single query has few weights, which torch drops fast enough.
        if drawn_here(x_NTD, self.dropout, self.training) and not first_query_only:
            return self.out_proj(dropped_attention(linear(x_NTD, weight, bias), self.heads, mask_NT, self.dropout))
        if first_query_only:
            sizes = [width, 2 * width]
            of_query, of_others = zip(weight.split(sizes, -2), bias.split(sizes, -1), strict=True)
            q_NQD = linear(x_NTD[:, :1], *of_query)
            k_NTD, v_NTD = linear(x_NTD, *of_others).chunk(2, dim=-1)
        else:
            q_NQD, k_NTD, v_NTD = linear(x_NTD, weight, bias).chunk(3, dim=-1)
        out_NHQd = F.scaled_dot_product_attention(
            self._split(q_NQD),
            self._split(k_NTD),
            self._split(v_NTD),
            attn_mask=None if mask_NT is None else mask_NT[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out_proj(out_NHQd.transpose(1, 2).flatten(2))

    def _split(self, x_NTD: Tensor) -> Tensor:
        return x_NTD.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class EncoderLayer(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.fc1 = Linear(config.width, 4 * config.width)
        self.fc2 = Linear(4 * config.width, config.width)
        self.layer_norms = nn.ModuleList(LayerNorm(config.width) for _ in range(2))
        self.relu_dropout = config.relu_dropout
        self.res_dropout = config.res_dropout
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x_NTD: Tensor, mask_NT: Tensor | None = None, first_query_only: bool = False) -> Tensor:
        """[N, T, D] to [N, Q, D]; with `first_query_only`, time step 0 alone, from all steps."""
        residual = x_NTD[:, :1] if first_query_only else x_NTD
        x = self.self_attn(self.layer_norms[0](x_NTD), mask_NT, first_query_only)
        x = add_dropped(residual, x, self.res_dropout, self.training)
        hidden = relu_dropout_linear(self.fc1(self.layer_norms[1](x)), self.fc2, self.relu_dropout, self.training)
        return add_dropped(x, hidden, self.res_dropout, self.training)


class TransformerEncoder(Stackable):
    """A stack of layers over an embedded sequence.

    Args:
        config: size and dropouts.
        first_step_only: the output is time step 0 alone, [N, 1, D]; the last layer then computes that one query.
    """

    def __init__(self, config: TransformerConfig, *, first_step_only: bool = False) -> None:
        super().__init__()
        self.config = config
        self.scale = math.sqrt(config.width)
        self.embed_dropout = config.embed_dropout
        self.first_step_only = first_step_only
        self.embed_positions = SinusoidalPositions(config.width)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))
        self.layer_norm = LayerNorm(config.width)

    def forward(self, x_NTD: Tensor, mask_NT: Tensor | None = None) -> Tensor:
        """[N, T, D] to [N, T, D], or [N, 1, D] with `first_step_only`.

        Args:
            x_NTD: the sequence.
            mask_NT: bool [N, T] or [N, 1], False at steps that no step may attend to. A row without any step is computed as
                if all were there, so that its numbers are finite; nothing may use them.
        """
        if mask_NT is not None:
            mask_NT = (mask_NT | ~mask_NT.any(1, keepdim=True)).expand(x_NTD.shape[:2])
        x = self.scale * x_NTD + self.embed_positions(x_NTD)
        x = dropout(x, self.embed_dropout, self.training)
        *body, last = self.layers
        for layer in body:
            x = layer(x, mask_NT)
        return self.layer_norm(last(x, mask_NT, self.first_step_only))
