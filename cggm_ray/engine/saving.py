"""Saves beside training: a step waits for a copy of the state, and a thread of rank 0 writes it.

At most one save is in flight, and the next one waits for it. The thread makes the folder, its checksums and the upload, as
`Checkpoints.save` does, so a checkpoint is whole or absent wherever the process ends. All workers settle a save at the same
step: there they learn whether it failed, and report what was saved.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cggm_ray.core.errors import StorageError
from cggm_ray.core.reduction import Reduction
from cggm_ray.engine.checkpoints import Checkpoints
from cggm_ray.engine.state import Content, Position

ALIGNMENT = 64
"""Bytes; the start of every tensor in the block of a `HostCopy` is a multiple of it."""


@dataclass(frozen=True, kw_only=True)
class Save:
    """A save that was begun and is not settled.

    Attributes:
        position: of the checkpoint.
        report: called by all workers when the checkpoint is whole; None for nothing.
        thread: that writes it; None on all workers but rank 0.
    """

    position: Position
    report: Callable[[], None] | None
    thread: threading.Thread | None


class Saves:
    """The saves of a run, one at a time.

    Args:
        checkpoints: of the run. Only the thread of a save in flight uses them.
        rank: of this worker.
        reduce: sums over the workers.
        device: of what is reduced.
    """

    def __init__(self, checkpoints: Checkpoints, rank: int, reduce: Reduction, device: torch.device) -> None:
        self._checkpoints, self._rank, self._reduce, self._device = checkpoints, rank, reduce, device
        self._copy = HostCopy()
        self._reserving: threading.Thread | None = None
        self._save: Save | None = None
        self._failure: BaseException | None = None

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints, after waiting for the save in flight."""
        self.wait()
        return self._checkpoints

    @property
    def ended(self) -> bool:
        """Whether this worker knows that a save has ended, well or not, which is to be settled."""
        thread = None if self._save is None else self._save.thread
        return thread is not None and not thread.is_alive()

    def reserve(self, content: Callable[[], Content]) -> None:
        """Prepares the memory of the copies beside training; later calls do nothing. All workers may call it."""
        if self._rank == 0 and self._reserving is None and self._save is None:
            self._reserving = threading.Thread(target=self._copy.reserve, args=(content(),), daemon=True)
            # On a GPU at once: another thread may not allocate there while a step is recorded as a graph.
            (self._reserving.run if self._device.type == "cuda" else self._reserving.start)()

    def begin(
        self, position: Position, content: Callable[[], Content], report: Callable[[], None] | None = None
    ) -> None:
        """Begins to save a checkpoint after the save before is settled. All workers call it.

        Args:
            position: of the checkpoint.
            content: what it holds; rank 0 calls it and copies the tensors.
            report: called by `settle` when the checkpoint is whole.

        Raises:
            StorageError: on all workers, where the save before failed.
        """
        self.settle()
        thread = self._started(position, content()) if self._rank == 0 else None
        self._save = Save(position=position, report=report, thread=thread)

    def settle(self) -> None:
        """Waits for the save in flight and reports it. All workers call it.

        Raises:
            StorageError: on all workers, where it failed.
        """
        self.wait()
        save, self._save = self._save, None
        failure, self._failure = self._failure, None
        if save is None:
            return
        failed = self._reduce(torch.tensor(float(failure is not None), dtype=torch.float64, device=self._device))
        if failure is not None:
            raise failure
        if failed:
            raise StorageError(f"{self._checkpoints.folder}: rank 0 cannot write the checkpoint of {save.position}")
        if save.report is not None:
            save.report()

    def wait(self) -> None:
        """Waits for the save that this worker writes, where an error or a question cannot wait for the others."""
        if self._save is not None and self._save.thread is not None:
            self._save.thread.join()

    def _started(self, position: Position, content: Content) -> threading.Thread:
        """Copies what a checkpoint holds, and returns the thread that writes it."""
        if self._reserving is not None and self._reserving.is_alive():
            self._reserving.join()
        copied = self._copy(content)

        def write() -> None:
            try:
                self._checkpoints.save(position, copied.save)
            except BaseException as error:
                self._failure = error

        # A daemon, because a second Ctrl-C ends the process at once. What it leaves half written does not count.
        thread = threading.Thread(target=write, name=f"save {position.name}", daemon=True)
        thread.start()
        return thread


class HostCopy:
    """Copies what a checkpoint holds into one block of host memory, which the next copy uses again.

    The system clears new memory page by page, which takes longer than the copy itself. Copies from a GPU go into pinned memory,
    one after the other, and are waited for once.
    """

    def __init__(self) -> None:
        self._block = torch.empty(0, dtype=torch.uint8)

    def __call__(self, content: Content) -> Content:
        """Returns the copy; the one before is overwritten."""
        starts = self.reserve(content)
        tensors = content.all()
        on_gpu = next((tensor.device for tensor in tensors if tensor.is_cuda), None)
        copies = iter([self._begun(tensor, start) for tensor, start in zip(tensors, starts, strict=True)])
        if on_gpu is not None:
            # Not in the thread that writes: it may call nothing of CUDA while a step is recorded as a graph.
            torch.cuda.current_stream(on_gpu).synchronize()
        return Content(
            weights={name: next(copies) for name in content.weights},
            tensors={name: next(copies) for name in content.tensors},
            values=content.values,
        )

    def reserve(self, content: Content) -> list[int]:
        """Makes the block large enough, with pages that are there; returns the start of each tensor in it."""
        tensors = content.all()
        sizes = (-(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT for tensor in tensors)
        *starts, size = itertools.accumulate(sizes, initial=0)
        if len(self._block) < size:
            self._block = torch.zeros(size, dtype=torch.uint8, pin_memory=any(tensor.is_cuda for tensor in tensors))
        return starts

    def _begun(self, tensor: Tensor, start: int) -> Tensor:
        """Begins to copy a tensor to a place in the block; returns the copy."""
        if not tensor.numel():
            return torch.empty(tensor.shape, dtype=tensor.dtype)
        part = self._block[start : start + tensor.numel() * tensor.element_size()]
        return part.view(tensor.dtype).view(tensor.shape).copy_(tensor.detach(), non_blocking=True)
