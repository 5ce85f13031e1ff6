"""The network for sequences of features (CMU-MOSI, IEMOCAP), as in the released code.

Each modality is projected to a common width and encoded; the encoded steps of all modalities are concatenated along time
and fused by a further transformer, of which time step 0 is used, followed by a residual block and the head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cggm_ray.core.batch import HeadOutput
from cggm_ray.models.dropout import relu_dropout_linear
from cggm_ray.models.net import Masks, MultimodalNet
from cggm_ray.models.registry import NETWORKS, NetworkInfo, NetworkOptions, NetworkPlan, can_be_recorded
from cggm_ray.models.settings import ModelConfig
from cggm_ray.models.stacked import Linear, Stackable
from cggm_ray.models.transformer import TransformerConfig, TransformerEncoder


class SequenceEncoder(nn.Module):
    """Linear projection and transformer: [N, T, features] to [N, T, D]."""

    def __init__(self, features: int, config: TransformerConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(features, config.width)
        self.body = TransformerEncoder(config)

    def forward(self, x: Tensor, mask_NT: Tensor | None = None) -> Tensor:
        """[N, T, features] to [N, T, D]."""
        return self.body(self.proj(x), mask_NT)


class TransformerFusion(nn.Module):
    """Concatenates the modalities along time: features [N, T_m, D] to the head's input [N, D]."""

    def __init__(self, config: TransformerConfig, *, out_dropout: float) -> None:
        super().__init__()
        self.transformer = TransformerEncoder(config, first_step_only=True)
        self.proj1 = Linear(config.width, config.width)
        self.proj2 = Linear(config.width, config.width)
        self.out_dropout = out_dropout

    def forward(self, features: Mapping[str, Tensor], masks: Masks | None = None) -> Tensor:
        """Features by modality to [N, D]; with masks, only steps that are there are attended to."""
        mask_NT = None if masks is None else _joined(features, masks)
        z_ND = self.transformer(torch.cat(list(features.values()), 1), mask_NT).squeeze(1)
        return relu_dropout_linear(self.proj1(z_ND), self.proj2, self.out_dropout, self.training) + z_ND


class SequenceGuide(Stackable):
    """Guide classifier of a sequence: transformer, time step 0, one linear layer applied twice, head.

    Args:
        config: size of the transformer.
        outputs: C.
    """

    def __init__(self, config: TransformerConfig, outputs: int) -> None:
        super().__init__()
        self.bone = TransformerEncoder(config, first_step_only=True)
        self.proj1 = Linear(config.width, config.width)
        self.head = Linear(config.width, outputs)

    def forward(self, h_NTD: Tensor, mask_NT: Tensor | None = None) -> HeadOutput:
        """Detached features [N, T, D] of one modality to its own prediction."""
        hidden = F.relu(self.proj1(self.proj1(self.bone(h_NTD, mask_NT).squeeze(1))))
        return HeadOutput(self.head(hidden), hidden)


def _joined(features: Mapping[str, Tensor], masks: Masks) -> Tensor:
    """The masks of all features, one after the other along time: bool [N, sum of T_m]."""
    parts = []
    for name, h_NTD in features.items():
        mask = masks.get(name)
        whole = torch.ones(h_NTD.shape[:2], dtype=torch.bool, device=h_NTD.device)
        parts.append(whole if mask is None else whole & mask)
    return torch.cat(parts, 1)


def transformer_config(config: ModelConfig, layers: int) -> TransformerConfig:
    """The transformer of that many layers in this model."""
    return TransformerConfig(
        width=config.proj_dim,
        heads=config.num_heads,
        layers=layers,
        attn_dropout=config.attn_dropout,
        relu_dropout=config.relu_dropout,
        embed_dropout=config.embed_dropout,
        res_dropout=config.res_dropout,
    )


def sequence_net(config: ModelConfig, features: Mapping[str, int], outputs: int) -> MultimodalNet:
    """The released network.

    Args:
        config: sizes and dropouts.
        features: width of the input by modality, in the order of the fusion.
        outputs: C.
    """
    encoder = transformer_config(config, config.nlevels)
    return MultimodalNet(
        {name: SequenceEncoder(width, encoder) for name, width in features.items()},
        TransformerFusion(dataclasses.replace(encoder, layers=config.nlevels - 2), out_dropout=config.out_dropout),
        nn.Linear(config.proj_dim, outputs),
    )


def sequence_guides(config: ModelConfig, modalities: Iterable[str], outputs: int) -> dict[str, nn.Module]:
    """A `SequenceGuide` for each modality."""
    guide = transformer_config(config, config.cls_layers)
    return {name: SequenceGuide(guide, outputs) for name in modalities}


def _build(plan: NetworkPlan[NetworkOptions]) -> tuple[MultimodalNet, dict[str, nn.Module]]:
    widths = {name: shape[-1] for name, shape in plan.shapes.items()}
    return sequence_net(plan.sizes, widths, plan.outputs), sequence_guides(plan.sizes, widths, plan.outputs)


NETWORKS.register("sequence")(NetworkInfo(build=_build, options=NetworkOptions, against_graph=can_be_recorded))
