"""Encoders of transformers that are trained with the rest of the network: what shards hold for them, and the modules.

The shards hold what the model takes: the numbers of the pieces of texts, or pixels as its own processor prepares them. The
module is built from the configuration that the manifest notes. Its weights come from the folder of the model before training,
and from a checkpoint ever after.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from cggm_ray.core.optional import require
from cggm_ray.data.datasets.table.kinds import Context, Encoded, State
from cggm_ray.data.datasets.table.pretrained import find_model, load_model, load_tokenizer, model_state, part_of
from cggm_ray.data.shards.shards import Manifest

TRAINED = "trained"
"""Entry of the state of a column whose encoder is trained; it holds the configuration of the model."""


def trained_state(flag: str, value: str, kind: str, context: Context) -> State:
    """Returns what is kept of an encoder, with its configuration where the options say that it is trained.

    Raises:
        DataError: there is none, or it is incomplete.
    """
    state = model_state(flag, value, context)
    if kind in context.options.train_encoders:
        state[TRAINED] = find_model(flag, value).config
    return state


def pieces_of(cells: pa.Array, state: State) -> Encoded:
    """Returns the numbers of the pieces of texts, int32 [N, T] with the padding of the model, and the number of pieces.

    Raises:
        DataError: the tokenizer cannot be loaded.
    """
    tokenizer = load_tokenizer(find_model("text_model", state["model"]))
    texts = [text or "" for text in cells.to_pylist()]
    pieces = tokenizer(texts, padding="max_length", max_length=state["length"], truncation=True, return_tensors="np")
    return Encoded(values=pieces["input_ids"].astype(np.int32), steps=pieces["attention_mask"].sum(1).astype(np.int64))


class TextModel(nn.Module):
    """A text model whose last hidden states are the features.

    Args:
        state: of the column.
        weights: whether to load those of the folder; otherwise a checkpoint fills them.

    Raises:
        DataError: the model cannot be loaded.
    """

    def __init__(self, state: State, weights: bool) -> None:
        super().__init__()
        self.model = model = _model("text_model", state, weights)
        self.size: int = model.config.hidden_size
        self._padding = int(state[TRAINED].get("pad_token_id") or 0)
        if weights:
            _leave_unused(self, torch.zeros(1, state["length"], dtype=torch.int32))

    def forward(self, x_NT: Tensor, mask: Tensor | None = None) -> Tensor:
        """Numbers of pieces [N, T] to states [N, T, F]."""
        if mask is None:
            mask = x_NT.new_ones(x_NT.shape, dtype=torch.bool)
        mask = mask.expand(x_NT.shape)
        # Attention of a sample without any piece would be 0 / 0; its states are masked afterwards.
        first = torch.arange(x_NT.shape[1], device=x_NT.device) == 0
        seen = mask | (first & ~mask.any(1, keepdim=True))
        ids = x_NT.long().masked_fill(~seen, self._padding)
        states: Tensor = self.model(input_ids=ids, attention_mask=seen.long()).last_hidden_state
        return states


class ImageModel(nn.Module):
    """An image model whose last hidden states are the features: patches, or pixels of a feature map.

    Args:
        state: of the column.
        shape: of the pixels of an image.
        weights: whether to load those of the folder; otherwise a checkpoint fills them.

    Raises:
        DataError: the model cannot be loaded.
    """

    def __init__(self, state: State, shape: tuple[int, ...], weights: bool) -> None:
        super().__init__()
        self.model = _model("image_model", state, weights)
        if weights:
            _leave_unused(self, torch.zeros(1, *shape))

    def forward(self, x_NCHW: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pixels [N, C, H, W] to states [N, T, F]."""
        states: Tensor = self.model(pixel_values=x_NCHW).last_hidden_state
        return states.flatten(2).transpose(1, 2) if states.ndim == 4 else states


def build_model(state: State, shape: tuple[int, ...], weights: bool) -> nn.Module:
    """Returns the model of a column.

    Args:
        state: of the column.
        shape: of a sample in the shards.
        weights: whether to load those of its folder.
    """
    return TextModel(state, weights) if "length" in state else ImageModel(state, shape, weights)


def states_shape(state: State, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of the states of a sample, without computing any.

    Args:
        state: of the column.
        shape: of a sample in the shards.
    """
    with torch.device("meta"), torch.no_grad():
        model = build_model(state, shape, weights=False)
        if isinstance(model, TextModel):
            # The mask of attention is made from values, which there are none of here.
            return state["length"], model.size
        return tuple(model(torch.zeros(1, *shape)).shape[1:])


def trained_columns(manifest: Manifest, modalities: Collection[str]) -> dict[str, State]:
    """Returns the state of the column of each modality whose encoder is trained."""
    columns = manifest.notes.get("columns", {}).values()
    return {
        one["modality"]: one["state"] for one in columns if TRAINED in one["state"] and one["modality"] in modalities
    }


def _model(flag: str, state: State, weights: bool) -> Any:
    part = flag.replace("image", "vision")
    if weights:
        info = find_model(flag, state["model"])
        return load_model(info, part, "fp32", torch.device("cpu")).requires_grad_(True)
    transformers = require("transformers", extra="table", purpose="table")
    known = dict(state[TRAINED])
    config = transformers.AutoConfig.for_model(known.pop("model_type"), **known)
    config.dtype = None
    return part_of(transformers.AutoModel.from_config(config), part).float()


def _leave_unused(module: nn.Module, example: Tensor) -> None:
    """Excludes the parameters that the states do not depend on, such as those of a pooler, from training."""
    with torch.enable_grad():
        module(example).sum().backward()
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
