"""Exports the network of a finished run, with torch.export or as an ONNX model.

The program has no guides, accepts any number of samples and needs no cggm-ray to run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cggm_ray.commands.onnx_model import check_onnx, write_onnx
from cggm_ray.core.batch import Batch
from cggm_ray.core.errors import StorageError, TrainingError, UsageError
from cggm_ray.data.loading.sampler import Slice
from cggm_ray.data.loading.split import Split
from cggm_ray.models.net import MultimodalNet
from cggm_ray.runs.finished import open_finished
from cggm_ray.storage.files import whole_file

TOLERANCE = 1e-5
"""Largest accepted difference between the outputs of the program and of the network, relative to the largest output."""
FORMATS = ("pt2", "onnx")
"""Endings of the files: a program of torch.export, and an ONNX model."""
MOST_SAMPLES = 64
"""Number of validation samples on which the program and the network are compared."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """Result of `export`.

    Attributes:
        path: of the program.
        samples: on which it was compared.
        difference: largest one found, relative to the largest output.
    """

    path: Path
    samples: int
    difference: float


class Inference(nn.Module):
    """The module that is exported: it maps inputs by modality, and masks if the dataset has any, to logits."""

    def __init__(self, net: MultimodalNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None) -> Tensor:
        """Returns the logits [N, C, ...] of inputs [N, ...] and masks [N, T] or [N, 1]."""
        return self.net(inputs, masks)


def export(folder: Path, out: Path | None = None, form: str | None = None) -> Exported:
    """Writes the network with the best weights, reads it back, and compares both on validation samples.

    Args:
        folder: of the run.
        out: the file; default `model.pt2` or `model.onnx` in the folder of the run.
        form: one of `FORMATS`; default by the ending of `out`, and pt2 where that is another.

    Raises:
        UsageError: the folder holds no finished run, its data is not there any more, or there is no such format.
        TrainingError: the network cannot be exported, or the program gives other numbers; no file is left.
        StorageError: the file cannot be written.
    """
    if form is None:
        form = "onnx" if out is not None and out.suffix == ".onnx" else "pt2"
    if form not in FORMATS:
        raise UsageError(f"format: unknown {form!r}; available: {', '.join(FORMATS)}")
    if form == "onnx":
        check_onnx()
    run = open_finished(folder, gpu=False)
    out = folder.absolute() / f"model.{form}" if out is None else out
    split = run.split("valid")
    net = Inference(run.net).eval()
    write = write_onnx if form == "onnx" else write_program
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(out, f".{form}") as partial:
            program = write(net, _batch(split, [0, min(1, len(split) - 1)]), partial)
            samples = min(MOST_SAMPLES, len(split))
            # One sample by itself and many together: the number of samples must not be frozen into the program.
            found = max(difference(net, program, _batch(split, rows)) for rows in ([0], list(range(samples))))
            if not found <= TOLERANCE:
                raise TrainingError(
                    f"{folder}: the exported program differs from the network by {found:.1e} of the largest output; "
                    f"expected at most {TOLERANCE:g}; nothing was written"
                )
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error.strerror}") from None
    return Exported(path=out, samples=samples, difference=found)


def write_program(net: nn.Module, batch: Batch, path: Path) -> Callable[..., Tensor]:
    """Writes an inference network as a program of torch.export, and returns the program as it is read back.

    Args:
        net: takes inputs and masks.
        batch: see `exported`.
        path: of the program.

    Raises:
        TrainingError: torch cannot export it.
    """
    torch.export.save(exported(net, batch), path)
    program: Callable[..., Tensor] = torch.export.load(path).module()
    return program


def exported(net: nn.Module, batch: Batch) -> torch.export.ExportedProgram:
    """Exports an inference network for any number of samples.

    Args:
        net: takes inputs and masks.
        batch: two samples, whose shapes but the first the program takes.

    Raises:
        TrainingError: torch cannot export it.
    """
    rows = {0: torch.export.Dim("samples", min=1)}
    arguments: tuple[dict[str, Tensor], ...] = (batch.inputs,)
    if batch.masks is not None:
        arguments += (batch.masks,)
    shapes = tuple(dict.fromkeys(part, rows) for part in arguments)
    try:
        with torch.no_grad():
            # Tables of positions grow with the longest sequence that was seen; the program needs them whole.
            net(*arguments)
            return torch.export.export(net, arguments, dynamic_shapes=shapes)
    except Exception as error:
        # torch raises errors of many types here.
        raise TrainingError(f"the network cannot be exported: {type(error).__name__}: {error}") from error


@torch.no_grad()
def difference(net: nn.Module, program: Callable[..., Tensor], batch: Batch) -> float:
    """Returns the largest difference of the outputs of a network and a program for a batch, relative to the largest output.

    It is NaN if an output is not finite.
    """
    arguments = (batch.inputs,) if batch.masks is None else (batch.inputs, batch.masks)
    wanted, found = net(*arguments), program(*arguments)
    return float((wanted - found).abs().max() / wanted.abs().max().clamp(min=1e-30))


def _batch(split: Split, rows: Sequence[int]) -> Batch:
    (batch,) = split.batches([Slice.whole(torch.tensor(rows))], epoch=0)
    return batch
