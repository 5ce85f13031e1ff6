"""The image augmentation of the released code, in Pillow and numpy.

Resize, horizontal flip (p 0.5), colour jitter (p 0.8), grey (p 0.2), Gaussian blur of 21 taps. The draws are a function
of a seed only, so a view can be made again anywhere.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cggm_ray.core.optional import require
from cggm_ray.core.seeding import derive_seed
from cggm_ray.data.formats.image_range import eight_bits, is_wide, white_and_peak
from cggm_ray.data.formats.untrusted import image_memory, open_image

if TYPE_CHECKING:
    from PIL.Image import Image

FLIP, JITTER, GREY = 0.5, 0.8, 0.2
BRIGHTNESS = CONTRAST = SATURATION = 0.4
HUE = 0.1
BLUR_RADIUS = 10
BLUR_SIGMA = (0.1, 2.0)
_ORIENTATION = 0x0112
"""Number of the EXIF tag."""


@dataclass(frozen=True, kw_only=True)
class InspectedImage:
    """Properties of an image that become known when it is decoded.

    Attributes:
        problem: why it cannot be read, or None.
        white: the value that is white in a grey image of more than 8 bits (`image_range`); 0 for other images.
        peak: its largest value.
        turned: its EXIF data say that it must be turned or mirrored to stand upright.
    """

    problem: str | None = None
    white: int = 0
    peak: float = 0.0
    turned: bool = False


def inspect_image(path: Path | io.BytesIO | None, size: int, bits: int | None = None) -> InspectedImage:
    """Decodes a whole image file, JPEG at the smallest scale that still fills `size`.

    Args:
        path: of the image, or its content; None where there is none.
        size: of the square that it will become.
        bits: of the camera, for grey images of more than 8 bits.
    """
    if path is None:
        return InspectedImage(problem="no such file below the data folder")
    try:
        with open_image(path) as image, image_memory(image):
            image.draft("RGB", (size, size))
            image.load()
            white, peak = white_and_peak(image, bits) if is_wide(image) else (0, 0.0)
            return InspectedImage(white=white, peak=peak, turned=_orientation(image) > 1)
    # A damaged image can raise nearly anything from the code of its format.
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error).replace(f" {str(path)!r}", "")
        return InspectedImage(problem=reason or type(error).__name__)


def image_remarks(inspected: Sequence[InspectedImage], upright: bool) -> list[str]:
    """Returns a line for each property of a set's images that a user should know before training.

    Args:
        inspected: result of `inspect_image` for every image.
        upright: images are turned as their EXIF data say.
    """
    remarks = []
    turned = sum(image.turned for image in inspected)
    if turned:
        done = "they are turned" if upright else "they are not turned (exif_orientation)"
        remarks.append(f"images with another orientation in their EXIF data: {turned}; {done}")
    for white in sorted({image.white for image in inspected if image.white}):
        peaks = [image.peak for image in inspected if image.white == white]
        low = max(peaks) < white / 2 and white > 255
        doubt = "; does the camera have fewer bits? (image_bits)" if low else ""
        remarks.append(
            f"grey images of more than 8 bits: {len(peaks)} whose values 0 to {white:,} become 0 to 255; largest value "
            f"{max(peaks):g}{doubt}"
        )
    return remarks


def image_problem(path: Path, size: int) -> str | None:
    """Returns why an image cannot be read, or None."""
    return inspect_image(path, size).problem


def resized(path: Path | io.BytesIO, size: int, bits: int | None = None, upright: bool = False) -> np.ndarray:
    """Reads an image file as uint8 [size, size, 3], stretched to the square as in the released code.

    Args:
        path: of the image, or its content.
        size: of the square.
        bits: of the camera, for grey images of more than 8 bits (`cggm_ray.data.formats.image_range`).
        upright: turn the image as its EXIF data say; the released code does not.

    Raises:
        OSError, ValueError, SyntaxError: what Pillow raises for a file that it cannot read.
    """
    images = _pillow("Image")

    with open_image(path) as image, image_memory(image):
        # Pillow itself turns a TIFF while it is decoded, so its orientation is read after that.
        image.load()
        pixels = eight_bits(image, bits) if is_wide(image) else image
        if upright:
            pixels = upright_image(pixels.convert("RGB"), image)
        return np.asarray(pixels.convert("RGB").resize((size, size), images.Resampling.BILINEAR))


def upright_image(pixels: Image, image: Image) -> Image:
    """Returns pixels turned as the EXIF data of their image say.

    Args:
        pixels: in RGB.
        image: that they come from, decoded.
    """
    orientation = _orientation(image)
    if orientation == 1:
        return pixels
    # Only the number is copied, because rewriting damaged EXIF data can fail.
    pixels.getexif().clear()
    pixels.getexif()[_ORIENTATION] = orientation
    turned: Image = _pillow("ImageOps").exif_transpose(pixels)
    return turned


def _pillow(module: str) -> Any:
    return require(f"PIL.{module}", extra="food101", purpose="food101")


def _orientation(image: Image) -> int:
    """Returns the EXIF orientation, 1 to 8, or 1 if there is none or the EXIF data are damaged."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    # The image itself can be read, whatever the code for EXIF raises.
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def augmented(pixels: np.ndarray, seed: int, sample: int, view: int) -> np.ndarray:
    """Augments an image.

    Args:
        pixels: uint8 [H, W, 3], resized.
        seed: of the set or the run.
        sample: row of the image in its split.
        view: number of the view, or the epoch.

    Returns:
        uint8 [H, W, 3], the same for the same arguments.
    """
    images = _pillow("Image")
    rng = np.random.default_rng(derive_seed(seed, "augment", sample, view))
    image = images.fromarray(pixels)
    if rng.random() < FLIP:
        image = image.transpose(images.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < JITTER:
        image = _jittered(image, rng)
    if rng.random() < GREY:
        image = image.convert("L").convert("RGB")
    return blurred(np.asarray(image), float(rng.uniform(*BLUR_SIGMA)))


def _jittered(image: Image, rng: np.random.Generator) -> Image:
    """Changes brightness, contrast, saturation and hue, in random order."""
    enhance = _pillow("ImageEnhance")

    for change in rng.permutation(4):
        if change == 0:
            image = enhance.Brightness(image).enhance(rng.uniform(1 - BRIGHTNESS, 1 + BRIGHTNESS))
        elif change == 1:
            image = enhance.Contrast(image).enhance(rng.uniform(1 - CONTRAST, 1 + CONTRAST))
        elif change == 2:
            image = enhance.Color(image).enhance(rng.uniform(1 - SATURATION, 1 + SATURATION))
        else:
            image = _hue_turned(image, rng.uniform(-HUE, HUE))
    return image


def _hue_turned(image: Image, turn: float) -> Image:
    """Turns the hues by a share of the colour circle in [-0.5, 0.5]."""
    steps = int(turn * 255) % 256
    hue, saturation, value = image.convert("HSV").split()
    hue = hue.point([(level + steps) % 256 for level in range(256)])
    return _pillow("Image").merge("HSV", (hue, saturation, value)).convert("RGB")


def blurred(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Applies a Gaussian blur of 21 taps in both directions, with reflected borders, to uint8 [H, W, 3]."""
    taps = np.exp(-0.5 * (np.arange(-BLUR_RADIUS, BLUR_RADIUS + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    # Taps that cannot move a value by a thousandth of a level are left out.
    reach = min(BLUR_RADIUS, math.ceil(5 * sigma))
    taps = taps[BLUR_RADIUS - reach : BLUR_RADIUS + reach + 1]
    values = pixels.astype(np.float32)
    for axis in (0, 1):
        size = values.shape[axis]
        border = [(reach, reach) if side == axis else (0, 0) for side in range(3)]
        padded = np.pad(values, border, mode="reflect")
        values = np.zeros_like(values)
        for shift, tap in enumerate(taps):
            values += tap * (padded[shift : shift + size] if axis == 0 else padded[:, shift : shift + size])
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
