"""Kinds of input of a modality: a sequence, a vector or an image."""

from __future__ import annotations

SEQUENCE, VECTOR, IMAGE = "sequence", "vector", "image"
KINDS = {SEQUENCE: "[T, D]", VECTOR: "[D]", IMAGE: "[H, W], [C, H, W] or [H, W, C]"}


def kind_of(shape: tuple[int, ...]) -> str | None:
    """Returns the kind of samples of this shape, or None if it is none of `KINDS`. Two equal axes make an image."""
    if len(shape) == 2:
        return IMAGE if shape[0] == shape[1] else SEQUENCE
    return {1: VECTOR, 3: IMAGE}.get(len(shape))


def fits(kind: str, shape: tuple[int, ...]) -> bool:
    """Returns whether an encoder of this kind accepts samples of this shape. Every kind accepts a vector."""
    return len(shape) in {SEQUENCE: (2,), VECTOR: range(1, 9), IMAGE: (2, 3)}[kind]
