"""Finished runs in a storage: published from here, and fetched to any other machine."""

from __future__ import annotations

from pathlib import Path

from cggm_ray.core.errors import StorageError, UsageError
from cggm_ray.engine.checkpoints import check_checkpoint
from cggm_ray.runs.ensembles import tested_checkpoints
from cggm_ray.runs.result import CONFIG, SUMMARY
from cggm_ray.storage.base import INDEX, check_key, open_storage

LEFT_OUT = ("checkpoints", "headroom", "tensorboard")
"""Folders of a run, and of the runs in its folder, that are of use only where it is trained."""


def publish_run(folder: Path, url: str) -> str:
    """Copies a finished run into a storage, without the checkpoints for going on; its URL there.

    Args:
        folder: of the run.
        url: of the storage; the run gets its own name below it.

    Raises:
        UsageError: the folder holds no finished run, no storage serves the URL, or another run has that name there.
        TrainingError: the best checkpoint is damaged.
        StorageError: the storage cannot be written.
    """
    folder, storage = folder.absolute(), open_storage(url)
    for name in (CONFIG, SUMMARY):
        if not (folder / name).exists():
            raise UsageError(f"{folder / name} does not exist; expected the folder of a finished run")
    for checkpoint in tested_checkpoints(folder):
        check_checkpoint(checkpoint)
    try:
        storage.publish(folder, folder.name, _files(folder))
    except OSError as error:
        raise StorageError(
            f"{storage.url} cannot be written: {error.strerror or error}; the run is as it was"
        ) from None
    return f"{storage.url}/{folder.name}"


def fetch_run(url: str, folder: Path) -> None:
    """Copies a published run into a new local folder.

    Args:
        url: what `publish_run` returned.
        folder: for the run; a path where there is nothing yet.

    Raises:
        UsageError: the folder exists, no storage serves the URL, or nothing was published there.
        DataError: what was published is not complete, or damaged.
        StorageError: the storage cannot be read, or the folder cannot be written.
    """
    place, _, name = url.rstrip("/").rpartition("/")
    if not place or place.endswith("/"):
        raise UsageError(f"found {url}; expected the URL that `publish` printed, the storage's with the name of a run")
    storage = open_storage(place)
    try:
        storage.fetch(check_key(name), folder.absolute())
    except OSError as error:
        raise StorageError(f"{url} cannot be copied to {folder}: {error.strerror or error}") from None


def _files(folder: Path) -> list[str]:
    """The files of a run that are published, relative to its folder."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    shown = (path for path in paths if not any(part.startswith(".") for part in path.parts))
    return [path.as_posix() for path in shown if not {*path.parts} & {*LEFT_OUT, INDEX}]
