"""Kinds of input of a modality: a sequence, a vector, an image, or the frames of a video."""

from __future__ import annotations

SEQUENCE, VECTOR, IMAGE = "sequence", "vector", "image"
KINDS = {SEQUENCE: "[T, D]", VECTOR: "[D]", IMAGE: "[H, W], [C, H, W] or [H, W, C]"}
FRAMES = "frames"
"""Pictures [F, C, H, W] of one video, which one network sees one by one. Files of features have no such kind."""


def kind_of(shape: tuple[int, ...]) -> str | None:
    """Returns the kind of samples of this shape, or None if it is none of `KINDS`. Two equal axes make an image."""
    if len(shape) == 2:
        return IMAGE if shape[0] == shape[1] else SEQUENCE
    return {1: VECTOR, 3: IMAGE}.get(len(shape))


def channels_last(shape: tuple[int, ...]) -> bool:
    """Returns whether an image of this shape has its channels at the end: 1, 3 or 4 of them, and not as many at the front."""
    return len(shape) == 3 and shape[-1] in (1, 3, 4) and shape[0] not in (1, 3, 4)


def feature_shape(kind: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of a value per feature, which broadcasts over a sample.

    A vector has a feature for every entry, a sequence one for every entry of a time step, and images and frames have one for
    every channel.

    Args:
        kind: one of `KINDS`, or `FRAMES`.
        shape: of a sample.
    """
    if kind == VECTOR:
        return shape
    if kind == SEQUENCE:
        return (1, *shape[1:])
    if kind == FRAMES:
        return (1, shape[1], 1, 1)
    channels = shape[-1] if channels_last(shape) else shape[0] if len(shape) == 3 else 1
    return (1, 1, channels) if channels_last(shape) else (channels, 1, 1)[3 - len(shape) :]


def fits(kind: str, shape: tuple[int, ...]) -> bool:
    """Returns whether an encoder of this kind accepts samples of this shape. Every kind accepts a vector."""
    return len(shape) in {SEQUENCE: (2,), VECTOR: range(1, 9), IMAGE: (2, 3)}[kind]
