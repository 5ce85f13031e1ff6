"""`cggm runs`: lists the runs of a folder, shows one, and deletes what no result needs."""

from __future__ import annotations

from pathlib import Path

from cggm_ray.core.errors import CggmError, StorageError, UsageError, reason
from cggm_ray.core.tables import listing, text_table
from cggm_ray.runs.ending import directions, table
from cggm_ray.runs.finished import read_config
from cggm_ray.runs.inventory import deletable, list_runs, remove
from cggm_ray.runs.provenance import read_provenance
from cggm_ray.runs.result import SUMMARY, read_summary


def print_runs(storage: Path) -> None:
    """Prints a line for every run and search in a folder.

    Raises:
        UsageError: there is no such folder.
    """
    rows = [
        [run.folder.name, run.state, run.dataset, run.strategy, run.metric, run.valid, run.test, readable(run.size)]
        for run in list_runs(storage)
    ]
    if not rows:
        print(f"{storage} has no runs")
        return
    print(text_table(rows, ["run", "state", "dataset", "strategy", "metric", "valid", "test", "size"]))


def print_run(folder: Path) -> None:
    """Prints what a run was started with where that differs from the defaults, and its result.

    Raises:
        UsageError: it is no folder of a run, or a file in it is damaged.
    """
    config = read_config(folder)
    defaults = type(config)(options=type(config.options)()).to_dict()
    changed = [
        [f"{section}.{name}", str(value)]
        for section, fields in config.to_dict().items()
        for name, value in fields.items()
        if value != defaults.get(section, {}).get(name, value)
    ]
    if changed:
        print(text_table(changed, ["setting", "value"]))
    for line in read_provenance(folder):
        print(listing({"started": f"{line.get('time')}  {' '.join(map(str, line.get('command') or ()))}"}))
    if (folder / SUMMARY).exists():
        try:
            result = read_summary(folder)
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"{folder / SUMMARY} is damaged; expected the result that a finished run wrote") from None
        print(table(result, directions(config, result), config))
    else:
        print("the run is not finished; its command, given again, goes on with it")


def clean(storage: Path, delete: bool) -> None:
    """Prints what can be deleted in a folder of runs and how much that frees, and deletes it on demand.

    Args:
        storage: folder or URL of the runs.
        delete: whether to delete; otherwise nothing changes.

    Raises:
        UsageError: there is no such folder.
        StorageError: something could not be deleted; the rest was.
    """
    found = deletable(storage)
    if not found:
        print(f"{storage} has nothing that no result needs")
        return
    print(
        text_table([[str(entry.path), readable(entry.size), entry.reason] for entry in found], ["path", "size", "what"])
    )
    total = readable(sum(entry.size for entry in found))
    if not delete:
        print(f"{total} in all; the same command with --delete deletes it")
        return
    failed: list[CggmError] = []
    for entry in found:
        try:
            remove(entry.path)
        except OSError as error:
            failed.append(StorageError(f"{entry.path} cannot be deleted: {reason(error)}"))
    if failed:
        raise failed[0]
    print(f"deleted {total}")


def readable(size: int) -> str:
    """Returns a number of bytes with its unit, such as '12.3 MiB'."""
    value, units = float(size), ("B", "KiB", "MiB", "GiB", "TiB")
    for unit in units:
        if value < 1024 or unit == units[-1]:
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
