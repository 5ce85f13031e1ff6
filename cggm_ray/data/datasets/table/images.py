"""Columns of images: paths, or the content of files. A network is trained on the pixels, or a frozen encoder gives features."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa

from cggm_ray.core.errors import DataError
from cggm_ray.core.kinds import IMAGE, SEQUENCE
from cggm_ray.data.datasets.food101.augment import image_remarks, inspect_image, resized, upright_image
from cggm_ray.data.datasets.food101.lists import IMAGE_SUFFIXES
from cggm_ray.data.datasets.table.finetuned import TRAINED, trained_state
from cggm_ray.data.datasets.table.kinds import COLUMN_KINDS, Context, Encoded, State
from cggm_ray.data.datasets.table.media import Content, MediaKind, decoded, opened
from cggm_ray.data.datasets.table.pretrained import ImageEncoder, model_again, pixel_values
from cggm_ray.data.formats.image_range import eight_bits, is_wide
from cggm_ray.data.formats.untrusted import image_memory, open_image


class Image(MediaKind):
    """Images below the folder of the table, or whole files in the cells."""

    order = 10
    what = "image"
    suffixes = IMAGE_SUFFIXES
    marks = re.compile(rb"\xff\xd8\xff|\x89PNG|GIF8|RIFF....WEBP|BM|II\*\0|MM\0\*", re.DOTALL)
    package, extra = "PIL", "table"

    def look(self, found: Sequence[Content | None], context: Context) -> list[str | None]:
        """Decodes every image once; remarks on those that are turned or have more than 8 bits."""
        size = context.options.image_size
        with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
            looked = list(pool.map(lambda one: None if one is None else inspect_image(opened(one), size), found))
        about = image_remarks([image for image in looked if image is not None], upright=True)
        context.remarks.extend(line for line in about if line not in context.remarks)
        return [None if image is None else image.problem for image in looked]

    def fit(self, name: str, cells: pa.Array, context: Context) -> State:
        """Returns the size, or the encoder."""
        if cells.null_count == len(cells):
            raise DataError(
                f"column {name}: has no image in the training split; leave it out with --column {name}=drop"
            )
        if context.options.image_model is None:
            return {"size": context.options.image_size}
        return trained_state("image_model", context.options.image_model, "image", context)

    def encode(self, cells: pa.Array, state: State) -> np.ndarray:
        """Returns pixels in [0, 1], float16 [N, size, size, 3]; zeros where there is none.

        For an encoder that is trained they are what its processor makes of them, float16 [N, C, H, W].
        """
        if TRAINED in state:
            pixels: np.ndarray = self.prepare(cells, state).to_numpy_ndarray().astype(np.float16)
            return pixels
        size = state["size"]
        pixels = np.zeros((len(cells), size, size, 3), np.float16)
        for row, one in enumerate(cells.to_pylist()):
            if one is not None:
                image = decoded(one, self.what, lambda source: resized(source, size, upright=True))
                pixels[row] = image.astype(np.float32) / 255
        return pixels

    def about(self, state: State) -> str:
        """Returns the encoder, or the size."""
        if "model" in state:
            how = "trained" if TRAINED in state else "frozen"
            return f"{how} {state['architecture']} of {state['model']}"
        size = state["size"]
        return f"{size} x {size} pixels for a network that is trained, no pretrained encoder (--image_model)"

    def prepare(self, cells: pa.Array, state: State) -> pa.Array:
        """Returns the pixels as the encoder's own processor makes them."""
        return pixel_values(cells.to_pylist(), state, lambda one: decoded(one, self.what, colours))

    def load(self, state: State, context: Context) -> Callable[[pa.Array], Encoded]:
        """Loads the model."""
        return ImageEncoder(state, context)

    def again(self, state: State, context: Context) -> State:
        """Finds the encoder again and checks that it is the same."""
        return model_again("image_model", state, context) if "model" in state else state

    def input_kind(self, state: State, shape: tuple[int, ...]) -> str:
        """Returns a sequence of an encoder's states, or an image."""
        return SEQUENCE if "model" in state else IMAGE


def colours(source: Path | io.BytesIO) -> np.ndarray:
    """Returns the pixels of an image, uint8 [H, W, 3], of any size.

    Raises:
        OSError, ValueError, SyntaxError: what Pillow raises for an image that it cannot read.
    """
    with open_image(source) as image, image_memory(image):
        image.load()
        pixels = (eight_bits(image) if is_wide(image) else image).convert("RGB")
        return np.asarray(upright_image(pixels, image))


COLUMN_KINDS.register("image")(Image())
