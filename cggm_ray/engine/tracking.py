"""Trackers of a run's metrics: JSON lines and lines of progress always, TensorBoard, MLflow and W&B on request.

Lines of progress are printed and kept in `train.log`. Under Ray the driver prints them, by following that file.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Protocol

from cggm_ray.core.console import form, show
from cggm_ray.core.errors import UsageError
from cggm_ray.core.live import FILE, from_file
from cggm_ray.core.mirrored import in_urls
from cggm_ray.core.optional import check_installed, is_installed
from cggm_ray.core.registry import nearest
from cggm_ray.core.threads import beside
from cggm_ray.storage.files import write_text
from cggm_ray.storage.mirror import mirror_of

METRICS = "metrics.jsonl"
LOG = "train.log"
LOOK = 2.0
"""Seconds between two looks at a log that is kept at a URL."""
TRACKERS: Mapping[str, str | None] = {"jsonl": None, "tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}
"""Names that `--trackers` takes, and the module that each of them needs. The metrics file is always written."""


class Tracker(Protocol):
    """Receives the metrics of every epoch, on rank 0."""

    def log(self, record: Mapping[str, float]) -> None:
        """Receives the metrics of an epoch; 'epoch' counts from 1."""
        ...

    def close(self) -> None:
        """Flushes and closes."""
        ...


class JsonLines:
    """Writes `metrics.jsonl`, one object per epoch, with null in place of NaN and infinities.

    Args:
        folder: of the run.
        finished: epochs that the run continues from; later lines, of work that was lost, are dropped.
    """

    def __init__(self, folder: Path, finished: int) -> None:
        self._path = folder / METRICS
        kept = [line for line in _lines(self._path) if (line["epoch"] or 0) <= finished]
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))

    def log(self, record: Mapping[str, float]) -> None:
        """Appends the metrics of an epoch as a line."""
        plain = {name: value if math.isfinite(value) else None for name, value in record.items()}
        with self._path.open("a") as file:
            file.write(json.dumps(plain) + "\n")

    def close(self) -> None:
        """Closes the file."""


class TensorBoard:
    """Writes event files in `tensorboard/`."""

    def __init__(self, folder: Path, finished: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=finished + 1)  # type: ignore[no-untyped-call]

    def log(self, record: Mapping[str, float]) -> None:
        """Writes every finite metric as a scalar of the epoch."""
        for name, value in record.items():
            if name != "epoch" and math.isfinite(value):
                self._writer.add_scalar(name, value, int(record["epoch"]))  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._writer.close()  # type: ignore[no-untyped-call]


class Console:
    """Prints lines and keeps them in `train.log`.

    Attributes:
        step: optimizer steps of the run so far, where they are known; lines of `--log_format json` have it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOG
        self.step: int | None = None

    def say(self, line: str) -> None:
        """Prints and keeps one line."""
        show(self.keep(line))

    def keep(self, line: str) -> str:
        """Keeps one line that is printed elsewhere, and returns it in the form of this process."""
        line = form().line(in_urls(line), self.step)
        with self._path.open("a") as file:
            file.write(line + "\n")
        return line


@contextmanager
def following(folder: Path, heard: Callable[[], None] = lambda: None, period: float = 0.3) -> Iterator[None]:
    """Prints the lines that are added to `train.log` while the block runs, which a worker on another machine writes.

    Args:
        folder: of the run.
        heard: called after each line.
        period: seconds between two reads of the file.
    """
    path, mirror = folder / LOG, mirror_of(folder)
    position = path.stat().st_size if path.exists() else 0

    def follow(done: threading.Event) -> None:
        nonlocal position
        last, look = False, 0.0
        while not last:
            last = done.wait(period)
            if last or time.monotonic() > look:
                look = time.monotonic() + LOOK
                # Where the storage is away, whoever writes there says so.
                with suppress(OSError):
                    mirror.look(LOG, longer=True)
            from_file(folder)
            if path.exists():
                with path.open() as file:
                    file.seek(position)
                    while (line := file.readline()).endswith("\n"):
                        show(line[:-1])
                        heard()
                        position = file.tell()

    try:
        with beside(follow):
            yield
    finally:
        (folder / FILE).unlink(missing_ok=True)


class Progress:
    """Prints one line per epoch: loss, validation metric, coefficients and the time left.

    Args:
        console: prints the line.
        modalities: names, in order.
        metric: the validation metric that selects.
        finished: epochs that the run continues from.
        epochs: epochs in all.
    """

    def __init__(self, console: Console, modalities: Sequence[str], metric: str, finished: int, epochs: int) -> None:
        self._console = console
        self._modalities = modalities
        self._metric = metric
        self._finished = finished
        self._epochs = epochs
        self._start = time.monotonic()

    def log(self, record: Mapping[str, float]) -> None:
        """Prints the line of an epoch."""
        epoch = int(record["epoch"])
        parts = [
            f"epoch {epoch:{len(str(self._epochs))}d}/{self._epochs}",
            f"loss {record['train/loss']:.4f}",
            f"valid {self._metric} {record[f'valid/{self._metric}']:.4f}",
            f"(best {record['best_value']:.4f} at {record['best_epoch']:.0f})",
        ]
        coefficients = [(name, record.get(f"coefficient/{name}")) for name in self._modalities]
        if any(value is not None for _, value in coefficients):
            parts.append("B " + " ".join(f"{name} {value:.3g}" for name, value in coefficients))
        seconds = (time.monotonic() - self._start) / max(1, epoch - self._finished) * (self._epochs - epoch)
        parts.append(f"{record['samples_per_second']:.0f} samples/s")
        parts.append(f"{int(seconds) // 60}:{int(seconds) % 60:02d} left")
        self._console.say("  ".join(parts))

    def close(self) -> None:
        """Does nothing, because the console belongs to the caller."""


def check_trackers(names: Sequence[str] | None) -> None:
    """Checks that the names of `--trackers` exist and that their packages are installed.

    Raises:
        UsageError: a name is unknown, or its package is missing; the message says how to install it.
    """
    for name in names or ():
        if name not in TRACKERS:
            raise UsageError(f"trackers: unknown {name!r}{nearest(name, TRACKERS)}; available: {', '.join(TRACKERS)}")
        module = TRACKERS[name]
        if module is not None:
            check_installed(module, extra=name, purpose="trackers")


def default_trackers(
    wanted: Sequence[str] | None,
    folder: Path,
    console: Console,
    modalities: Sequence[str],
    metric: str,
    *,
    finished: int,
    epochs: int,
    parameters: Mapping[str, object],
) -> list[Tracker]:
    """Builds the trackers of a run: the metrics file, the lines of progress, and the services of `--trackers`.

    By default TensorBoard is the only service, if it is installed.

    Args:
        wanted: names of services, or None for the default.
        folder: of the run.
        console: for lines of progress, and for what goes wrong with a service.
        modalities: names, in order.
        metric: the validation metric that selects.
        finished: epochs that the run continues from.
        epochs: that the run has in all.
        parameters: of the run by name, plain values, for the services.
    """
    progress = Progress(console, modalities, metric, finished, epochs)
    trackers: list[Tracker] = [JsonLines(folder, finished), progress]
    for name in ("tensorboard",) if wanted is None else wanted:
        if name == "tensorboard" and is_installed(name):
            trackers.append(TensorBoard(folder, finished))
        elif name in ("mlflow", "wandb"):
            # Imported where they are wanted: both take a second and more.
            from cggm_ray.engine.services import MLflow, TolerantTracker, WandB

            service = MLflow if name == "mlflow" else WandB
            trackers.append(TolerantTracker(name, partial(service, folder, parameters, finished), console.say))
    return trackers


def read_metrics(folder: Path) -> list[dict[str, float | None]]:
    """Returns the lines of a run's `metrics.jsonl`."""
    return _lines(folder / METRICS)


def _lines(path: Path) -> list[dict[str, float | None]]:
    """Returns the complete lines of a JSON-lines file, without a last line that a crash cut short."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
