"""Frozen ViT and BERT encoders, which are found and checked before any work starts, and loaded in the processes that use
them.

Shapes: N samples, H = W the size of the ViT's images, T steps (patches and the class token; pieces of text), D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from cggm_ray.core.arithmetic import choose_arithmetic
from cggm_ray.core.errors import DataError, short_repr
from cggm_ray.core.optional import require
from cggm_ray.data.formats.untrusted import read_json
from cggm_ray.data.shards.sources import describe_sources
from cggm_ray.storage.places import as_path, is_local, local_copy, local_folder

EXTRACT_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STORED = {"fp32": "float32", "bf16": "float16", "fp16": "float16"}
"""Type of the features in the shards. numpy has no bfloat16, and the output of a LayerNorm fits the range of float16."""
LARGEST = 2**18
"""Upper limit of the sizes in a model's configuration, because the model is allocated before its weights are read."""
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")
_PREFIXES = {"vit": "ViT", "bert": "Bert"}
"""Beginnings of the names of architectures."""


@dataclass(frozen=True, kw_only=True)
class EncoderInfo:
    """A pretrained encoder, from the configuration in its folder.

    Attributes:
        flag: that named it, 'vit' or 'bert'.
        reference: what `from_pretrained` gets: an absolute folder, or a hub name.
        files: configuration, weights and tokenizer.
        config: content of config.json.
    """

    flag: str
    reference: str
    files: tuple[Path, ...]
    config: dict[str, Any]

    def size(self, name: str) -> int:
        """Returns a positive whole number of the configuration.

        Raises:
            DataError: it is missing or something else.
        """
        value = self.config.get(name)
        if type(value) is not int or not 1 <= value <= LARGEST:
            raise DataError(
                f"{self.flag}: {self.reference}/config.json, field {name}: found {short_repr(value)}; expected a size of 1 to "
                f"{LARGEST:,}"
            )
        return value


def find_vit(value: str) -> EncoderInfo:
    """Finds the ViT of a local folder or hub name.

    Raises:
        DataError: it is none, is incomplete, or takes other images than square ones in colour.
    """
    info = _find("vit", value)
    for name in ("image_size", "patch_size", "hidden_size"):
        info.size(name)
    if info.config.get("num_channels", 3) != 3:
        raise DataError(f"vit: {value}/config.json, field num_channels: {info.config['num_channels']}; expected 3")
    return info


def find_bert(value: str, text_length: int) -> EncoderInfo:
    """Finds the BERT of a local folder or hub name, with its tokenizer.

    Raises:
        DataError: it is none, is incomplete, lacks its tokenizer, or takes shorter texts only.
    """
    info = _find("bert", value)
    info.size("hidden_size")
    if not any(path.name in TOKENIZER_FILES for path in info.files):
        raise DataError(
            f"bert: {value} has no tokenizer: expected {' or '.join(TOKENIZER_FILES)} beside config.json; it must be the "
            "one that the model was trained with"
        )
    if text_length > info.size("max_position_embeddings"):
        raise DataError(
            f"text_length: {text_length} pieces; the BERT in {value} takes {info.size('max_position_embeddings')}"
        )
    return info


def find_again(flag: str, recorded: str, beside: str | None) -> str:
    """Returns where the encoder of a run is now: at its old place, or beside the new data."""
    place = as_path(recorded)
    gone = place.is_absolute() and not place.is_dir()
    if gone and beside is None:
        raise DataError(
            f"{flag}: {recorded}, which the run was trained with, is gone; expected it there or beside the data"
        )
    return str(beside) if gone else recorded


def checksums(infos: Sequence[EncoderInfo], cache: Path) -> dict[str, str]:
    """Returns the checksum of every file of some encoders, by encoder and name of the file.

    Args:
        infos: of the encoders.
        cache: folder of all sets, where checksums are kept for the next run.
    """
    return {
        f"{info.flag}/{path.name}": source.sha256
        for info in infos
        for path, source in zip(
            info.files, describe_sources([local_copy(file) for file in info.files], cache), strict=True
        )
    }


def check_same(infos: Sequence[EncoderInfo], known: Mapping[str, str], cache: Path) -> None:
    """Raises a DataError if the encoders are not those of the run's training, because the features would differ silently.

    Args:
        infos: of the encoders.
        known: their checksums for the run, from `checksums`.
        cache: folder of all sets, where checksums are kept for the next run.

    Raises:
        DataError: names the first file that is another one.
    """
    found = checksums(infos, cache)
    for name in sorted({*known, *found}):
        if known.get(name) != found.get(name):
            flag, file = name.split("/", 1)
            place = next(info.reference for info in infos if info.flag == flag)
            raise DataError(
                f"{flag}: {file} in {place} is another file than the run was trained with; expected the same encoder"
            )


def _find(flag: str, value: str) -> EncoderInfo:
    found = find_encoder(flag, value)
    _check_kind(flag, found.files[0], found.config)
    return found


def find_encoder(flag: str, value: str) -> EncoderInfo:
    """Finds an encoder of any architecture in a local folder or under a hub name.

    Args:
        flag: that named it, for messages.
        value: folder or name.

    Raises:
        DataError: there is none, it is incomplete, or its weights are damaged.
    """
    folder = as_path(value).expanduser()
    reference = value
    if folder.is_dir():
        folder = folder.absolute()
        reference = str(folder)
    elif value.startswith((".", "/", "~")) or value.count("/") > 1:
        raise DataError(f"{flag}: {value}: no such folder")
    else:
        folder = _downloaded(flag, value)
    path = folder / "config.json"
    if not path.exists():
        raise DataError(f"{flag}: {value} has no config.json; expected a folder that transformers saved")
    config = read_json(path)
    if not isinstance(config, dict):
        raise DataError(f"{flag}: {path}: found a {type(config).__name__}; expected an object with model_type")
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not weights:
        raise DataError(f"{flag}: {value} has no weights; expected model.safetensors or pytorch_model.bin")
    for weight in weights:
        _check_weights(flag, weight)
    tokenizer = [folder / name for name in (*TOKENIZER_FILES, "tokenizer_config.json") if (folder / name).exists()]
    return EncoderInfo(flag=flag, reference=reference, files=(path, *weights, *tokenizer), config=config)


def _check_kind(flag: str, path: Path, config: dict[str, Any]) -> None:
    """Raises a DataError if the folder holds another model.

    Folders of 2019 lack model_type; their architectures show the model, or else the names of the weights.

    Raises:
        DataError: names the field that says another model.
    """
    kind = config.get("model_type")
    if kind is not None:
        if kind != flag:
            raise DataError(f"{flag}: {path}, field model_type: found {short_repr(kind)}; expected {flag!r}")
        return
    names = config.get("architectures")
    if names is not None and not (isinstance(names, list) and all(str(n).startswith(_PREFIXES[flag]) for n in names)):
        raise DataError(
            f"{flag}: {path}, field architectures: found {short_repr(names)}, and no model_type; expected names that begin "
            f"with {_PREFIXES[flag]}, or model_type {flag!r}"
        )


def _check_weights(flag: str, path: Path) -> None:
    """Reads the header of a safetensors file; raises DataError if it is damaged or cut short."""
    if path.suffix != ".safetensors":
        return
    try:
        with safe_open(path, "pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise DataError(f"{flag}: {path} is not a readable safetensors file: {error}") from None


def _downloaded(flag: str, name: str) -> Path:
    """Returns the folder of a hub model, which is fetched once.

    Raises:
        DataError: no such model, or no way to it.
    """
    hub = require("huggingface_hub", extra="food101", purpose="food101")
    errors = require("huggingface_hub.errors", extra="food101", purpose="food101")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=["*.json", "*.txt", "*.safetensors"]))
    except (errors.HfHubHTTPError, errors.HFValidationError, errors.LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{flag}: {name} is no local folder and cannot be fetched from the hub: {reason}") from None


def load_model(info: EncoderInfo, precision: str, device: torch.device) -> nn.Module:
    """Loads the frozen encoder in evaluation mode.

    Raises:
        DataError: the weights are damaged, or are those of another model.
    """
    transformers = require("transformers", extra="food101", purpose="food101")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    kind = {"vit": transformers.ViTModel, "bert": transformers.BertModel}[info.flag]
    try:
        # The last hidden states do not depend on the pooler.
        # A .bin file is a pickle, and a configuration may name a kernel to be fetched: both are shut out by name.
        with folder_of(info) as folder:
            model, report = kind.from_pretrained(
                folder,
                add_pooling_layer=False,
                output_loading_info=True,
                weights_only=True,
                attn_implementation="sdpa",
            )
    except Exception as error:
        # Any error of the reader means that the user's file is damaged.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{info.flag}: the weights in {info.reference} cannot be loaded: {reason}") from error
    lacking = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if lacking:
        raise DataError(
            f"{info.flag}: the weights in {info.reference} lack {len(lacking)} parameters, {lacking[0]} first"
        )
    choose_arithmetic(tf32=False, benchmark=False)  # torch's default for convolutions is TF32, which a CPU has not
    return model.to(device, EXTRACT_PRECISIONS[precision]).eval().requires_grad_(False)


class ImageFeatures:
    """Last hidden states of a ViT; pixels enter as values in [0, 1], as in the released code.

    Args:
        info: of the ViT.
        precision: in which it computes: fp32, bf16, fp16.
        batch: images at once.
        device: to compute on.
    """

    def __init__(self, info: EncoderInfo, precision: str, batch: int, device: torch.device) -> None:
        self._info = info
        self._precision = precision
        self._batch = batch
        self.device = device
        self._model = load_model(info, precision, self.device)

    @torch.no_grad()
    def __call__(self, pixels_NHWC: torch.Tensor) -> torch.Tensor:
        """Maps pixels uint8 [N, H, W, 3] to features [N, T, D] on the device, in the type of the computation."""
        parts = []
        for part in pixels_NHWC.split(self._batch):
            images = (
                part.to(self.device, non_blocking=True).permute(0, 3, 1, 2).to(EXTRACT_PRECISIONS[self._precision])
                / 255
            )
            parts.append(self._model(pixel_values=images).last_hidden_state)
        return torch.cat(parts)


class TextFeatures:
    """Last hidden states of a BERT for texts cut and padded to one length, as in the released code.

    Args:
        info: of the BERT.
        length: T.
        padding: 'released' keeps what BERT makes of the padding, 'zero' puts zeros there.
        precision: in which it computes.
        batch: texts at once.
        device: to compute on.

    Raises:
        DataError: the tokenizer is damaged, or is not that of the model.
    """

    def __init__(
        self,
        info: EncoderInfo,
        length: int,
        padding: str,
        precision: str,
        batch: int,
        device: torch.device,
    ) -> None:
        self._info = info
        self._length = length
        self._padding = padding
        self._precision = precision
        self._batch = batch
        self.device = device
        self._model = load_model(info, precision, self.device)
        self._tokenizer = load_tokenizer(info)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Maps texts to features [N, T, D] on the device, in the type of the computation."""
        parts = []
        for start in range(0, len(texts), self._batch):
            pieces = self._tokenizer(
                list(texts[start : start + self._batch]),
                padding="max_length",
                max_length=self._length,
                truncation=True,
                return_tensors="pt",
            ).to(self.device)
            states = self._model(**pieces).last_hidden_state
            if self._padding == "zero":
                states = states * pieces["attention_mask"][..., None]
            parts.append(states)
        return torch.cat(parts)


@contextmanager
def folder_of(info: EncoderInfo) -> Iterator[str]:
    """Gives the block what transformers loads the encoder from."""
    if is_local(info.files[0]):
        yield info.reference
    else:
        with local_folder(info.files) as folder:
            yield str(folder)


def load_tokenizer(info: EncoderInfo) -> Any:
    """Loads the tokenizer beside a BERT.

    Raises:
        DataError: it is damaged, or has more pieces than the model knows.
    """
    transformers = require("transformers", extra="food101", purpose="food101")
    try:
        with folder_of(info) as folder:
            tokenizer = transformers.BertTokenizer.from_pretrained(folder)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"bert: the tokenizer in {info.reference} cannot be loaded: {reason}") from error
    known = info.size("vocab_size")
    if len(tokenizer) > known:
        raise DataError(
            f"bert: the tokenizer in {info.reference} has {len(tokenizer)} pieces, the model {known}; expected its own"
        )
    return tokenizer


def stored(features: torch.Tensor, info: EncoderInfo, precision: str) -> np.ndarray:
    """Returns the features in the type of the shards.

    Raises:
        DataError: one of them is not finite.
    """
    values = features.float().cpu().numpy().astype(STORED[precision])
    if not np.isfinite(values).all():
        raise DataError(
            f"extract_precision: {info.reference} gives features that are not finite in {precision}; use another one"
        )
    return values


def extraction_device(no_cuda: bool) -> torch.device:
    """Returns the GPU if this process sees one and may use it, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() and not no_cuda else "cpu")
