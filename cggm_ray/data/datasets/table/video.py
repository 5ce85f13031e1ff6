"""Columns of video files: frames at equal distances, as small pictures or as the states of a frozen image encoder."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cggm_ray.core.errors import DataError
from cggm_ray.core.kinds import SEQUENCE
from cggm_ray.core.optional import require
from cggm_ray.data.datasets.table.kinds import COLUMN_KINDS, Context, Encoded, State
from cggm_ray.data.datasets.table.media import Content, MediaKind, decoded, problems
from cggm_ray.data.datasets.table.pretrained import ImageEncoder, model_again, model_state, pixel_values
from cggm_ray.data.formats.untrusted import MOST_PIXELS

SIZE = 16
"""Pixels along the sides of a frame that no encoder sees."""
MOST_FRAMES = 100_000
CONTAINERS = {
    "mov": ((".mp4", ".m4v", ".mov"), rb"....ftyp"),
    "matroska": ((".mkv", ".webm"), rb"\x1aE\xdf\xa3"),
    "avi": ((".avi",), rb"RIFF....AVI "),
    "flv": ((".flv",), rb"FLV"),
}
"""Formats that are read, with suffixes and beginnings. Others may name further files or addresses."""


class Video(MediaKind):
    """Video files below the folder of the table, or whole files in the cells; `video_frames` of each are taken."""

    order = 12
    what = "video file"
    suffixes = tuple(suffix for suffixes, _ in CONTAINERS.values() for suffix in suffixes)
    marks = re.compile(b"|".join(mark for _, mark in CONTAINERS.values()), re.DOTALL)
    package, extra = "av", "media"

    def look(self, found: Sequence[Content | None], context: Context) -> list[str | None]:
        """Decodes every file once."""
        return problems(found, lambda source: frames(source, context.options.video_frames, SIZE))

    def fit(self, name: str, cells: pa.Array, context: Context) -> State:
        """Returns the number of frames, and the encoder."""
        if cells.null_count == len(cells):
            raise DataError(
                f"column {name}: has no video in the training split; leave it out with --column {name}=drop"
            )
        number = {"frames": context.options.video_frames}
        if context.options.image_model is None:
            return number
        return number | model_state("image_model", context.options.image_model, context)

    def encode(self, cells: pa.Array, state: State) -> np.ndarray:
        """Returns frames as sequences of their pixels in [0, 1], float16 [N, frames, 3 size^2]."""
        values = np.zeros((len(cells), state["frames"], 3 * SIZE**2), np.float16)
        for row, one in enumerate(cells.to_pylist()):
            if one is not None:
                made = decoded(one, self.what, lambda source: frames(source, state["frames"], SIZE))
                values[row] = made.reshape(len(made), -1).astype(np.float32) / 255
        return values

    def about(self, state: State) -> str:
        """Returns the encoder, or the size of a frame."""
        if self.pooled(state):
            return f"{state['frames']} frames, each the mean state of the frozen {state['architecture']} of {state['model']}"
        return f"{state['frames']} frames of {SIZE} x {SIZE} pixels, no pretrained encoder (--image_model)"

    def prepare(self, cells: pa.Array, state: State) -> pa.Array:
        """Returns the frames as the encoder's own processor makes them, [N, frames, C, H, W]."""
        number = state["frames"]
        pictures: list[Any] = []
        for one in cells.to_pylist():
            made = None if one is None else decoded(one, self.what, lambda source: frames(source, number, None))
            pictures += [None] * number if made is None else list(made)
        pixels = pixel_values(pictures, state, lambda picture: picture).to_numpy_ndarray()
        return pa.FixedShapeTensorArray.from_numpy_ndarray(pixels.reshape(len(cells), number, *pixels.shape[1:]))

    def load(self, state: State, context: Context) -> Callable[[pa.Array], Encoded]:
        """Loads the model; the state of a frame is the mean over its patches."""
        encoder = ImageEncoder(state, context)

        def encode(cells: pa.Array) -> Encoded:
            pixels = cells.to_numpy_ndarray()
            flat = pa.FixedShapeTensorArray.from_numpy_ndarray(
                np.ascontiguousarray(pixels.reshape(-1, *pixels.shape[2:]))
            )
            states = encoder(flat).values
            means = states.astype(np.float32).mean(1).astype(states.dtype)
            return Encoded(values=means.reshape(len(pixels), -1, means.shape[-1]))

        return encode

    def again(self, state: State, context: Context) -> State:
        """Finds the encoder again and checks that it is the same."""
        return model_again("image_model", state, context) if self.pooled(state) else state

    def input_kind(self, state: State, shape: tuple[int, ...]) -> str:
        """Returns a sequence of frames."""
        return SEQUENCE


def from_end_to_end(total: int, number: int) -> np.ndarray:
    """Returns the places of frames at equal distances, from the first to the last one, int64 [number]."""
    return np.round(np.linspace(0, total - 1, number)).astype(np.int64)


def frames(
    source: Path | io.BytesIO,
    number: int,
    size: int | None,
    places: Callable[[int, int], np.ndarray] = from_end_to_end,
) -> np.ndarray:
    """Returns frames of a video, uint8 [number, H, W, 3].

    Args:
        source: of the video.
        number: of frames; a video with fewer repeats some.
        size: of the square that each becomes; None for that of the video.
        places: gives their places from the number of frames in the video and that of the wanted ones.

    Raises:
        ValueError: it has no picture, or too many or too large ones.
        Exception: what PyAV raises for a file that it cannot read.
    """
    # The number that a file says may be wrong, so frames are counted first.
    total = sum(1 for _ in _decoded(source))
    if not total:
        raise ValueError("found no frame; expected at least one")
    wanted = places(total, number).tolist()
    kept = {}
    for place, frame in enumerate(_decoded(source)):
        if place in wanted:
            side = {} if size is None else {"width": size, "height": size}
            kept[place] = frame.to_ndarray(format="rgb24", **side)
    return np.stack([kept[place] for place in wanted])


@contextmanager
def opened_video(source: Path | io.BytesIO) -> Iterator[Any]:
    """Opens a video file with PyAV.

    Raises:
        ValueError: it is of none of `CONTAINERS`.
        Exception: what PyAV raises for a file that it cannot read.
    """
    av = require("av", extra="media", purpose="table")
    content = source if isinstance(source, io.BytesIO) else io.BytesIO(source.read_bytes())
    content.seek(0)
    start = content.read(16)
    content.seek(0)
    form = next((name for name, (_, mark) in CONTAINERS.items() if re.match(mark, start, re.DOTALL)), None)
    if form is None:
        raise ValueError(f"found another format; expected one of {', '.join(Video.suffixes)}")
    with av.open(content, mode="r", format=form) as container:
        yield container


def _decoded(source: Path | io.BytesIO) -> Iterator[Any]:
    with opened_video(source) as container:
        if not container.streams.video:
            raise ValueError("found no video in the file; expected one")
        stream = container.streams.video[0]
        if stream.codec_context.width * stream.codec_context.height > MOST_PIXELS:
            raise ValueError(f"found frames of more than {MOST_PIXELS:,} pixels")
        # A frame may be larger than the head of the file says: the decoder refuses it before it takes the memory.
        stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
        for place, frame in enumerate(container.decode(stream)):
            if place >= MOST_FRAMES:
                raise ValueError(f"found more than {MOST_FRAMES:,} frames; expected at most so many")
            yield frame


COLUMN_KINDS.register("video")(Video())
