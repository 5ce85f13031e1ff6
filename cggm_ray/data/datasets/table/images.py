"""Columns of images: paths, or the content of files. A network is trained on the pixels, or a frozen encoder gives features."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cggm_ray.core.errors import DataError, listed
from cggm_ray.core.kinds import IMAGE, SEQUENCE
from cggm_ray.core.optional import check_installed
from cggm_ray.data.datasets.food101.augment import image_remarks, inspect_image, resized, upright_image
from cggm_ray.data.datasets.food101.food101_records import ImageFinder
from cggm_ray.data.datasets.food101.lists import IMAGE_SUFFIXES
from cggm_ray.data.datasets.table.cells import Cells, is_media, is_text
from cggm_ray.data.datasets.table.kinds import COLUMN_KINDS, MOSTLY, ColumnKind, Context, Encoded, Facts, State
from cggm_ray.data.datasets.table.pretrained import ImageEncoder, model_again, model_state, pixel_values
from cggm_ray.data.formats.image_range import eight_bits, is_wide
from cggm_ray.data.formats.untrusted import image_memory, open_image
from cggm_ray.storage.places import as_path

PATHS = rf"^[^\n]+({'|'.join(suffix.replace('.', '[.]') for suffix in IMAGE_SUFFIXES)})\s*$"
MARKS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
"""Beginnings of files of the formats that are decoded."""
SHOWN = 5


class Image(ColumnKind):
    """Images below the folder of the table, or whole files in the cells."""

    order = 10

    def recognises(self, facts: Facts) -> bool:
        """Returns whether the cells are names of image files, or begin as image files do."""
        if is_text(facts.type):
            return facts.share(PATHS, ignore_case=True) >= MOSTLY
        if is_media(facts.type):
            values = pc.struct_field(facts.known, ["bytes"])
            paths = pc.struct_field(facts.known, ["path"])
            return _marked(values) or float(pc.mean(pc.match_substring_regex(paths, PATHS)).as_py() or 0) >= MOSTLY
        return (pa.types.is_binary(facts.type) or pa.types.is_large_binary(facts.type)) and _marked(facts.known)

    def read(self, cells: Cells, context: Context) -> pa.Array:
        """Returns paths, or bytes; every image is decoded once, so that none fails half way.

        Raises:
            DataError: a path leads out of the folder, or more images than `skip_bad` cannot be read.
        """
        check_installed("PIL", extra="images", purpose="table")
        kind = cells.values.type
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            found = cells.values.to_pylist()
        elif is_text(kind) or is_media(kind):
            paths = _paths(cells)
            found = _found(cells, paths, context)
            lost = [row for row, (path, file) in enumerate(zip(paths, found, strict=True)) if path and file is None]
            reason = f"no such file below {context.media} (--media_path names another folder)"
            self._allow(cells, dict.fromkeys(lost, reason), context)
            if is_media(kind):
                given = [None if row is None else row["bytes"] for row in cells.values.to_pylist()]
                files = [None if file is None else as_path(file).read_bytes() for file in found]
                found = [file if one is None else one for one, file in zip(given, files, strict=True)]
        else:
            raise cells.wrong(int(np.flatnonzero(cells.there)[0]), "the path or the bytes of an image")
        size = context.options.image_size
        with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
            looked = list(pool.map(lambda one: None if one is None else inspect_image(opened(one), size), found))
        bad = {
            row: image.problem for row, image in enumerate(looked) if image is not None and image.problem is not None
        }
        self._allow(cells, bad, context)
        about = image_remarks([image for image in looked if image is not None], upright=True)
        context.remarks.extend(line for line in about if line not in context.remarks)
        whole = [None if row in bad else one for row, one in enumerate(found)]
        return pa.array(whole, pa.binary() if any(isinstance(one, bytes) for one in whole) else pa.string())

    def fit(self, name: str, cells: pa.Array, context: Context) -> State:
        """Returns the size, or the encoder."""
        if cells.null_count == len(cells):
            raise DataError(
                f"column {name}: has no image in the training split; leave it out with --column {name}=drop"
            )
        if context.options.image_model is None:
            return {"size": context.options.image_size}
        return model_state("image_model", context.options.image_model, context)

    def encode(self, cells: pa.Array, state: State) -> np.ndarray:
        """Returns pixels in [0, 1], float16 [N, size, size, 3]; zeros where there is none."""
        size = state["size"]
        pixels = np.zeros((len(cells), size, size, 3), np.float16)
        for row, one in enumerate(cells.to_pylist()):
            if one is not None:
                pixels[row] = _decoded(one, lambda source: resized(source, size, upright=True).astype(np.float32) / 255)
        return pixels

    def about(self, state: State) -> str:
        """Returns the encoder, or the size."""
        if self.pooled(state):
            return f"frozen {state['architecture']} of {state['model']}"
        return f"{state['size']} x {state['size']} pixels for a network that is trained, no pretrained encoder (--image_model)"

    def media(self, cells: Cells, context: Context) -> list[str | None]:
        """Returns the files of the images."""
        return _found(cells, _paths(cells), context)

    def pooled(self, state: State) -> bool:
        """Returns whether there is an encoder."""
        return "model" in state

    def prepare(self, cells: pa.Array, state: State) -> pa.Array:
        """Returns the pixels as the encoder's own processor makes them."""
        return pixel_values(cells.to_pylist(), state, lambda one: _decoded(one, colours))

    def load(self, state: State, context: Context) -> Callable[[pa.Array], Encoded]:
        """Loads the model."""
        return ImageEncoder(state, context)

    def again(self, state: State, context: Context) -> State:
        """Finds the encoder again and checks that it is the same."""
        return model_again("image_model", state, context) if self.pooled(state) else state

    def input_kind(self, state: State, shape: tuple[int, ...]) -> str:
        """Returns a sequence of an encoder's states, or an image."""
        return SEQUENCE if self.pooled(state) else IMAGE

    @staticmethod
    def _allow(cells: Cells, bad: Mapping[int, str | None], context: Context) -> None:
        """Notes images that cannot be read; raises a DataError where there are more than the options allow."""
        allowed = context.options.skip_bad - len(context.bad)
        lines = [f"{cells.wrong(row, 'a readable image')}: {reason}" for row, reason in bad.items()]
        if len(bad) <= allowed:
            context.bad.extend(lines)
        elif len(lines) == 1:
            raise DataError(f"{lines[0]} (or --skip_bad 1, and it counts as missing)")
        else:
            raise DataError(
                f"{len(lines)} images cannot be read; expected at most {context.options.skip_bad} (skip_bad): "
                f"{listed(lines, SHOWN, 400)}"
            )


def opened(one: str | bytes) -> Path | io.BytesIO:
    """Returns what image readers take, from a path or the content of a file."""
    return io.BytesIO(one) if isinstance(one, bytes) else as_path(one)


def colours(source: Path | io.BytesIO) -> np.ndarray:
    """Returns the pixels of an image, uint8 [H, W, 3], of any size.

    Raises:
        OSError, ValueError, SyntaxError: what Pillow raises for an image that it cannot read.
    """
    with open_image(source) as image, image_memory(image):
        image.load()
        pixels = (eight_bits(image) if is_wide(image) else image).convert("RGB")
        return np.asarray(upright_image(pixels, image))


def _decoded(one: str | bytes, read: Callable[[Path | io.BytesIO], Any]) -> Any:
    try:
        return read(opened(one))
    except (OSError, ValueError, SyntaxError) as error:
        where = one if isinstance(one, str) else "a cell"
        raise DataError(f"{where}: the image can no longer be read: {error}") from None


def _marked(values: pa.Array) -> bool:
    known = values.drop_null().slice(0, 100).to_pylist()
    return bool(known) and sum(value.startswith(MARKS) for value in known) >= MOSTLY * len(known)


def _found(cells: Cells, names: Sequence[str | None], context: Context) -> list[str | None]:
    """Returns the files below the folder of media that names lead to; None where there is none.

    Raises:
        DataError: a name leads out of the folder.
    """
    finders: dict[Path, ImageFinder] = {}
    found: list[str | None] = []
    for row, name in enumerate(names):
        if name is None:
            found.append(None)
            continue
        folder = cells.places.file(row).parent
        folder = folder if folder.is_relative_to(context.media) else context.media
        if folder not in finders:
            finders[folder] = ImageFinder(context.media, folder, None)
        _, file = finders[folder].find(name.strip(), cells.places.of(row), cells.name, None)
        found.append(None if file is None else str(file))
    return found


def _paths(cells: Cells) -> list[str | None]:
    """Returns the paths in cells of texts, or of structures without bytes."""
    rows = cells.values.to_pylist()
    if is_text(cells.values.type):
        return rows
    if not is_media(cells.values.type):
        return [None] * len(rows)
    return [None if row is None or row["bytes"] is not None else row["path"] for row in rows]


COLUMN_KINDS.register("image")(Image())
