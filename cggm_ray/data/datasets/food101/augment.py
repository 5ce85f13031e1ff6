"""The image augmentation of the released code, in Pillow and numpy.

Resize, horizontal flip (p 0.5), colour jitter (p 0.8), grey (p 0.2), Gaussian blur of 21 taps. What is drawn is a function
of a seed alone, so a view can be made again anywhere.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cggm_ray.core.errors import UsageError
from cggm_ray.core.seeding import derive_seed
from cggm_ray.data.formats.untrusted import image_memory, open_image

if TYPE_CHECKING:
    from PIL.Image import Image

FLIP, JITTER, GREY = 0.5, 0.8, 0.2
BRIGHTNESS = CONTRAST = SATURATION = 0.4
HUE = 0.1
BLUR_RADIUS = 10
BLUR_SIGMA = (0.1, 2.0)


def require_pillow() -> None:
    """Raises UsageError where Pillow is not installed."""
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise UsageError("images need Pillow; install it with: pip install 'cggm-ray[food101]'") from None


def image_problem(path: Path, size: int) -> str | None:
    """Why an image cannot be read, or None. Decodes the whole file, JPEG at the smallest scale that still fills `size`."""
    try:
        with open_image(path) as image, image_memory(image):
            image.draft("RGB", (size, size))
            image.load()
    # A damaged image can raise nearly anything from the code of its format.
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error).replace(f" {str(path)!r}", "")
        return reason or type(error).__name__
    return None


def resized(path: Path, size: int) -> np.ndarray:
    """An image file as uint8 [size, size, 3], stretched to the square as in the released code.

    Raises:
        OSError, ValueError, SyntaxError: what Pillow raises for a file that it cannot read.
    """
    from PIL import Image

    with open_image(path) as image, image_memory(image):
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


def augmented(pixels: np.ndarray, seed: int, sample: int, view: int) -> np.ndarray:
    """One view of an image.

    Args:
        pixels: uint8 [H, W, 3], resized.
        seed: of the set or the run.
        sample: row of the image in its split.
        view: number of the view, or the epoch.

    Returns:
        uint8 [H, W, 3], the same for the same arguments.
    """
    from PIL import Image

    rng = np.random.default_rng(derive_seed(seed, "augment", sample, view))
    image = Image.fromarray(pixels)
    if rng.random() < FLIP:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < JITTER:
        image = _jittered(image, rng)
    if rng.random() < GREY:
        image = image.convert("L").convert("RGB")
    return blurred(np.asarray(image), float(rng.uniform(*BLUR_SIGMA)))


def _jittered(image: Image, rng: np.random.Generator) -> Image:
    """Brightness, contrast, saturation and hue, in random order."""
    from PIL import ImageEnhance

    for change in rng.permutation(4):
        if change == 0:
            image = ImageEnhance.Brightness(image).enhance(rng.uniform(1 - BRIGHTNESS, 1 + BRIGHTNESS))
        elif change == 1:
            image = ImageEnhance.Contrast(image).enhance(rng.uniform(1 - CONTRAST, 1 + CONTRAST))
        elif change == 2:
            image = ImageEnhance.Color(image).enhance(rng.uniform(1 - SATURATION, 1 + SATURATION))
        else:
            image = _hue_turned(image, rng.uniform(-HUE, HUE))
    return image


def _hue_turned(image: Image, turn: float) -> Image:
    """The hues turned by a share of the colour circle in [-0.5, 0.5]."""
    from PIL import Image

    steps = int(turn * 255) % 256
    hue, saturation, value = image.convert("HSV").split()
    hue = hue.point([(level + steps) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def blurred(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of 21 taps in both directions, the border reflected: uint8 [H, W, 3] to the same."""
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
