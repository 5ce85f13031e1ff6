"""All runs in a folder: what each of them is, and what can be deleted without losing a result."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cggm_ray.config.parsing import read_yaml
from cggm_ray.core.errors import CggmError, StorageError, UsageError, reason
from cggm_ray.data.shards.shards import MANIFEST
from cggm_ray.engine.checkpoints import CHECKPOINTS
from cggm_ray.engine.tracking import METRICS, read_metrics
from cggm_ray.runs.provenance import read_provenance
from cggm_ray.runs.recorded import recorded_epochs
from cggm_ray.runs.result import CONFIG, SUMMARY, read_summary
from cggm_ray.runs.search_record import SEARCH
from cggm_ray.storage.files import CHECKSUMS
from cggm_ray.storage.leases import holder_of
from cggm_ray.storage.locks import holding
from cggm_ray.storage.urls import UrlPath

SHARDS = "shards"
TRIALS = "trials"


@dataclass(frozen=True, kw_only=True)
class ListedRun:
    """A run or a search in a folder of runs.

    Attributes:
        folder: of the run.
        dataset, strategy: of its configuration; empty where that cannot be read.
        state: 'finished', 'running', 'search of 12 trials', or how far it came.
        metric: the first metric of its task; empty where the run is not finished.
        valid, test: that metric of the best epoch; None where the run is not finished.
        size: bytes of its folder.
    """

    folder: Path
    dataset: str
    strategy: str
    state: str
    metric: str
    valid: float | None
    test: float | None
    size: int


@dataclass(frozen=True, kw_only=True)
class Deletable:
    """A file or folder that no result needs.

    Attributes:
        path: of it.
        reason: what it is, and what is lost with it.
        size: bytes.
    """

    path: Path
    reason: str
    size: int


def list_runs(storage: Path) -> list[ListedRun]:
    """Returns the runs and searches in a folder, sorted by name; of what is at a URL, by one listing and small files.

    Raises:
        UsageError: there is no such folder.
    """
    with _one_listing(storage):
        return [_listed(folder) for folder in _folders(storage)]


@contextmanager
def _one_listing(storage: Path) -> Iterator[None]:
    """Lists what is at a URL once for all questions of a block."""
    if not isinstance(storage, UrlPath):
        yield
        return
    try:
        storage.hold_listing()
        yield
    except OSError as error:
        raise StorageError(f"{storage} cannot be read: {reason(error)}") from None


def deletable(storage: Path) -> list[Deletable]:
    """Returns what can be deleted in a folder of runs. A run that is being written keeps everything.

    - Checkpoints of finished runs: their best one stays. Without them a run cannot be continued with more epochs.
    - Runs that `--fresh` moved aside, `NAME.1` beside `NAME`.
    - Files of writers that were killed.
    - Converted sets that no run in the folder uses; they are converted again when they are needed.

    Raises:
        UsageError: there is no such folder.
    """
    with _one_listing(storage):
        return _deletable(storage)


def _deletable(storage: Path) -> list[Deletable]:
    found: list[Deletable] = []
    folders = [folder for folder in _folders(storage) if not running(folder)]
    aside = {folder for folder in folders if _is_aside(folder)}
    for folder in folders:
        if folder in aside:
            found.append(_entry(folder, "a run that --fresh moved aside"))
            continue
        finished = [run for run in (folder, *_members(folder)) if (run / SUMMARY).exists()]
        kept = "checkpoints of a finished run, which --num_epochs could continue"
        found += [_entry(run / CHECKPOINTS, kept) for run in finished if (run / CHECKPOINTS).exists()]
        found += [_entry(path, "left by a writer that was killed") for path in sorted(folder.rglob(".*.part*"))]
    if not any(map(running, _folders(storage))):
        used = {name for folder in _folders(storage) if folder not in aside for name in _sets(folder)}
        for path in sorted((storage / SHARDS).glob("*")):
            if (path / MANIFEST).exists() and path.name not in used:
                found.append(_entry(path, "a converted set that no run here uses"))
    return [entry for entry in found if entry.size]


def remove(path: Path) -> None:
    """Deletes a file or folder. Of a folder in a store the files go first that say that others are whole.

    Raises:
        OSError: something could not be deleted.
    """
    if isinstance(path, UrlPath):
        keys = [entry.key for entry in path.entries()] or [path.key]
        for key in sorted(keys, key=lambda key: not key.endswith((CHECKSUMS, MANIFEST))):
            path.storage.delete(key)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def running(folder: Path) -> bool:
    """Returns whether a command holds the run or search of this folder."""
    lock = folder.with_name(f".{folder.name}.lock")
    if isinstance(folder, UrlPath):
        return holder_of(folder.storage, folder.with_name(lock.name).key) is not None
    if not lock.exists():
        return False

    class _Held(Exception):
        pass

    def busy(holder: str) -> None:
        raise _Held

    try:
        with ExitStack() as stack:
            stack.enter_context(holding(lock, busy))
    except (_Held, OSError):
        return True
    return False


def _folders(storage: Path) -> list[Path]:
    if not storage.is_dir():
        raise UsageError(f"{storage} is no folder; expected the --storage_path of runs")
    signs = (CONFIG, TRIALS, SEARCH)
    return sorted(path for path in storage.iterdir() if any((path / name).exists() for name in signs))


def _members(folder: Path) -> Iterator[Path]:
    """Yields the runs below a run or a search: trials, and members of an ensemble."""
    yield from sorted(path.parent for path in folder.rglob(CONFIG) if path.parent != folder)


def _is_aside(folder: Path) -> bool:
    match = re.fullmatch(r"(.+)\.\d+", folder.name)
    return match is not None and (folder.with_name(match[1]) / CONFIG).exists()


def _sets(folder: Path) -> Iterator[str]:
    for run in (folder, *_members(folder)):
        with suppress(CggmError, OSError, ValueError):
            for line in read_provenance(run):
                yield str((line.get("data") or {}).get("set"))


def _listed(folder: Path) -> ListedRun:
    sections: dict[str, object] = {}
    with suppress(CggmError, OSError):
        sections = read_yaml(folder / CONFIG, "run")
    valid: Mapping[str, float] = {}
    test: Mapping[str, float] = {}
    with suppress(OSError, ValueError, KeyError):
        result = read_summary(folder)
        valid, test = result.valid, result.test
    metric = next((name for name in valid if name != "loss"), "")
    return ListedRun(
        folder=folder,
        dataset=_value(sections, "data", "dataset"),
        strategy=_value(sections, "modulation", "modulation"),
        state=_state(folder),
        metric=metric,
        valid=valid.get(metric),
        test=test.get(metric),
        size=size_of(folder),
    )


def _state(folder: Path) -> str:
    if isinstance(folder, UrlPath):
        holder = holder_of(folder.storage, folder.with_name(f".{folder.name}.lock").key)
        if holder is not None:
            return f"held by {holder}"
    elif running(folder):
        return "running"
    trials = folder / TRIALS
    if trials.is_dir() and not (folder / METRICS).exists():
        number = sum(1 for path in trials.iterdir() if path.is_dir())
        return f"search of {number} trials{'' if (folder / SUMMARY).exists() else ', not finished'}"
    if (folder / SEARCH).is_dir() and not (folder / CONFIG).exists():
        return "search before a run, not finished"
    if (folder / SUMMARY).exists():
        return "finished" if not (folder / SEARCH).exists() else "finished, after a search"
    done = len(read_metrics(folder)) if (folder / METRICS).exists() else 0
    planned = recorded_epochs(folder)
    return f"stopped after epoch {done}{'' if planned is None else f' of {planned}'}"


def _value(sections: dict[str, object], section: str, field: str) -> str:
    part = sections.get(section)
    return str(part.get(field, "")) if isinstance(part, dict) else ""


def _entry(path: Path, reason: str) -> Deletable:
    return Deletable(path=path, reason=reason, size=size_of(path))


def size_of(path: Path) -> int:
    """Returns the bytes of a file, or of all files below a folder; a file with several names counts once."""
    if isinstance(path, UrlPath):
        return sum(entry.size for entry in path.entries())
    files: Sequence[Path] = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    seen = {}
    for each in files:
        with suppress(OSError):
            status = each.stat()
            seen[status.st_dev, status.st_ino] = status.st_size
    return sum(seen.values())
