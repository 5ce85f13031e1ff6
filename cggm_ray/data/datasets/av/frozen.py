"""Frozen encoders of transformers in place of networks that are trained: of sounds, and of the pictures of clips."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cggm_ray.data.datasets.av.decoding import pictures, sound
from cggm_ray.data.datasets.av.layouts import AUDIO, RGB, VISION
from cggm_ray.data.datasets.av.media import Medium
from cggm_ray.data.datasets.av.options import MODELS, AvOptions
from cggm_ray.data.datasets.table.audio import RATE
from cggm_ray.data.datasets.table.cells import combined
from cggm_ray.data.datasets.table.kinds import Context, Encoded, State
from cggm_ray.data.datasets.table.options import TableOptions
from cggm_ray.data.datasets.table.pretrained import (
    AudioEncoder,
    ImageEncoder,
    find_model,
    model_again,
    model_state,
    pixel_values,
)
from cggm_ray.data.settings import DatasetSettings
from cggm_ray.data.shards.shards import PRESENT, STEPS, tensor_column

FLAGS = {AUDIO: "audio_model", VISION: "image_model", RGB: "image_model"}
"""Option that names the encoder of a modality."""
PREPARED = "prepared/"
"""Prefix of the columns that hold what an encoder takes."""


def context_of(settings: DatasetSettings, options: AvOptions, root: Path) -> Context:
    """Returns what the encoders of tables receive."""
    table = TableOptions(extract_precision=options.extract_precision, extract_batch=options.extract_batch)
    return Context(
        options=table, media=root, shard_root=settings.shard_root, no_cuda=settings.no_cuda, bad=[], remarks=[]
    )


def model_files(options: AvOptions) -> list[Path]:
    """Returns the files of the encoders that the options name."""
    given = {flag: getattr(options, flag) for flag in MODELS}
    return [file for flag, value in given.items() if value is not None for file in find_model(flag, value).files]


def frozen_states(modalities: Sequence[str], options: AvOptions, context: Context) -> dict[str, State]:
    """Returns what is kept of the encoder of every modality that has one."""
    found: dict[str, State] = {}
    for name in modalities:
        value = getattr(options, FLAGS[name]) if name in FLAGS else None
        if value is not None:
            size = {"seconds": options.audio_seconds} if name == AUDIO else {"frames": options.frames}
            found[name] = size | model_state(FLAGS[name], value, context)
    return found


def frozen_again(states: Mapping[str, State], context: Context) -> dict[str, State]:
    """Returns the states of a trained run with the places where the encoders are now; raises DataError for other ones."""
    return {name: model_again(FLAGS[name], state, context) for name, state in states.items()}


def taken_by_encoder(modality: str, medium: Medium, state: State) -> Any:
    """Returns what `prepared` takes: samples of sound, or pictures."""
    if modality == AUDIO:
        return sound(medium, state["seconds"], RATE)
    return list(pictures(medium, state["frames"], None))


def prepared(modality: str, samples: Sequence[Any], state: State) -> pa.Array:
    """Returns samples, None where one is missing, as the encoder takes them."""
    if modality == AUDIO:
        return pa.array(samples, pa.list_(pa.float32()))
    flat = [picture for one in samples for picture in ([None] * state["frames"] if one is None else one)]
    pixels = pixel_values(flat, state, lambda picture: picture).to_numpy_ndarray()
    return pa.FixedShapeTensorArray.from_numpy_ndarray(pixels.reshape(len(samples), -1, *pixels.shape[1:]))


class EncodeClips:
    """Second stage, in processes that hold the models: it turns what was prepared into sequences of states.

    Args:
        states: of the modalities that have an encoder.
        modalities: all of them, in their order.
        context: settings.
    """

    def __init__(self, states: Mapping[str, State], modalities: Sequence[str], context: Context) -> None:
        self._modalities = modalities
        self._encoders: dict[str, Callable[[pa.Array], Encoded]] = {}
        for name, state in states.items():
            encoder = AudioEncoder(state, context, RATE) if name == AUDIO else ImageEncoder(state, context)
            self._encoders[name] = encoder if name == AUDIO else _by_picture(encoder)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Returns the table with states in place of what was prepared; zeros where a modality is missing."""
        for name, encode in self._encoders.items():
            there = table.column(PRESENT + name).to_numpy()
            made = encode(combined(table.column(PREPARED + name)))
            table = table.drop_columns([PREPARED + name])
            values = made.values * there.reshape(-1, *[1] * (made.values.ndim - 1)).astype(made.values.dtype)
            if made.steps is not None:
                table = table.drop_columns([PRESENT + name]).append_column(STEPS + name, pa.array(made.steps * there))
            table = table.append_column(name, tensor_column(values))
        others = [name for name in table.column_names if name not in self._modalities]
        return table.select([*others, *self._modalities])


def _by_picture(encoder: Callable[[pa.Array], Encoded]) -> Callable[[pa.Array], Encoded]:
    """Returns an encoder of clips, which gives the mean state of each of their pictures."""

    def encode(cells: pa.Array) -> Encoded:
        pixels = cells.to_numpy_ndarray()
        flat = np.ascontiguousarray(pixels.reshape(-1, *pixels.shape[2:]))
        states = encoder(pa.FixedShapeTensorArray.from_numpy_ndarray(flat)).values
        means = states.astype(np.float32).mean(1).astype(states.dtype)
        return Encoded(values=means.reshape(len(pixels), -1, means.shape[-1]))

    return encode
