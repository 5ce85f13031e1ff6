"""Writes the network of a finished run as an ONNX model, which any runtime of that format runs without Python or torch.

The model has an input for each modality, with its name, and where the dataset has masks an input `mask_<modality>` for each of
those. The output is `logits`. The number of samples is free.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch
from torch import Tensor, nn

from cggm_ray.core.batch import Batch
from cggm_ray.core.errors import TrainingError, one_line
from cggm_ray.core.optional import check_installed, require

MASK = "mask_"
"""Begins the name of an input that says where a modality is there."""
OUTPUT = "logits"
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class _Flat(nn.Module):
    """The network with its tensors one after the other, because the inputs of an ONNX model have no structure."""

    def __init__(self, net: nn.Module, modalities: tuple[str, ...], masks: tuple[str, ...]) -> None:
        super().__init__()
        self.net, self._modalities, self._masks = net, modalities, masks

    def forward(self, *tensors: Tensor) -> Tensor:
        inputs = dict(zip(self._modalities, tensors, strict=False))
        masks = dict(zip(self._masks, tensors[len(self._modalities) :], strict=True))
        logits: Tensor = self.net(inputs, masks) if masks else self.net(inputs)
        return logits


def check_onnx() -> None:
    """Raises a MissingPackageError if a package that ONNX models need is not installed."""
    check_installed(*_PACKAGES, extra="onnx", purpose="export as ONNX")


def write_onnx(net: nn.Module, batch: Batch, path: Path) -> Callable[..., Tensor]:
    """Writes an inference network as an ONNX model and returns what reads it back.

    Args:
        net: takes inputs and masks.
        batch: two samples, whose shapes but the first the model takes.
        path: of the model.

    Returns:
        The model in onnxruntime on the CPU, to be called as the network is.

    Raises:
        TrainingError: torch or onnxruntime cannot do something that the network needs.
        MissingPackageError: a package is not installed.
    """
    runtime = require("onnxruntime", extra="onnx", purpose="export as ONNX")
    modalities, masks = tuple(batch.inputs), tuple(batch.masks or ())
    tensors = (*batch.inputs.values(), *(batch.masks or {}).values())
    names = [*modalities, *(MASK + name for name in masks)]
    rows = torch.export.Dim("samples", min=1)
    flat = _Flat(net, modalities, masks).eval()
    try:
        with torch.no_grad(), _quiet():
            flat(*tensors)
            program = torch.onnx.export(
                flat,
                tensors,
                dynamo=True,
                dynamic_shapes=(tuple({0: rows} for _ in tensors),),
                input_names=names,
                output_names=[OUTPUT],
                verbose=False,
            )
            assert program is not None
            # In one file, which a person can copy alone.
            program.save(path, external_data=False)
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:
        # Both libraries raise errors of many types here.
        raise TrainingError(
            f"the network cannot be exported as ONNX: {type(error).__name__}: {_first(error)}"
        ) from error

    def run(inputs: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None) -> Tensor:
        given = {**inputs, **{MASK + name: mask for name, mask in (masks or {}).items()}}
        (logits,) = session.run([OUTPUT], {name: tensor.numpy() for name, tensor in given.items()})
        return torch.from_numpy(logits)

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, the exporter prints no steps, and does not warn of its internals and of packages that it can do without."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _first(error: Exception) -> str:
    """What an exporter says first; the rest are pages of a graph."""
    return one_line(str(error))[:300]
