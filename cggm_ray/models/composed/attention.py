"""The fusion `attention`: a learned token attends to the features of all modalities, step by step and patch by patch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cggm_ray.models.composed.registry import FUSIONS, FusionInfo, FusionPlan
from cggm_ray.models.composed.steps import there
from cggm_ray.models.net import Masks, mask_of


class CrossAttention(nn.Module):
    """Cross-attention from one learned token, and a feed-forward layer; pre-norm."""

    def __init__(self, plan: FusionPlan) -> None:
        super().__init__()
        width, p = plan.width, plan.dropout
        self.token_D = nn.Parameter(0.02 * torch.randn(width))
        self.names_D = nn.ParameterDict({name: nn.Parameter(0.02 * torch.randn(width)) for name in plan.modalities})
        self.norms = nn.ModuleDict({name: nn.LayerNorm(width) for name in plan.modalities})
        self.attention = nn.MultiheadAttention(width, plan.heads, dropout=p / 2, batch_first=True)
        self.forward_layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(p), nn.Linear(2 * width, width)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Mapping[str, Tensor], masks: Masks | None = None) -> Tensor:
        """Features by modality to [N, D]."""
        tokens, has = [], []
        for name, norm in self.norms.items():
            h_NTD = features[name]
            tokens.append(norm(h_NTD) + self.names_D[name])
            has.append(there(h_NTD, None if masks is None else mask_of(h_NTD, masks.get(name))))
        tokens_NTD, there_NT = torch.cat(tokens, 1), torch.cat(has, 1)
        # A sample without any token attends to all of them, which are the same constants then.
        hidden_NT = ~there_NT & there_NT.any(1, keepdim=True)
        query_N1D = self.token_D.expand(tokens_NTD.shape[0], 1, -1)
        seen_N1D, _ = self.attention(
            query_N1D, tokens_NTD, tokens_NTD, key_padding_mask=None if masks is None else hidden_NT, need_weights=False
        )
        z_ND = (query_N1D + seen_N1D)[:, 0]
        hidden_ND: Tensor = self.norm(z_ND + self.forward_layers(z_ND))
        return hidden_ND


FUSIONS.register("attention")(FusionInfo(build=CrossAttention))
