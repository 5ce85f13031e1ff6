"""Encoders of images: `resnet` and `patches`."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cggm_ray.core.kinds import IMAGE, channels_last
from cggm_ray.models.composed.registry import ENCODERS, EncoderInfo, EncoderPlan
from cggm_ray.models.composed.transformer import TransformerLayers
from cggm_ray.models.shaped import PatchProjection

LARGEST = 16
"""Pixels along the longer side of an image on which the residual blocks begin."""
CHANNELS = (16, 32, 64)
GROUP = 8
"""Channels that are normalised together. Statistics of single samples make a batch in parts equal to the whole batch."""


class ChannelsFirst(nn.Module):
    """Images [N, H, W], [N, C, H, W] or [N, H, W, C] as [N, C, H, W].

    Args:
        shape: of one image.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.last = channels_last(shape)
        size = (shape[2], *shape[:2]) if self.last else (1, *shape)[-3:]
        self.channels, self.height, self.width = size

    def forward(self, x: Tensor) -> Tensor:
        """[N, ...] to [N, C, H, W]."""
        return x.movedim(-1, 1) if self.last else x.unsqueeze(1) if x.ndim == 3 else x


class Block(nn.Module):
    """A residual block of two 3x3 convolutions, pre-activation; the second half of the resolution where `stride` is 2."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(channels // GROUP, channels), nn.GroupNorm(out // GROUP, out)
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.skip = nn.Identity() if stride == 1 and channels == out else nn.Conv2d(channels, out, 1, stride)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C', H', W']."""
        h = self.conv1(F.gelu(self.norm1(x_NCHW)))
        h = self.conv2(F.gelu(self.norm2(h)))
        out: Tensor = self.skip(x_NCHW) + h
        return out


class ResNetEncoder(nn.Module):
    """A small residual network (He et al. 2016) with group normalisation; mean and maximum over the pixels at its end."""

    def __init__(self, plan: EncoderPlan) -> None:
        super().__init__()
        self.images = ChannelsFirst(plan.shape)
        first, side = CHANNELS[0], max(self.images.height, self.images.width)
        stem: list[nn.Module] = [nn.Conv2d(self.images.channels, first, 3, padding=1)]
        while side > LARGEST:
            stem += [nn.GELU(), nn.Conv2d(first, first, 3, stride=2, padding=1)]
            side = (side + 1) // 2
        blocks = [Block(first, first, 1)]
        blocks += [Block(old, new, 2) for old, new in itertools.pairwise(CHANNELS)]
        self.body = nn.Sequential(*stem, *blocks, nn.GroupNorm(CHANNELS[-1] // GROUP, CHANNELS[-1]), nn.GELU())
        self.out = nn.Sequential(
            nn.Linear(2 * CHANNELS[-1], plan.width), nn.LayerNorm(plan.width), nn.GELU(), nn.Dropout(plan.dropout)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Images [N, ...] to [N, 1, D]."""
        pixels_NCP = self.body(self.images(x)).flatten(2)
        h_ND: Tensor = self.out(torch.cat([pixels_NCP.mean(2), pixels_NCP.amax(2)], 1))
        return h_ND[:, None]


class PatchesEncoder(nn.Module):
    """Patches by convolutions, learned positions, and transformer layers over them: a feature for every patch."""

    def __init__(self, plan: EncoderPlan) -> None:
        super().__init__()
        self.images = images = ChannelsFirst(plan.shape)
        self.proj = PatchProjection(images.channels, images.height, images.width, plan.inner_width)
        with torch.no_grad():
            patches = self.proj(torch.zeros(1, images.channels, images.height, images.width)).shape[1]
        self.positions_Td = nn.Parameter(0.02 * torch.randn(patches, plan.inner_width))
        self.layers = TransformerLayers(plan)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Images [N, ...] to [N, T, D], with T patches."""
        h_NTD: Tensor = self.layers(self.proj(self.images(x)) + self.positions_Td)
        return h_NTD


ENCODERS.register("resnet")(EncoderInfo(build=ResNetEncoder, kinds=(IMAGE,), default=(IMAGE,)))
ENCODERS.register("patches")(EncoderInfo(build=PatchesEncoder, kinds=(IMAGE,)))
