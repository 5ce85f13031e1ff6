"""The residual network under DeepLab: one input channel, output stride 16, dilated last stage (released code).

Parameter names are those of the released code (and of torchvision). Shapes: N samples, C channels, H and W pixels of the
input, h and w pixels of a feature map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from cggm_ray.models.batchnorm import BatchNorm2d

MULTI_GRID = (1, 2, 4)


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Size of a residual network.

    Attributes:
        blocks: residual blocks of the four stages; the last has at most three, with rising dilation.
        bottleneck: blocks of three convolutions that widen four times, instead of two convolutions.
        width: channels of the first stage before widening.
    """

    blocks: tuple[int, int, int, int]
    bottleneck: bool = True
    width: int = 64

    @property
    def expansion(self) -> int:
        """How many times a block's output is wider than its inner convolutions."""
        return 4 if self.bottleneck else 1

    @property
    def low_channels(self) -> int:
        """Channels after the first stage."""
        return self.width * self.expansion

    @property
    def channels(self) -> int:
        """Channels after the last stage."""
        return 8 * self.width * self.expansion


BACKBONES = {
    "resnet18": ResNetConfig(blocks=(2, 2, 2, 2), bottleneck=False),
    "resnet50": ResNetConfig(blocks=(3, 4, 6, 3)),
    "resnet101": ResNetConfig(blocks=(3, 4, 23, 3)),
}
"""Networks by the name that `--backbone` takes."""


class Block(nn.Module):
    """Convolutions with a residual connection, which is projected where the shape changes.

    Args:
        channels: of the input.
        width: of the inner convolutions.
        config: chooses between the two kinds of block.
        stride, dilation: of the (first) 3x3 convolution.
    """

    def __init__(self, channels: int, width: int, config: ResNetConfig, *, stride: int, dilation: int) -> None:
        super().__init__()
        out = width * config.expansion

        def wide(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, 3, stride, padding=dilation, dilation=dilation, bias=False)

        if config.bottleneck:
            self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
            self.conv2 = wide(width, width, stride)
            self.conv3 = nn.Conv2d(width, out, 1, bias=False)
            self.bn3 = BatchNorm2d(out)
        else:
            self.conv1 = wide(channels, width, stride)
            self.conv2 = wide(width, out, 1)
        self.bn1, self.bn2 = BatchNorm2d(width), BatchNorm2d(width)
        self.bottleneck = config.bottleneck
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] to [N, C', h', w']."""
        residual = x if self.downsample is None else self.downsample(x)
        x = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.bottleneck:
            x = self.bn3(self.conv3(F.relu(x)))
        return F.relu(x + residual)


class ResNet(nn.Module):
    """Features of one image sequence at stride 16 and, from the first stage, at stride 4."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        width = config.width
        self.conv1 = nn.Conv2d(1, width, 7, 2, padding=3, bias=False)
        self.bn1 = BatchNorm2d(width)
        grid = MULTI_GRID[: config.blocks[3]]
        self.layer1 = _stage(config, width, width, stride=1, dilations=(1,) * config.blocks[0])
        self.layer2 = _stage(config, config.low_channels, 2 * width, stride=2, dilations=(1,) * config.blocks[1])
        self.layer3 = _stage(config, 2 * config.low_channels, 4 * width, stride=2, dilations=(1,) * config.blocks[2])
        self.layer4 = _stage(
            config, 4 * config.low_channels, 8 * width, stride=1, dilations=tuple(2 * rate for rate in grid)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, 1, H, W] to [N, C, H/16, W/16] and [N, C', H/4, W/4]."""
        low = self.layer1(F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, padding=1))
        return self.layer4(self.layer3(self.layer2(low))), low


def _stage(
    config: ResNetConfig, channels: int, width: int, *, stride: int, dilations: tuple[int, ...]
) -> nn.Sequential:
    """Blocks with these dilations; the first takes the stride and changes the number of channels."""
    blocks = []
    for number, dilation in enumerate(dilations):
        blocks.append(Block(channels, width, config, stride=stride if number == 0 else 1, dilation=dilation))
        channels = width * config.expansion
    return nn.Sequential(*blocks)
