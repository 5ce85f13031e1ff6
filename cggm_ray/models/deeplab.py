"""DeepLabv3+ with one encoder per image sequence (BraTS 2021), as in the released code.

Each sequence has its own residual network and its own spatial pyramid. Their outputs, and the low-level features of the
first stages, are concatenated over the sequences and decoded together; a guide decodes those of one sequence. Parameter
names are those of the released code. Shapes: N samples, C channels or classes, H and W pixels of the input, h and w pixels
of a feature map.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cggm_ray.config.fields import one_of, option
from cggm_ray.core.arithmetic import in_precision
from cggm_ray.core.batch import Feature, HeadOutput
from cggm_ray.core.errors import DataError
from cggm_ray.models.batchnorm import BatchNorm2d, recompute_contexts
from cggm_ray.models.net import Masks, MultimodalNet
from cggm_ray.models.registry import NETWORKS, NetworkInfo, NetworkOptions, NetworkPlan
from cggm_ray.models.resnet import BACKBONES, ResNet, ResNetConfig

LOW_STRIDE = 4
"""Pixels of the input per pixel of the low-level features, and of the head's map."""


@dataclass(frozen=True, kw_only=True)
class DeepLabConfig:
    """Size of the network.

    Attributes:
        backbone: residual network of every sequence.
        rates: dilations of the pyramid; the first belongs to a 1x1 convolution.
        channels: of the pyramid's output and of the decoder.
        low_channels: to which the low-level features are reduced.
        recompute: whether the activations of the encoders are computed again in the backward pass instead of being kept.
        dropouts: probabilities after the pyramid, and after the first and the second block of the decoder.
    """

    backbone: ResNetConfig
    rates: tuple[int, ...] = (1, 2, 4, 6)
    channels: int = 256
    low_channels: int = 48
    recompute: bool = False
    dropouts: tuple[float, float, float] = (0.5, 0.5, 0.1)


class Atrous(nn.Module):
    """Dilated convolution, norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, *, size: int, rate: int) -> None:
        super().__init__()
        padding = rate if size > 1 else 0
        self.atrous_conv = nn.Conv2d(inputs, outputs, size, padding=padding, dilation=rate, bias=False)
        self.bn = BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] to [N, C', h, w]."""
        return F.relu(self.bn(self.atrous_conv(x)))


class SpatialPyramid(nn.Module):
    """ASPP: dilated convolutions of several rates and the mean over the image, reduced to one map."""

    def __init__(self, inputs: int, config: DeepLabConfig) -> None:
        super().__init__()
        self.rates = len(config.rates)
        for number, rate in enumerate(config.rates, start=1):
            size = 1 if number == 1 else 3
            self.add_module(f"aspp{number}", Atrous(inputs, config.channels, size=size, rate=rate))
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(inputs, config.channels, 1, bias=False),
            BatchNorm2d(config.channels),
            nn.ReLU(),
        )
        self.conv1 = nn.Conv2d((self.rates + 1) * config.channels, config.channels, 1, bias=False)
        self.bn1 = BatchNorm2d(config.channels)
        self.dropout = nn.Dropout(config.dropouts[0])
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] to [N, C', h, w]."""
        maps = [self.get_submodule(f"aspp{number}")(x) for number in range(1, self.rates + 1)]
        maps.append(self.global_avg_pool(x).expand_as(maps[0]))
        return self.dropout(F.relu(self.bn1(self.conv1(torch.cat(maps, 1)))))


class DeepLabEncoder(nn.Module):
    """Residual network and pyramid of one sequence; both of its outputs are features."""

    def __init__(self, config: DeepLabConfig) -> None:
        super().__init__()
        self.backbone = ResNet(config.backbone)
        self.aspp = SpatialPyramid(config.backbone.channels, config)
        self.recompute = config.recompute

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, 1, H, W] to the pyramid's output at stride 16 and the low-level features at stride 4.

        Raises:
            DataError: H or W is not a multiple of 4, so that the prediction could not have the size of the input.
        """
        if x.shape[-1] % LOW_STRIDE or x.shape[-2] % LOW_STRIDE:
            raise DataError(f"input: images of {list(x.shape[-2:])} pixels; expected multiples of {LOW_STRIDE}")
        if not (self.recompute and self.training and torch.is_grad_enabled()):
            return self._features(x)
        features: tuple[Tensor, Tensor] = checkpoint(
            self._features, x, use_reentrant=False, context_fn=partial(recompute_contexts, self)
        )
        return features

    def _features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        high, low = self.backbone(x)
        return self.aspp(high), low


class Decoder(nn.Module):
    """From the features of some sequences to the input of the 1x1 convolution that predicts.

    Args:
        config: size.
        sequences: number of sequences whose features it reads.
    """

    def __init__(self, config: DeepLabConfig, sequences: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(sequences * config.backbone.low_channels, config.low_channels, 1, bias=False)
        self.bn1 = BatchNorm2d(config.low_channels)
        joined = sequences * config.channels + config.low_channels
        self.condconv1 = nn.Conv2d(joined, config.channels, 3, padding=1, bias=False)
        self.last_conv = nn.Sequential(
            BatchNorm2d(config.channels),
            nn.ReLU(),
            nn.Dropout(config.dropouts[1]),
            nn.Conv2d(config.channels, config.channels, 3, padding=1, bias=False),
            BatchNorm2d(config.channels),
            nn.ReLU(),
            nn.Dropout(config.dropouts[2]),
        )
        _initialise(self)

    def forward(self, features: Iterable[Feature]) -> Tensor:
        """(high, low) of every sequence to [N, C, H/4, W/4]."""
        highs, lows = (torch.cat(level, 1) for level in zip(*features, strict=True))
        low = F.relu(self.bn1(self.conv1(lows)))
        high = F.interpolate(highs, size=low.shape[2:], mode="bilinear", align_corners=True)
        return self.last_conv(self.condconv1(torch.cat([high, low], 1)))


class JointDecoder(Decoder):
    """The decoder of all sequences together: the fusion of the network."""

    def forward(self, features: Mapping[str, Feature]) -> Tensor:  # type: ignore[override]
        """Features by sequence to [N, C, H/4, W/4]."""
        return super().forward(features.values())


class DeepLabGuide(nn.Module):
    """Guide of one sequence: the decoder for its features alone, and a head.

    Args:
        config: size.
        outputs: C, the number of classes.
    """

    def __init__(self, config: DeepLabConfig, outputs: int) -> None:
        super().__init__()
        self.decoder = Decoder(config, 1)
        self.head = _head(config, outputs)

    def forward(self, feature: Feature) -> HeadOutput:
        """Detached (high, low) of one sequence to its own prediction."""
        return predict(self.head, self.decoder([feature]))


class DeepLab(MultimodalNet):
    """The network: a prediction for every pixel of the input.

    Args:
        config: size.
        modalities: names of the sequences, in the order of the fusion.
        outputs: C, the number of classes.
    """

    def __init__(self, config: DeepLabConfig, modalities: Iterable[str], outputs: int) -> None:
        names = list(modalities)
        super().__init__(
            {name: DeepLabEncoder(config) for name in names},
            JointDecoder(config, len(names)),
            _head(config, outputs),
        )

    def fuse(self, features: Mapping[str, Feature], masks: Masks | None = None) -> HeadOutput:
        """Prediction at the size of the input, with the head's input and its own small map. Sequences have no masks."""
        return predict(self.head, self.fusion(features))


def predict(head: nn.Module, hidden: Tensor) -> HeadOutput:
    """Logits [N, C, H, W] from the head's input [N, D, H/4, W/4]; the head's own map is `raw`."""
    raw = head(hidden)
    raw = in_precision(raw)
    size = [LOW_STRIDE * pixels for pixels in hidden.shape[2:]]
    resize = partial(F.interpolate, size=size, mode="bilinear", align_corners=True)
    return HeadOutput(resize(raw), hidden, raw, resize=resize)


def deeplab_guides(config: DeepLabConfig, modalities: Iterable[str], outputs: int) -> dict[str, nn.Module]:
    """A `DeepLabGuide` for each sequence."""
    return {name: DeepLabGuide(config, outputs) for name in modalities}


def _head(config: DeepLabConfig, outputs: int) -> nn.Conv2d:
    head = nn.Conv2d(config.channels, outputs, 1)
    _initialise(head)
    return head


def _initialise(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight)


@dataclass(frozen=True, kw_only=True)
class DeepLabOptions(NetworkOptions):
    """Options of DeepLabv3+."""

    backbone: str = option("resnet101", "residual network that encodes each sequence: resnet18, resnet50, resnet101")
    recompute: bool = option(
        False, "save memory: compute the activations of the encoders again in the backward pass", resume=True
    )
    channels_last: bool = option(False, "channels last in memory, for the tensor cores of a GPU", resume=True)
    map_dropout: bool = option(True, "dropout of the released network: .5 after the pyramid, .5 and .1 in the decoder")

    def __post_init__(self) -> None:
        one_of(self, "backbone", tuple(BACKBONES))


def _build(plan: NetworkPlan[DeepLabOptions]) -> tuple[MultimodalNet, dict[str, nn.Module]]:
    options, modalities = plan.options, tuple(plan.shapes)
    dropouts = DeepLabConfig.dropouts if options.map_dropout else (0.0, 0.0, 0.0)
    config = DeepLabConfig(backbone=BACKBONES[options.backbone], recompute=options.recompute, dropouts=dropouts)
    net, guides = DeepLab(config, modalities, plan.outputs), deeplab_guides(config, modalities, plan.outputs)
    if options.channels_last:
        for module in (net, *guides.values()):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net, guides


def _against_graph(options: DeepLabOptions) -> str | None:
    return "--recompute reads the state of the generator" if options.recompute else None


NETWORKS.register("deeplab")(
    NetworkInfo(build=_build, options=DeepLabOptions, sized=False, against_graph=_against_graph)
)
