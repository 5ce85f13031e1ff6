"""Training steps as CUDA graphs: recorded once, then started with a single call.

A step of a small network starts a thousand kernels and more, and the host needs longer to start them than the GPU to run them.
A graph starts them all at once. It repeats kernels and nothing else: whatever the host decides within a step is decided once,
when the step is recorded. So everything that changes from step to step lies on the device (batch, learning rates, the memory
of the strategy), a strategy says what its decisions depend on (`Strategy.branch`), and what cannot be recorded runs eagerly
(`against_graph`). A recorded step has the bits of an eager one.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from cggm_ray.core.batch import Batch
from cggm_ray.core.errors import TrainingError
from cggm_ray.engine.settings import TrainConfig
from cggm_ray.engine.state import TrainState
from cggm_ray.models.registry import NETWORKS
from cggm_ray.strategies.base import Strategy

WARM = 2
"""Eager steps before one is recorded: tables, momenta and the workspaces of libraries are made in the first."""
MOST = 4
"""Graphs that are kept. Each keeps the memory of a step; most runs have two, of a full batch and of the last one."""

Values = dict[str, Tensor]
TakeStep = Callable[[Batch, int | None], Values]


class Recorder(Protocol):
    """Records what a function does on a device."""

    def __call__(self, function: Callable[[], Values]) -> tuple[Values, Callable[[], None]]:
        """Returns the function's tensors, and a call that does the same again and overwrites them."""
        ...


def record_cuda_graph(function: Callable[[], Values]) -> tuple[Values, Callable[[], None]]:
    """Records a CUDA graph with memory of its own; the function runs once on the host and not yet on the device.

    Raises:
        TrainingError: the function cannot be recorded.
    """
    graph = torch.cuda.CUDAGraph()
    # An older graph that the collector of Python finds meanwhile would give its memory back, which ends the recording.
    gc.collect()
    collects = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.graph(graph):
            values = function()
    except RuntimeError as error:
        # The error of the operation itself comes before that of the recording that it ended.
        cause = error.__context__ or error
        reason = " ".join(str(cause).split())[:300]
        raise TrainingError(f"step: it cannot be recorded as a CUDA graph, take --step eager: {reason}") from error
    finally:
        if collects:
            gc.enable()
    return values, graph.replay


def against_graph(
    train: TrainConfig,
    network: str,
    options: Any,
    strategy: Strategy,
    device: torch.device,
    workers: int,
    *,
    pretrained: bool = False,
) -> str | None:
    """Returns why the steps of a run cannot be recorded; None where they can.

    Args:
        train: settings of the loop.
        network: its name.
        options: of the network.
        strategy: of the run.
        device: of the run.
        workers: that share a batch.
        pretrained: whether the network has trained models in it.
    """
    if device.type != "cuda":
        return "there is no GPU"
    if workers > 1:
        return "workers that exchange gradients are not recorded"
    if train.accumulate > 1:
        return "a batch that is taken in parts (--accumulate) is not recorded"
    if train.on_nonfinite != "stop":
        return "--on_nonfinite skip waits for the device in every step"
    if pretrained:
        return "models of transformers read values on the host"
    return strategy.against_graph or NETWORKS.get(network).against_graph(options)


class DeviceRates:
    """Learning rates of optimizers as tensors on the device, float32, which a recorded step reads.

    Args:
        optimizers: whose groups' rates are numbers that a schedule changes.
        device: of their parameters.
    """

    def __init__(self, optimizers: Iterable[Optimizer | None], device: torch.device) -> None:
        self._groups = [group for one in optimizers if one is not None for group in one.param_groups]
        self._tensors = [torch.zeros((), device=device) for _ in self._groups]
        self._numbers = [0.0] * len(self._groups)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the optimizers take their rates from the tensors."""
        before = [dict(group) for group in self._groups]
        self.update()
        for group, tensor in zip(self._groups, self._tensors, strict=True):
            group["lr"] = tensor
            if "capturable" in group:
                group["capturable"] = True
        try:
            yield
        finally:
            for group, values in zip(self._groups, before, strict=True):
                group.update({name: values[name] for name in ("lr", "capturable") if name in values})

    def update(self) -> None:
        """Writes the rates that have changed into the tensors."""
        for number, (group, tensor) in enumerate(zip(self._groups, self._tensors, strict=True)):
            if group["lr"] != self._numbers[number]:
                self._numbers[number] = group["lr"]
                tensor.fill_(group["lr"])


class RecordedStep:
    """One step on batches of one form.

    Args:
        eager: takes the step.
        batch: of the form; the recorded step reads copies of its tensors.
        largest: see `train_step`.
        record: see `Recorder`.
    """

    def __init__(self, eager: TakeStep, batch: Batch, largest: int | None, record: Recorder) -> None:
        self._inputs = [tensor.clone() for tensor in device_tensors(batch)]
        own = with_tensors(batch, self._inputs)
        self._values, self._again = record(lambda: eager(own, largest))

    def __call__(self, batch: Batch) -> Values:
        """Takes the step; the returned tensors are overwritten by the next one."""
        torch._foreach_copy_(self._inputs, device_tensors(batch))
        self._again()
        return self._values


class GraphStep:
    """Takes steps eagerly until their form has been seen `WARM` times, and records them then.

    Args:
        eager: takes a step with device rates.
        state: of the run.
        rates: of the optimizers.
        record: see `Recorder`.
    """

    def __init__(
        self, eager: TakeStep, state: TrainState, rates: DeviceRates, record: Recorder = record_cuda_graph
    ) -> None:
        self._eager, self._state, self._rates, self._record = eager, state, rates, record
        self._seen: Counter[Hashable] = Counter()
        self._recorded: dict[Hashable, RecordedStep] = {}
        self._branch: Hashable = None

    def __call__(self, batch: Batch, largest: int | None = None) -> Values:
        """Takes a step on a batch that lies on the device.

        Args:
            batch: of this worker.
            largest: samples of the worker with the largest share; None for a single worker.

        Returns:
            Name of the log to a scalar or [M]; the next step may overwrite them.
        """
        branch = self._state.strategy.branch()
        if branch != self._branch:
            # The optimizers may meet parameters that had no gradient before.
            self._branch = branch
            self._seen.clear()
            self._recorded.clear()
        form = form_of(batch)
        recorded = self._recorded.get(form)
        if recorded is None and self._seen[form] >= WARM and len(self._recorded) < MOST:
            with self._rates.applied():
                recorded = RecordedStep(self._eager, batch, largest, self._record)
            self._recorded[form] = recorded
        if recorded is not None:
            self._rates.update()
            return recorded(batch)
        self._seen[form] += 1
        with self._rates.applied():
            return self._eager(batch, largest)


def device_tensors(batch: Batch) -> list[Tensor]:
    """Returns the tensors of a batch that lie on the device, in one order; `index` stays on the host."""
    groups = (batch.inputs, batch.present, batch.masks, batch.given)
    found = [tensor for group in groups if group is not None for tensor in group.values()]
    single = (batch.target, batch.group, batch.weight, batch.labelled)
    return found + [tensor for tensor in single if tensor is not None]


def with_tensors(batch: Batch, tensors: Iterable[Tensor]) -> Batch:
    """Returns the batch with other tensors, in the order of `device_tensors`."""
    taken = iter(tensors)

    def group(of: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
        return None if of is None else {name: next(taken) for name in of}

    inputs = {name: next(taken) for name in batch.inputs}
    present, masks, given = group(batch.present), group(batch.masks), group(batch.given)
    single = {
        name: next(taken) for name in ("target", "group", "weight", "labelled") if getattr(batch, name) is not None
    }
    return replace(batch, inputs=inputs, present=present, masks=masks, given=given, **single)


def form_of(batch: Batch) -> Hashable:
    """Returns what must be equal for two batches to be taken by one recorded step."""
    names = tuple(
        tuple(group) if isinstance(group, dict) else group is None
        for group in (batch.inputs, batch.present, batch.masks, batch.given, batch.group, batch.weight, batch.labelled)
    )
    return names, tuple((tensor.shape, tensor.dtype, tensor.stride()) for tensor in device_tensors(batch))
