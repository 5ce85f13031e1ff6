"""A training step as one graph of torch.compile: network, guides, coefficients, losses, and the backward pass of all.

What cannot be traced without a break runs eagerly, and a line says why.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch._dynamo.config
from torch._dynamo.exc import TorchDynamoException

from cggm_ray.core.batch import Batch

# Read by torch when it compiles. With torch's default, torch 2.13 loses what a graph writes into a scalar buffer in float64.
os.environ.setdefault("TENSORIFY_PYTHON_SCALARS", "0")


class CompiledLosses:
    """Computes the losses of a batch, compiled where that is possible.

    Args:
        losses: of a batch.
        samples: of a batch that is compiled. Every other size would take minutes for a graph of its own.
        say: gets the line about a graph that cannot be made.
        backend: of torch.compile.
    """

    def __init__(
        self, losses: Callable[[Batch], Any], samples: int, say: Callable[[str], None], backend: str = "inductor"
    ) -> None:
        self._losses, self._samples, self._say = losses, samples, say
        self._compiled = torch.compile(losses, fullgraph=True, dynamic=False, backend=backend)
        self._broken = False

    def __call__(self, batch: Batch) -> Any:
        """Returns what the function returns."""
        if self._broken or len(batch) != self._samples:
            return self._losses(batch)
        try:
            with _tracing_gradients():
                return self._compiled(batch)
        except TorchDynamoException as error:
            # Nothing has happened yet: a graph is traced as a whole before it runs.
            self._broken = True
            self._say(f"compile: the step runs eagerly, because it cannot be one graph: {_reason(error)}")
            logging.getLogger(__name__).debug("torch.compile", exc_info=error)
            return self._losses(batch)


def _tracing_gradients() -> AbstractContextManager[object]:
    """Inside, torch traces gradients that a strategy takes while the losses are computed; torch 2.11 cannot yet."""
    name = "trace_autograd_ops"
    return torch._dynamo.config.patch(name, True) if hasattr(torch._dynamo.config, name) else nullcontext()


def _reason(error: TorchDynamoException) -> str:
    """Returns the first line of torch's message, and the line of the package that it names last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    places = [line for line in lines if line.startswith("File ") and "cggm_ray" in line]
    where = f" ({places[-1].removeprefix('File ')})" if places else ""
    return f"{' '.join(lines[:2])[:300] or type(error).__name__}{where}"
