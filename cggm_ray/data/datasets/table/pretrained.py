"""Frozen encoders of transformers, of any architecture that AutoModel knows, with their own tokenizer or processor."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from cggm_ray.core.errors import DataError, one_line
from cggm_ray.core.optional import require
from cggm_ray.data.datasets.food101.encoders import (
    EXTRACT_PRECISIONS,
    EncoderInfo,
    check_same,
    checksums,
    extraction_device,
    find_again,
    find_encoder,
    folder_of,
    stored,
)
from cggm_ray.data.datasets.table.kinds import Context, Encoded, State
from cggm_ray.data.shards.shards import column_values

FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
)
"""Files of tokenizers and processors beside those that `find_encoder` knows."""
UNUSED = {"pooler", "head", "classifier", "lm_head", "cls"}
"""Parts of a model on which the last hidden states do not depend, so that weights may lack them."""


def find_model(flag: str, value: str) -> EncoderInfo:
    """Finds an encoder with all of its files.

    Raises:
        DataError: there is none, or it is incomplete.
    """
    info = find_encoder(flag, value)
    if not isinstance(info.config.get("model_type"), str):
        raise DataError(
            f"{flag}: {info.reference}/config.json, field model_type: is missing; expected that of a model of transformers"
        )
    folder = info.files[0].parent
    more = [folder / name for name in FILES if (folder / name).exists()]
    return dataclasses.replace(info, files=(*info.files, *more))


def model_state(flag: str, value: str, context: Context) -> State:
    """Returns what is kept of an encoder: where it is, and the checksums of its files.

    Raises:
        DataError: there is none, or it is incomplete.
    """
    info = find_model(flag, value)
    return {
        "model": info.reference,
        "architecture": info.config["model_type"],
        "checksums": checksums((info,), context.shard_root),
        "precision": context.options.extract_precision,
    }


def model_again(flag: str, state: State, context: Context) -> State:
    """Returns the state with the place where the encoder is now.

    Raises:
        DataError: it is gone, or is another one than the run was trained with.
    """
    info = find_model(flag, find_again(flag, state["model"], None))
    check_same((info,), state["checksums"], context.shard_root)
    return state | {"model": info.reference}


def load_tokenizer(info: EncoderInfo) -> Any:
    """Loads the tokenizer of a text encoder, which pads at the end.

    Raises:
        DataError: it cannot be loaded.
    """
    transformers = require("transformers", extra="table", purpose="table")
    tokenizer = _loaded(info, transformers.AutoTokenizer.from_pretrained, "tokenizer")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


class TextEncoder:
    """Last hidden states of a text encoder, zeros for the padding.

    Args:
        state: of the column.
        context: settings.

    Raises:
        DataError: tokenizer or model cannot be loaded.
    """

    def __init__(self, state: State, context: Context) -> None:
        self._state, self._batch = state, context.options.extract_batch
        self._info = find_model("text_model", state["model"])
        self._tokenizer = load_tokenizer(self._info)
        self._device = extraction_device(context.no_cuda)
        self._model = load_model(self._info, "text_model", state["precision"], self._device)

    @torch.no_grad()
    def __call__(self, cells: pa.Array) -> Encoded:
        """Maps texts to features [N, T, D] with the number of pieces of each."""
        texts = [text or "" for text in cells.to_pylist()]
        features, steps = [], []
        for start in range(0, len(texts), self._batch):
            pieces = self._tokenizer(
                texts[start : start + self._batch],
                padding="max_length",
                max_length=self._state["length"],
                truncation=True,
                return_tensors="pt",
            ).to(self._device)
            mask = pieces.get("attention_mask", torch.ones_like(pieces["input_ids"]))
            states = _states(self._info, self._model, **pieces)
            features.append(states * mask[..., None].to(states.dtype))
            steps.append(mask.sum(1).cpu().numpy())
        values = stored(torch.cat(features), self._info, self._state["precision"])
        return Encoded(values=values, steps=np.concatenate(steps).astype(np.int64))


class ImageEncoder:
    """Last hidden states of an image encoder: patches, with a class token where it has one, or pixels of a feature map.

    Args:
        state: of the column.
        context: settings.

    Raises:
        DataError: the model cannot be loaded.
    """

    def __init__(self, state: State, context: Context) -> None:
        self._state, self._batch = state, context.options.extract_batch
        self._info = find_model("image_model", state["model"])
        self._device = extraction_device(context.no_cuda)
        self._model = load_model(self._info, "vision_model", state["precision"], self._device)

    @torch.no_grad()
    def __call__(self, cells: pa.Array) -> Encoded:
        """Maps pixels [N, C, H, W] to features [N, T, D]."""
        pixels = torch.from_numpy(column_values(pa.chunked_array([cells])))
        features: list[torch.Tensor] = []
        for part in pixels.split(self._batch):
            values = part.to(self._device, EXTRACT_PRECISIONS[self._state["precision"]])
            states = _states(self._info, self._model, pixel_values=values)
            features.append(states.flatten(2).transpose(1, 2) if states.ndim == 4 else states)
        return Encoded(values=stored(torch.cat(features), self._info, self._state["precision"]))


def pixel_values(images: Sequence[Any], state: State, decoded: Callable[[Any], np.ndarray]) -> pa.Array:
    """Returns images as the processor of an encoder prepares them, [N, C, H, W]; zeros for those that are missing.

    Args:
        images: what `decoded` takes; None for those that are missing.
        state: of the column.
        decoded: returns the pixels of one, uint8 [H, W, 3].

    Raises:
        DataError: the processor cannot be loaded, or an image cannot be read.
    """
    info = find_model("image_model", state["model"])
    transformers = require("transformers", extra="table", purpose="table")
    processor = _loaded(info, transformers.AutoImageProcessor.from_pretrained, "image processor")
    blank = np.zeros((32, 32, 3), np.uint8)
    made = []
    for one in images:
        pixels = processor(images=blank if one is None else decoded(one), return_tensors="np")["pixel_values"][0]
        made.append(np.asarray(pixels, np.float32) * (one is not None))
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack(made))


def load_model(info: EncoderInfo, part: str, precision: str, device: torch.device) -> nn.Module:
    """Loads a frozen encoder in evaluation mode; of a model of several parts the one that is wanted.

    Args:
        info: of the encoder.
        part: `text_model` or `vision_model`, of a model that has both.
        precision: in which it computes.
        device: to compute on.

    Raises:
        DataError: the weights are damaged, or are those of another model.
    """
    transformers = require("transformers", extra="table", purpose="table")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()

    def load(folder: str) -> Any:
        # A .bin file is a pickle, which is read as weights only; code in a model's folder does not run.
        return transformers.AutoModel.from_pretrained(
            folder, output_loading_info=True, weights_only=True, trust_remote_code=False
        )

    model, report = _loaded(info, load, "weights")
    keys = [*sorted(report["missing_keys"]), *sorted(str(key) for key in report["mismatched_keys"])]
    whole = isinstance(getattr(model, part, None), nn.Module)
    lacking = [key for key in keys if not UNUSED & set(key.split(".")) and (not whole or key.startswith(part))]
    if lacking:
        raise DataError(
            f"{info.flag}: the weights in {info.reference} lack {len(lacking)} parameters, {lacking[0]} first"
        )
    frozen: nn.Module = part_of(model, part).to(device, EXTRACT_PRECISIONS[precision]).eval().requires_grad_(False)
    return frozen


def part_of(model: Any, part: str) -> Any:
    """Returns the part of a model of several parts that is wanted, `text_model` or `vision_model`, or the whole encoder."""
    if isinstance(getattr(model, part, None), nn.Module):
        return getattr(model, part)
    return model.get_encoder() if getattr(model.config, "is_encoder_decoder", False) else model


def _loaded(info: EncoderInfo, load: Callable[[str], Any], what: str) -> Any:
    try:
        with folder_of(info) as folder:
            return load(folder)
    # Any error of the reader means that the user's file is damaged, or that a package for it is missing.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{info.flag}: the {what} in {info.reference} cannot be loaded: {one_line(reason)}") from error


def _states(info: EncoderInfo, model: nn.Module, **inputs: torch.Tensor) -> torch.Tensor:
    """Returns the last hidden states.

    Raises:
        DataError: the model does not take the inputs.
    """
    try:
        states: torch.Tensor = model(**inputs).last_hidden_state
        return states
    # What a model raises for inputs that it does not take, such as texts that are too long for its positions.
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{info.flag}: {info.reference} does not take these samples: {one_line(reason)}") from error


class AudioEncoder:
    """Last hidden states of an audio encoder.

    Args:
        state: of the column.
        context: settings.
        rate: samples in a second of the waveforms.

    Raises:
        DataError: feature extractor or model cannot be loaded, or takes waveforms of another rate.
    """

    def __init__(self, state: State, context: Context, rate: int) -> None:
        self._state, self._rate, self._batch = state, rate, context.options.extract_batch
        self._info = find_model("audio_model", state["model"])
        transformers = require("transformers", extra="table", purpose="table")
        self._extractor = _loaded(self._info, transformers.AutoFeatureExtractor.from_pretrained, "feature extractor")
        if self._extractor.sampling_rate != rate:
            raise DataError(
                f"audio_model: {self._info.reference} takes {self._extractor.sampling_rate} samples a second; expected {rate}"
            )
        self._device = extraction_device(context.no_cuda)
        self._model = load_model(self._info, "audio_model", state["precision"], self._device)

    @torch.no_grad()
    def __call__(self, cells: pa.Array) -> Encoded:
        """Maps waveforms to features [N, T, D] with the steps of each."""
        waves = [
            np.zeros(self._rate, np.float32) if one is None else np.array(one, np.float32) for one in cells.to_pylist()
        ]
        longest = math.ceil(self._state["seconds"] * self._rate)
        features, steps = [], []
        for start in range(0, len(waves), self._batch):
            part = waves[start : start + self._batch]
            made = self._extractor(
                part,
                sampling_rate=self._rate,
                padding="max_length",
                max_length=longest,
                truncation=True,
                return_tensors="pt",
            )
            # Some models take a mask of the padding, and others were trained without one.
            inputs = {name: made[name].to(self._device) for name in self._extractor.model_input_names if name in made}
            precision = EXTRACT_PRECISIONS[self._state["precision"]]
            inputs = {name: v.to(precision) if v.is_floating_point() else v for name, v in inputs.items()}
            states = _states(self._info, self._model, **inputs)
            count = self._steps([len(wave) for wave in part], longest, states.shape[1])
            there = (
                torch.arange(states.shape[1], device=states.device) < torch.tensor(count, device=states.device)[:, None]
            )
            features.append(states * there[..., None].to(states.dtype))
            steps += count
        values = stored(torch.cat(features), self._info, self._state["precision"])
        return Encoded(values=values, steps=np.array(steps, np.int64))

    def _steps(self, lengths: list[int], longest: int, steps: int) -> list[int]:
        """Returns the steps of waveforms of these lengths, in proportion to the longest one."""
        return [max(1, min(steps, math.ceil(steps * min(length, longest) / longest))) for length in lengths]
