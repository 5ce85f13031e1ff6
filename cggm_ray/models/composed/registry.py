"""Encoders and fusions by name, and what each is built from.

An encoder or a fusion is one file in this package, or a file of a person's own that is named by `--import`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from cggm_ray.core.kinds import FRAMES, IMAGE, KINDS, SEQUENCE, VECTOR
from cggm_ray.core.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes that all encoders and fusions of a network share.

    Attributes:
        width: D, the number of features of every encoder, of the fusion, and of the input of every head.
        depth: layers of an encoder.
        inner_width: of the transformer layers inside an encoder.
        heads: of attention; they divide both widths.
        dropout: probability.
        input_dropout: probability with which a number of a sample is dropped.
        linear_path: whether a perceptron has a linear path from its numbers to its features beside its layers.
    """

    width: int
    depth: int
    inner_width: int
    heads: int
    dropout: float
    input_dropout: float
    linear_path: bool


@dataclass(frozen=True, kw_only=True)
class EncoderPlan(Sizes):
    """What an encoder is built from.

    Attributes:
        shape: of one sample.
        kind: one of `core.kinds.KINDS`, or `FRAMES`.
    """

    shape: tuple[int, ...]
    kind: str


@dataclass(frozen=True, kw_only=True)
class EncoderInfo:
    """An encoder as a network knows it.

    Attributes:
        build: makes the encoder, a module that maps inputs [N, ...], and masks as a second argument where there are any, to
            features [N, T, D]. T is 1, or the number of steps of the masks. Padded steps must not reach the output.
        kinds: of input that it accepts.
        default: the kinds for which it is taken where none is named.
    """

    build: Callable[[EncoderPlan], nn.Module]
    kinds: tuple[str, ...] = (VECTOR, SEQUENCE, IMAGE)
    default: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FusionPlan(Sizes):
    """What a fusion is built from.

    Attributes:
        modalities: names, in the order in which the features come.
    """

    modalities: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FusionInfo:
    """A fusion as a network knows it.

    Attributes:
        build: makes the fusion, a module that maps the features of all modalities, and masks as a second argument where
            there are any, to the input of the head [N, D].
    """

    build: Callable[[FusionPlan], nn.Module]


ENCODERS: Registry[EncoderInfo] = Registry("encoder", "cggm_ray.models.composed")
FUSIONS: Registry[FusionInfo] = Registry("fusion", "cggm_ray.models.composed")


def default_encoder(kind: str) -> str:
    """Returns the name of the encoder that a kind of input has where none is named."""
    return next(name for name in ENCODERS.names() if kind in ENCODERS.get(name).default)


def encoders_for(kind: str) -> list[str]:
    """Returns the names of the encoders that accept a kind of input, one of `KINDS` or `FRAMES`."""
    assert kind in (*KINDS, FRAMES)
    return [name for name in ENCODERS.names() if kind in ENCODERS.get(name).kinds]
