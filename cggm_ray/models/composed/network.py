"""The network: options, guides, and how the parts are put together."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from torch import Tensor, nn

from cggm_ray.config.fields import at_least, check, one_of, option
from cggm_ray.core.batch import HeadOutput
from cggm_ray.core.errors import UsageError
from cggm_ray.core.kinds import IMAGE
from cggm_ray.core.registry import nearest
from cggm_ray.models.composed.pretrained import PretrainedEncoder
from cggm_ray.models.composed.registry import (
    ENCODERS,
    FUSIONS,
    EncoderPlan,
    FusionPlan,
    Sizes,
    default_encoder,
    encoders_for,
)
from cggm_ray.models.composed.steps import AttentionPooling
from cggm_ray.models.net import MultimodalNet, mask_of
from cggm_ray.models.registry import NETWORKS, NetworkInfo, NetworkOptions, NetworkPlan, can_be_recorded
from cggm_ray.models.standardise import AUTO, OFF, ON


@dataclass(frozen=True, kw_only=True)
class ComposedOptions(NetworkOptions):
    """Encoders, fusion and sizes of `composed`."""

    encoders: tuple[str, ...] = option(
        (),
        "composed: modality:encoder, such as audio:transformer, and *:encoder for all others that it accepts; default by kind: "
        "vector mlp, sequence segments, image resnet, frames resnet18",
    )
    fusion: str = option("concat", "composed: concat, sum, film, gated, bilinear, attention, late, or one of yours")
    width: int = option(256, "composed: width of encoders, fusion and guides")
    depth: int = option(2, "composed: layers of each encoder")
    inner_width: int = option(
        64, "composed: width of transformer layers inside an encoder; channels of resnet18's first stage"
    )
    heads: int = option(4, "composed: attention heads")
    dropout: float | None = option(
        None, "composed: dropout of encoders and fusion; default .3 for classes, .5 for a regression"
    )
    input_dropout: float | None = option(
        None,
        "composed: dropout of the numbers of a sample; default half of dropout for classes, and for a regression d / (d + n) "
        "with d numbers of a sample and n training samples, at most dropout",
    )
    linear_path: str = option(
        OFF,
        "composed: a linear path beside the layers of the encoders mlp, pool and segments: on, off, or auto, which is on for a "
        "regression; preset quick: auto",
    )

    def __post_init__(self) -> None:
        # `--encoders ''` is no list with an empty name.
        object.__setattr__(self, "encoders", tuple(filter(None, self.encoders)))
        for name, encoder in self.pairs().items():
            if encoder not in ENCODERS.names():
                raise UsageError(
                    f"encoders: unknown {encoder!r} for {name}{nearest(encoder, ENCODERS.names())}; available: "
                    f"{', '.join(ENCODERS.names())}"
                )
        one_of(self, "fusion", tuple(FUSIONS.names()))
        one_of(self, "linear_path", (AUTO, ON, OFF))
        for field in ("width", "depth", "inner_width", "heads"):
            at_least(self, field, 1)
        for field in ("width", "inner_width"):
            if getattr(self, field) % self.heads:
                raise UsageError(
                    f"heads: {self.heads} heads do not divide {field} {getattr(self, field)}; expected a divisor"
                )
        for field in ("dropout", "input_dropout"):
            value = getattr(self, field)
            check(value is None or 0 <= value < 1, self, field, "a probability in [0, 1)")

    def parts(self) -> list[tuple[str, str]]:
        """Returns registry and name of the encoders and the fusion that the options name."""
        return [*(("encoder", name) for name in self.pairs().values()), ("fusion", self.fusion)]

    def pairs(self) -> dict[str, str]:
        """Returns `encoders` as modality to the name of its encoder.

        Raises:
            UsageError: an item is not modality:encoder, or a modality is there twice.
        """
        found: dict[str, str] = {}
        for item in self.encoders:
            name, colon, encoder = item.rpartition(":")
            if not (name and colon and encoder) or name in found:
                raise UsageError(f"encoders: found {item!r}; expected modality:encoder, once for a modality")
            found[name] = encoder
        return found


EVERY = "*"
"""Stands for all modalities whose encoder is not named."""
DROPOUT, REGRESSION_DROPOUT = 0.3, 0.5
"""Default dropout for classes and for a regression, whose labels are often noisy; both were chosen on the MOSI features."""


class ComposedGuide(nn.Module):
    """Guide of a modality: attention pooling and one linear layer.

    Args:
        width: D.
        outputs: C.
    """

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.pooling = AttentionPooling(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, h_NTD: Tensor, mask: Tensor | None = None) -> HeadOutput:
        """Features [N, T, D] of one modality to its own prediction."""
        hidden = self.pooling(h_NTD, mask_of(h_NTD, mask))
        return HeadOutput(self.head(hidden), hidden)


def kinds_of(name: str | None) -> tuple[str, ...]:
    """Returns the kinds of input that an encoder accepts; none without a name."""
    return () if name is None else ENCODERS.get(name).kinds


def chosen_encoders(plan: NetworkPlan[ComposedOptions]) -> dict[str, str]:
    """Returns the name of the encoder of every modality.

    Raises:
        UsageError: an encoder is named for a modality that is not there, or one that does not accept its kind.
    """
    wanted = plan.options.pairs()
    for name in wanted:
        if name not in (*plan.shapes, EVERY):
            known = ", ".join(plan.shapes)
            raise UsageError(f"encoders: no modality {name!r}{nearest(name, plan.shapes)}; available: {known}")
    every = kinds_of(wanted.get(EVERY))
    chosen = {
        name: wanted.get(name) or (wanted[EVERY] if kind in every else default_encoder(kind))
        for name, kind in plan.kinds.items()
    }
    for name, encoder in chosen.items():
        kind = plan.kinds[name]
        if kind not in ENCODERS.get(encoder).kinds:
            raise UsageError(
                f"encoders: {encoder!r} takes no {kind}, found {name} of shape {list(plan.shapes[name])}; available: "
                f"{', '.join(encoders_for(kind))}"
            )
    return chosen


def input_dropout(plan: NetworkPlan[ComposedOptions], dropout: float) -> float:
    """Returns the probability with which a number of a sample is dropped.

    For a linear regression on d standardised numbers and n samples a dropout of p is the penalty n p / (1 - p) of ridge
    regression (Wager et al. 2013), whose best value is d times the ratio of noise to signal. So where both are equal the
    dropout is d / (d + n): next to nothing for a table of few columns, in which every number counts. Pixels of images are
    not counted. Classes do not need the exact numbers.

    Args:
        plan: of the network.
        dropout: of its layers.
    """
    if plan.options.input_dropout is not None:
        return plan.options.input_dropout
    if not plan.regression:
        return dropout / 2
    numbers = sum(math.prod(shape) for name, shape in plan.shapes.items() if plan.kinds[name] != IMAGE)
    return dropout if plan.samples is None else min(dropout, numbers / (numbers + plan.samples))


def _build(plan: NetworkPlan[ComposedOptions]) -> tuple[MultimodalNet, dict[str, nn.Module]]:
    options, chosen = plan.options, chosen_encoders(plan)
    sizes = {key.name: getattr(options, key.name) for key in dataclasses.fields(Sizes)}
    if options.dropout is None:
        sizes["dropout"] = REGRESSION_DROPOUT if plan.regression else DROPOUT
    sizes["linear_path"] = plan.regression if options.linear_path == AUTO else options.linear_path == ON
    sizes["input_dropout"] = input_dropout(plan, sizes["dropout"])
    encoders: dict[str, nn.Module] = {
        name: ENCODERS.get(chosen[name]).build(EncoderPlan(shape=shape, kind=plan.kinds[name], **sizes))
        for name, shape in plan.shapes.items()
    }
    encoders |= {name: PretrainedEncoder(make(), encoders[name]) for name, make in plan.pretrained.items()}
    fusion = FUSIONS.get(options.fusion).build(FusionPlan(modalities=tuple(encoders), **sizes))
    net = MultimodalNet(encoders, fusion, nn.Linear(options.width, plan.outputs))
    return net, {name: ComposedGuide(options.width, plan.outputs) for name in encoders}


NETWORKS.register("composed")(
    NetworkInfo(
        build=_build,
        options=ComposedOptions,
        sized=False,
        pretrained=True,
        check=chosen_encoders,
        against_graph=can_be_recorded,
    )
)
