"""Guards of the training loop: steps that are not finite, and workers that wait for a missing one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cggm_ray.core.batch import Batch
from cggm_ray.core.errors import NonFiniteError
from cggm_ray.engine.runtime import Runtime
from cggm_ray.engine.state import TrainState
from cggm_ray.engine.tracking import Console

MOST_SKIPS = 10
"""Number of consecutive steps that may be skipped. After so many the training has diverged."""
ANSWER = 10.0
"""Seconds within which a living worker notices that a collective operation failed."""

StepValues = dict[str, Tensor]


def non_finite(
    state: TrainState, batch: Batch, task_loss: Tensor, extra: Tensor, total: Tensor, runtime: Runtime
) -> NonFiniteError:
    """Returns the error, which names the ranks whose batch is not finite. All workers call it."""
    with torch.no_grad():
        logits = state.net(batch.inputs, batch.masks)
    bad = torch.zeros(runtime.world_size, dtype=torch.float64, device=runtime.device)
    bad[runtime.rank] = float(not bool(torch.isfinite(logits).all()))
    ranks = runtime.reduce()(bad).nonzero()[:, 0].tolist() or list(range(runtime.world_size))
    checkpoint = runtime.checkpoints.newest()
    return NonFiniteError(
        f"step {state.step + 1} (epoch {state.epoch + 1}): not finite: task loss {float(task_loss):.4g}, strategy's term "
        f"{float(extra):.4g}, gradient norm {float(total):.4g}; seen on rank {', '.join(map(str, ranks))}; no parameter "
        f"was moved; samples on rank {runtime.rank}: {batch.index.tolist()}; last good checkpoint: {checkpoint or 'none yet'}"
    )


def stop_if_not_finite(state: TrainState, runtime: Runtime) -> None:
    """Raises an error if a step since the last call was not finite (`DeviceWatch`). All workers call it.

    Raises:
        NonFiniteError: on all workers alike.
    """
    bad = None if state.watch is None else state.watch.poll()
    if bad is None:
        return
    task_loss, extra, total = bad.values
    raise NonFiniteError(
        f"step {bad.step + 1} (epoch {state.epoch + 1}): not finite: task loss {task_loss:.4g}, strategy's term {extra:.4g}, "
        f"gradient norm {total:.4g}; no parameter was moved; samples on rank {runtime.rank}: {bad.index}; last good "
        f"checkpoint: {runtime.checkpoints.newest() or 'none yet'}"
    )


def step_or_skip(
    on_nonfinite: str, state: TrainState, step: nn.Module, console: Console | None, take: Callable[[], StepValues]
) -> StepValues | None:
    """Takes a step. With `--on_nonfinite skip` a step that is not finite is undone, counted and reported in one line.

    Args:
        on_nonfinite: 'stop' or 'skip'.
        state: of the run.
        step: the module whose buffers (running statistics, the strategy's memory) the forward pass changes.
        console: of rank 0.
        take: the step; it raises NonFiniteError on all workers alike, before any parameter moved.

    Returns:
        Quantities of the step; None if it was skipped.

    Raises:
        NonFiniteError: a step was not finite; with skipping, `MOST_SKIPS` steps in a row were not.
    """
    if on_nonfinite == "stop":
        return take()
    before = [
        (module, name, None if buffer is None else buffer.clone())
        for module in step.modules()
        for name, buffer in module._buffers.items()
    ]
    try:
        values = take()
    except NonFiniteError as error:
        state.skips += 1
        state.averages.skipped += 1
        if state.skips >= MOST_SKIPS:
            raise NonFiniteError(f"{MOST_SKIPS} steps in a row were not finite; the last one: {error}") from None
        for module, name, buffer in before:
            module._buffers[name] = buffer
        step.zero_grad(set_to_none=True)
        if console is not None:
            console.say(f"skipped {error}")
        return None
    state.skips = 0
    return values


@contextmanager
def reporting_missing_ranks(runtime: Runtime, timeout: int, kind: type[Exception]) -> Iterator[None]:
    """Names the missing workers when a collective operation in the block fails or times out.

    Args:
        runtime: of this worker.
        timeout: seconds that collective operations wait.
        kind: of the error that is raised instead.
    """
    try:
        yield
    except RuntimeError as error:
        if runtime.world_size == 1 or not _is_of_collective(error):
            raise
        missing = missing_ranks(runtime.rank, runtime.world_size, min(ANSWER, timeout))
        what = (
            f"rank {', '.join(map(str, missing))} of {runtime.world_size} is missing"
            if missing
            else f"all {runtime.world_size} ranks still run, so they wait at different places"
        )
        newest = runtime.checkpoints.newest()
        raise kind(
            f"rank {runtime.rank} waited for the others, for at most {timeout} s (--collective_timeout): {what}; last good "
            f"checkpoint: {newest or 'none yet'}"
        ) from error


def missing_ranks(rank: int, world_size: int, patience: float) -> list[int]:
    """Returns the ranks that do not report within `patience` seconds. All workers that still run call it within that time.

    They report through the store that set up the process group, because it works when collective operations fail.
    """
    store = dist.distributed_c10d._get_default_store()
    store.set_timeout(timedelta(seconds=patience))
    end = time.monotonic() + patience
    try:
        store.set(f"cggm/here/{rank}", "")
        while True:
            missing = [other for other in range(world_size) if not store.check([f"cggm/here/{other}"])]
            if not missing or time.monotonic() > end:
                return missing
            time.sleep(0.2)
    except RuntimeError:
        # Under Ray the store is in the process of rank 0.
        return [0]


def _is_of_collective(error: RuntimeError) -> bool:
    texts = ("Timed out waiting", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return isinstance(error, dist.DistError) or any(text in str(error) for text in texts)
