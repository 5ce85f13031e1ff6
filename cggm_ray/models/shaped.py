"""A network for any modalities: the encoder of each is chosen by the shape of a sample, the fusion is the released one.

Every encoder gives a sequence of features [N, T, D]: a sequence its time steps, a vector one step, an image its patches.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from cggm_ray.core.errors import UsageError
from cggm_ray.core.kinds import FRAMES, IMAGE, SEQUENCE, VECTOR, channels_last
from cggm_ray.models.net import MultimodalNet
from cggm_ray.models.registry import NETWORKS, NetworkInfo, NetworkOptions, NetworkPlan, can_be_recorded
from cggm_ray.models.sequence import SequenceEncoder, TransformerFusion, sequence_guides, transformer_config
from cggm_ray.models.settings import ModelConfig
from cggm_ray.models.transformer import TransformerConfig, TransformerEncoder

MOST_PATCHES = 64


class VectorEncoder(SequenceEncoder):
    """A sample as a sequence of one step: [N, ...] to [N, 1, D]."""

    def forward(self, x: Tensor, mask_N1: Tensor | None = None) -> Tensor:
        """[N, ...] to [N, 1, D]."""
        return super().forward(x.flatten(1)[:, None], mask_N1)


class PatchProjection(nn.Module):
    """Convolutions that halve an image until at most `MOST_PATCHES` patches are left.

    Args:
        channels: of the image.
        height, width: of the image.
        features: D.
    """

    def __init__(self, channels: int, height: int, width: int, features: int) -> None:
        super().__init__()
        halvings = 1
        while math.ceil(height / 2**halvings) * math.ceil(width / 2**halvings) > MOST_PATCHES:
            halvings += 1
        sizes = [channels, *[features] * halvings]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(old, new, 3, stride=2, padding=1) for old, new in itertools.pairwise(sizes)
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """[N, C, H, W] to patches [N, T, D], row by row."""
        *body, last = self.convolutions
        for convolution in body:
            x_NCHW = F.relu(convolution(x_NCHW))
        # No ReLU at the end: an exact zero in channel 0 would mean padding to the transformer.
        return last(x_NCHW).flatten(2).transpose(1, 2)


class ImageEncoder(nn.Module):
    """Patches and a transformer over them.

    Args:
        shape: [H, W], [C, H, W], or [H, W, C] with 1, 3 or 4 channels.
        config: of the transformer.
    """

    def __init__(self, shape: tuple[int, ...], config: TransformerConfig) -> None:
        super().__init__()
        self._channels_last = channels_last(shape)
        if self._channels_last:
            shape = (shape[2], *shape[:2])
        self.proj = PatchProjection(shape[0] if len(shape) == 3 else 1, shape[-2], shape[-1], config.width)
        self.body = TransformerEncoder(config)

    def forward(self, x: Tensor, mask_N1: Tensor | None = None) -> Tensor:
        """Images [N, ...] to [N, T, D]."""
        x_NCHW = x.movedim(-1, 1) if self._channels_last else x.unsqueeze(1) if x.ndim == 3 else x
        return self.body(self.proj(x_NCHW), mask_N1)


def shaped_net(
    config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], kinds: Mapping[str, str], outputs: int
) -> MultimodalNet:
    """Encoders by kind with the released fusion and head.

    Args:
        config: sizes and dropouts.
        shapes: of a sample, by modality, in the order of the fusion.
        kinds: one of `KINDS` for each.
        outputs: C.
    """
    encoder = transformer_config(config, config.nlevels)
    make = {
        SEQUENCE: lambda shape: SequenceEncoder(shape[-1], encoder),
        VECTOR: lambda shape: VectorEncoder(math.prod(shape), encoder),
        IMAGE: lambda shape: ImageEncoder(shape, encoder),
    }
    return MultimodalNet(
        {name: make[kinds[name]](shape) for name, shape in shapes.items()},
        TransformerFusion(dataclasses.replace(encoder, layers=config.nlevels - 2), out_dropout=config.out_dropout),
        nn.Linear(config.proj_dim, outputs),
    )


def _check(plan: NetworkPlan[NetworkOptions]) -> None:
    """Raises a UsageError for frames, which `composed` alone takes."""
    for name, kind in plan.kinds.items():
        if kind == FRAMES:
            raise UsageError(
                f"network: shaped takes no frames, found {name} of shape {list(plan.shapes[name])}; take --network composed"
            )


def _build(plan: NetworkPlan[NetworkOptions]) -> tuple[MultimodalNet, dict[str, nn.Module]]:
    net = shaped_net(plan.sizes, plan.shapes, plan.kinds, plan.outputs)
    return net, sequence_guides(plan.sizes, plan.shapes, plan.outputs)


NETWORKS.register("shaped")(
    NetworkInfo(build=_build, options=NetworkOptions, check=_check, against_graph=can_be_recorded)
)
