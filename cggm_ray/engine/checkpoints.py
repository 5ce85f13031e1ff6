"""The checkpoints of a run: which are kept, which can be used, and what is said of a damaged one.

They lie in `checkpoints/` in the folder of the run, wherever the loop runs, so that a run may go on elsewhere:

    epoch-00004                  after four epochs
    epoch-00004-step-000017      in the fifth epoch, after 17 of its steps

Kept are the newest ones, two unless `--keep_checkpoints` says otherwise, and the best epochs that these know of. Files are
written by rank 0 alone, on storage that all workers share, or put into the one whose URL was given.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from cggm_ray.core.errors import StorageError, TrainingError
from cggm_ray.engine.state import Position, saved_values
from cggm_ray.storage.files import CHECKSUMS, file_digest, write_folder
from cggm_ray.storage.mirror import APART, mirror_of

CHECKPOINTS = APART
PATIENCE = 30.0
"""Seconds within which all workers must see a file that rank 0 wrote, because network file systems cache directories."""
_NAME = re.compile(r"epoch-(\d{5,})(?:-step-(\d{6,}))?")


def position_of(folder: Path) -> Position | None:
    """Returns the position of a checkpoint from the name of its folder, or None if the name is not that of a checkpoint."""
    match = _NAME.fullmatch(folder.name)
    return None if match is None else Position(int(match[1]), int(match[2] or 0))


def check_checkpoint(folder: Path) -> None:
    """Compares every file of a checkpoint with the checksum that was written with it.

    Raises:
        TrainingError: a file is missing or has other bytes; the message names it.
    """
    try:
        expected: dict[str, str] = json.loads((folder / CHECKSUMS).read_text())
        for name, digest in expected.items():
            if (found := file_digest(folder / name)) != digest:
                raise TrainingError(
                    f"{folder / name}: this checkpoint cannot be used: damaged: sha256 {found[:12]}..., expected "
                    f"{digest[:12]}..."
                )
    except (OSError, ValueError, AttributeError) as error:
        raise TrainingError(f"{folder}: this checkpoint cannot be used: {error}") from None


class Checkpoints:
    """The checkpoints in the folder of a run.

    Args:
        run: the folder.
        kept: number of newest checkpoints that `save` keeps.
    """

    def __init__(self, run: Path, kept: int = 2) -> None:
        self.folder, self._kept = run / CHECKPOINTS, kept
        self._mirror = mirror_of(run)

    def all(self) -> list[tuple[Position, Path]]:
        """Returns all positions and folders, oldest first."""
        found = [(position_of(path), path) for path in self.folder.glob("epoch-*")]
        return sorted((position, path) for position, path in found if position is not None)

    def newest(self) -> Path | None:
        """Returns the newest complete checkpoint, which may have been damaged since."""
        return max(self.all(), default=(None, None))[1]

    def of(self, position: Position) -> Path | None:
        """Returns the checkpoint at a position, or None if it was not kept."""
        folder = self.folder / position.name
        if not folder.exists():
            self._mirror.fetch(folder)
        return folder if folder.exists() else None

    def usable(self) -> tuple[Path | None, list[str]]:
        """Returns the newest checkpoint from which the run can continue, and a line about each damaged one.

        A checkpoint can be used if it is whole and the best epoch that it knows of is whole too. Where the only checkpoint of
        a run is damaged, nothing is lost but its beginning, and there is none to use.

        Raises:
            TrainingError: there are several and none can be used.
        """
        damaged: list[str] = []
        self._mirror.fetch_all(CHECKPOINTS)
        found = self.all()
        for position, folder in reversed(found):
            try:
                check_checkpoint(folder)
                best = Position(int(saved_values(folder)["best"]["epoch"]))
                if best.epoch and best != position:
                    check_checkpoint(self.folder / best.name)
                return folder, damaged
            except TrainingError as error:
                damaged.append(str(error))
        if len(found) > 1:
            raise TrainingError(
                f"{self.folder}: no checkpoint can be used: {damaged[0]}; --fresh starts over and keeps this folder aside"
            )
        return None, damaged

    def save(self, position: Position, write: Callable[[Path], None]) -> None:
        """Writes a checkpoint, then removes the checkpoints that are not needed any more.

        Raises:
            StorageError: it cannot be written; the message names the last good one. Nothing was removed.
        """
        folder = self.folder / position.name
        with storage_errors(self):
            write_folder(folder, write)
            try:
                # The metrics of this epoch first: they are of no use without the checkpoint, and it must not be without them.
                self._mirror.push()
                self._mirror.publish(folder)
            except BaseException:
                # No run goes on from a checkpoint that only this node has.
                shutil.rmtree(folder, ignore_errors=True)
                raise
            self._prune()

    def _prune(self) -> None:
        """Keeps the newest ones and the best epochs that they know of."""
        found = self.all()
        kept = {position for position, _ in found[-self._kept :]}
        for _, folder in found[-self._kept :]:
            try:
                kept.add(Position(int(saved_values(folder)["best"]["epoch"])))
            except TrainingError:
                # A damaged checkpoint is not used by a run that starts.
                continue
        for position, folder in found:
            if position not in kept:
                self._mirror.remove(folder)


@contextmanager
def storage_errors(checkpoints: Checkpoints) -> Iterator[None]:
    """Turns an error of the file system in the block into a StorageError of one line.

    Raises:
        StorageError: names the file, the reason and the last good checkpoint.
    """
    try:
        yield
    except (ConnectionError, TimeoutError):
        raise
    except (OSError, SafetensorError) as error:
        name = getattr(error, "filename", None) or checkpoints.folder
        reason = getattr(error, "strerror", None) or str(error)
        try:
            newest = checkpoints.newest()
        except OSError:
            newest = None
        raise StorageError(
            f"{name}: cannot be written or read: {reason}; last good checkpoint: {newest or 'none yet'}; the same command "
            "goes on from there when the storage is back"
        ) from error


def agree(
    checkpoints: Checkpoints, rank: int, world_size: int, reduce: Callable[[Tensor], Tensor], device: torch.device
) -> tuple[Path | None, list[str]]:
    """Returns the checkpoint from which all workers continue. Rank 0 chooses it; all workers call this function.

    Returns:
        Folder of the checkpoint, and on rank 0 a line about each damaged one.

    Raises:
        TrainingError: rank 0 finds no usable checkpoint, or this worker cannot see the one that rank 0 chose.
    """
    if world_size == 1:
        return checkpoints.usable()
    choice = torch.zeros(3, dtype=torch.float64, device=device)
    lines: list[str] = []
    failure: TrainingError | None = None
    if rank == 0:
        try:
            folder, lines = checkpoints.usable()
            position = None if folder is None else position_of(folder)
            if position is not None:
                choice += torch.tensor([1, position.epoch, position.steps], device=device)
        except TrainingError as error:
            choice[0], failure = -1, error
    found, epoch, steps = map(int, reduce(choice).tolist())
    if failure is not None:
        raise failure
    if found < 0:
        raise TrainingError(f"{checkpoints.folder}: no checkpoint can be used; rank 0 says why")
    if not found:
        return None, lines
    folder = checkpoints.folder / Position(epoch, steps).name
    end = time.monotonic() + PATIENCE
    while checkpoints.of(Position(epoch, steps)) is None:
        if time.monotonic() > end:
            raise TrainingError(
                f"{folder}: rank 0 sees this checkpoint and rank {rank} does not; expected shared storage"
            )
        time.sleep(0.2)
    return folder, lines
