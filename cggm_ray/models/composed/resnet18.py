"""The encoder `resnet18` (He et al. 2016), as sets of sound and pictures are trained from scratch.

It sees spectrograms [H, W], pictures [C, H, W] and frames [F, C, H, W]. Its statistics are those of the global batch, over all
workers, and of the samples that have the modality.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cggm_ray.core.kinds import FRAMES, IMAGE
from cggm_ray.models.batchnorm import BatchNorm2d
from cggm_ray.models.composed.images import ChannelsFirst
from cggm_ray.models.composed.registry import ENCODERS, EncoderInfo, EncoderPlan
from cggm_ray.models.resnet import Block, ResNetConfig

STAGES = 4
BLOCKS = 2
"""Residual blocks of a stage."""


class ResNet18Encoder(nn.Module):
    """ResNet-18 from scratch; the mean over pixels and frames at its end.

    `inner_width` is the number of channels of the first stage, 64 in the paper. The features are those of the last stage where
    `width` is eight times as many, and else a linear map of them. There is no dropout.
    """

    def __init__(self, plan: EncoderPlan) -> None:
        super().__init__()
        self.frames = plan.shape[0] if plan.kind == FRAMES else 1
        self.images = ChannelsFirst(plan.shape[1:] if plan.kind == FRAMES else plan.shape)
        width = plan.inner_width
        config = ResNetConfig(blocks=(BLOCKS, BLOCKS, BLOCKS, BLOCKS), bottleneck=False, width=width)
        self.conv1 = nn.Conv2d(self.images.channels, width, 7, 2, padding=3, bias=False)
        self.bn1 = BatchNorm2d(width)
        blocks: list[nn.Module] = []
        channels = width
        for stage in range(STAGES):
            for block in range(BLOCKS):
                stride = 2 if stage and not block else 1
                blocks.append(Block(channels, width << stage, config, stride=stride, dilation=1))
                channels = width << stage
        self.blocks = nn.Sequential(*blocks)
        self.out = nn.Identity() if channels == plan.width else nn.Linear(channels, plan.width)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor, mask_N1: Tensor | None = None) -> Tensor:
        """Inputs [N, ...] to [N, 1, D]."""
        there = None if mask_N1 is None else mask_N1.any(1)
        x = x.flatten(0, 1) if self.frames > 1 or x.ndim == 5 else x
        with self.bn1.global_batch.among(there, self.frames):
            x = F.max_pool2d(F.relu(self.bn1(self.conv1(self.images(x)))), 3, 2, padding=1)
            x = self.blocks(x)
        h_ND: Tensor = self.out(x.mean((2, 3)).unflatten(0, (-1, self.frames)).mean(1))
        return h_ND[:, None]


ENCODERS.register("resnet18")(EncoderInfo(build=ResNet18Encoder, kinds=(IMAGE, FRAMES), default=(FRAMES,)))
