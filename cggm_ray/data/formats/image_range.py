"""Converts grey images of more than 8 bits: it finds the value that is white and scales 0 to that value to 0 to 255.

Pillow clips such images at 255 where it makes them RGB, so a 16-bit image turns nearly white. Colour images of 16 bits a
channel are not concerned: Pillow keeps the upper byte of each value while it decodes them.

White is, in this order:

- what a TIFF states, as its largest sample value or as fewer bits than 16;
- 2**bits - 1 for integers, where the caller says how many bits the camera has;
- 255 for values of at most 255: 8-bit data in a file of a wider type;
- 32,767 for signed integers of 16 bits, 65,535 for all others;
- for floats 1, 255 or 65,535, the smallest that no value exceeds.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cggm_ray.core.optional import require

WIDEST = 16
_BITS, _PHOTOMETRIC, _LARGEST, _SAMPLE_FORMAT = 258, 262, 281, 339
"""Numbers of TIFF tags."""
_SIGNED = 2
_OVERSHOOT = 0.01
"""Share of white by which floats may lie outside 0 to white, because resampling overshoots; they are clipped."""


def is_wide(image: Any) -> bool:
    """Returns whether a Pillow image is grey with more than 8 bits."""
    return image.mode == "F" or image.mode.startswith("I")


def white_and_peak(image: Any, bits: int | None = None) -> tuple[int, float]:
    """Returns the value that is white in a wide image, and the image's largest value.

    Args:
        image: a Pillow image for which `is_wide` holds.
        bits: of the camera, 9 to 16, for integers; None if unknown.

    Raises:
        ValueError: values are negative, not finite, or above white.
    """
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise ValueError("found values that are not finite; expected finite ones")
    least, peak = float(values.min()), float(values.max())
    slack = 0.0
    if image.mode == "F":
        slack = _OVERSHOOT
        white = next((top for top in (1, 255, 65_535) if peak <= top * (1 + slack)), 65_535)
    else:
        white = _stated(image) or _usual(image, peak, bits)
    if least < -slack * white or peak > (1 + slack) * white:
        raise ValueError(f"found values of {least:g} to {peak:g}; expected 0 to {white:,}")
    return white, peak


def eight_bits(image: Any, bits: int | None = None) -> Any:
    """A wide image as a Pillow image whose values from 0 to 255 mean black to white; see `white_and_peak`."""
    white, _ = white_and_peak(image, bits)
    inverted = _tag(image, _PHOTOMETRIC) == 0
    if white == 255 and not inverted:
        return image
    values = np.asarray(image).astype(np.float64) * (255 / white)
    values = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    images = require("PIL.Image", extra="images", purpose="images")
    return images.fromarray(255 - values if inverted else values)


def _usual(image: Any, peak: float, bits: int | None) -> int:
    """Returns the white of integers if the file does not state it."""
    if bits is not None:
        return 2**bits - 1
    if peak <= 255:
        return 255
    return 2**15 - 1 if _tag(image, _BITS) == WIDEST and _tag(image, _SAMPLE_FORMAT) == _SIGNED else 2**16 - 1


def _stated(image: Any) -> int | None:
    """Returns the white that a TIFF states, or None."""
    largest, bits = _tag(image, _LARGEST), _tag(image, _BITS)
    if isinstance(largest, int) and 1 < largest < 2**16:
        return largest
    return 2**bits - 1 if isinstance(bits, int) and 8 < bits < WIDEST else None


def _tag(image: Any, number: int) -> Any:
    """Returns the first value of a TIFF tag, or None."""
    value = getattr(image, "tag_v2", {}).get(number)
    return value[0] if isinstance(value, tuple) and value else value
