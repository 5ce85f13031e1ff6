"""The network for sequences of features (CMU-MOSI, IEMOCAP), as in the released code.

Each modality is projected to a common width and encoded; the encoded steps of all modalities are concatenated along time
and fused by a further transformer, of which time step 0 is used, followed by a residual block and the head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cggm_ray.core.batch import Feature, HeadOutput
from cggm_ray.models.dropout import relu_dropout_linear
from cggm_ray.models.net import Given, Masks, MultimodalNet, masks_of_steps
from cggm_ray.models.registry import NETWORKS, NetworkInfo, NetworkOptions, NetworkPlan, can_be_recorded
from cggm_ray.models.settings import ModelConfig
from cggm_ray.models.stacked import Linear, Stackable, call_together, has_hooks
from cggm_ray.models.transformer import TransformerConfig, TransformerEncoder

MOST_TOGETHER = 2**24
"""Parameters of bodies that are called together. They are copied side by side in every step, and those of large networks are
in kernels that take long enough by themselves."""


class SequenceEncoder(nn.Module):
    """Linear projection and transformer: [N, T, features] to [N, T, D]."""

    def __init__(self, features: int, config: TransformerConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(features, config.width)
        self.body = TransformerEncoder(config)

    def forward(self, x: Tensor, mask_NT: Tensor | None = None) -> Tensor:
        """[N, T, features] to [N, T, D]."""
        return self.body(self.proj(x), mask_NT)

    def compile(self, *args: Any, **options: Any) -> None:
        """Has the body alone compiled, because a network that calls bodies together does not call the encoder."""
        self.body.compile(*args, **options)


class SequenceNet(MultimodalNet):
    """A network of sequence encoders whose bodies are called together while it trains, with their weights side by side.

    That needs bodies of one configuration, inputs with the same number of time steps, and encoders without hooks. Otherwise,
    and for evaluation and export, encoders are called one by one. Both give the same numbers, but draw dropout in another
    order.

    Args:
        encoders: by modality.
        fusion: as for `MultimodalNet`.
        head: as for `MultimodalNet`.
        together: whether bodies are called together; None for yes on a device that is no CPU, which starts fewer kernels then,
            and with up to `MOST_TOGETHER` parameters in all bodies. May be set later.
    """

    def __init__(
        self,
        encoders: Mapping[str, SequenceEncoder],
        fusion: nn.Module,
        head: nn.Module,
        *,
        together: bool | None = None,
    ) -> None:
        super().__init__(encoders, fusion, head)
        self.together = together
        sizes = (parameter.numel() for encoder in encoders.values() for parameter in encoder.body.parameters())
        self._small = sum(sizes) <= MOST_TOGETHER

    def run_encoders(self, given: Mapping[str, Given]) -> dict[str, Feature]:
        """Features of every modality; bodies are called together where that can be."""
        encoders = cast("dict[str, SequenceEncoder]", dict(self.encoders.items()))
        # Also without gradients, because a pass that finds the sums of a batch draws the dropout of the pass after it.
        if not (self.training and self._wanted(given) and _one_call(list(encoders.values()), given)):
            return super().run_encoders(given)
        projected: dict[str, Tensor] = {name: encoders[name].proj(x) for name, (x, _) in given.items()}
        masks = {name: mask for name, (_, mask) in given.items() if mask is not None}
        joined_masks = [torch.cat(masks_of_steps(projected, masks))] if masks else []
        bodies = [encoder.body for encoder in encoders.values()]
        joined: Tensor = call_together(bodies, torch.cat(list(projected.values())), *joined_masks)
        return dict(zip(projected, joined.chunk(len(bodies)), strict=True))

    def _wanted(self, given: Mapping[str, Given]) -> bool:
        if self.together is None:
            return self._small and all(x.device.type != "cpu" for x, _ in given.values())
        return self.together


def _one_call(encoders: Sequence[SequenceEncoder], given: Mapping[str, Given]) -> bool:
    """Returns whether bodies can be called together for these inputs; parameters follow from a body's configuration."""
    inputs = {x.shape[:2] for x, _ in given.values()}
    bodies = {(type(each.body), each.body.config, each.body.training) for each in encoders}
    return len(encoders) > 1 and len(inputs) == len(bodies) == 1 and not any(map(has_hooks, encoders))


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
        mask_NT = None if masks is None else torch.cat(masks_of_steps(features, masks), 1)
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


def sequence_net(config: ModelConfig, features: Mapping[str, int], outputs: int) -> SequenceNet:
    """The released network.

    Args:
        config: sizes and dropouts.
        features: width of the input by modality, in the order of the fusion.
        outputs: C.
    """
    encoder = transformer_config(config, config.nlevels)
    return SequenceNet(
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
