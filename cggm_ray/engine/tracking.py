"""Where the metrics of a run go: JSON lines always, the lines of progress, and TensorBoard, MLflow and W&B if asked for.

Lines of progress are printed and kept in `train.log`; under Ray they are printed by the driver, which follows that file.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

from cggm_ray.core.errors import UsageError
from cggm_ray.core.optional import check_installed, is_installed
from cggm_ray.core.registry import nearest
from cggm_ray.storage.files import write_text

METRICS = "metrics.jsonl"
LOG = "train.log"
TRACKERS: Mapping[str, str | None] = {"jsonl": None, "tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}
"""What `--trackers` takes, and the module that each needs; the metrics file is there in any case."""


class Tracker(Protocol):
    """Receives the metrics of every epoch, on rank 0."""

    def log(self, record: Mapping[str, float]) -> None:
        """Takes the metrics of an epoch; 'epoch' counts from 1."""
        ...

    def close(self) -> None:
        """Flushes and closes."""
        ...


class JsonLines:
    """`metrics.jsonl`: one object an epoch. NaN and infinities are written as null.

    Args:
        folder: of the run.
        finished: epochs that the run continues from; later lines, of work that was lost, are dropped.
    """

    def __init__(self, folder: Path, finished: int) -> None:
        self._path = folder / METRICS
        kept = [line for line in _lines(self._path) if (line["epoch"] or 0) <= finished]
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))

    def log(self, record: Mapping[str, float]) -> None:
        """See `Tracker`."""
        plain = {name: value if math.isfinite(value) else None for name, value in record.items()}
        with self._path.open("a") as file:
            file.write(json.dumps(plain) + "\n")

    def close(self) -> None:
        """See `Tracker`."""


class TensorBoard:
    """Event files in `tensorboard/`."""

    def __init__(self, folder: Path, finished: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=finished + 1)  # type: ignore[no-untyped-call]

    def log(self, record: Mapping[str, float]) -> None:
        """See `Tracker`."""
        for name, value in record.items():
            if name != "epoch" and math.isfinite(value):
                self._writer.add_scalar(name, value, int(record["epoch"]))  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """See `Tracker`."""
        self._writer.close()  # type: ignore[no-untyped-call]


class Console:
    """Prints lines and keeps them in `train.log`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOG

    def say(self, line: str) -> None:
        """Prints and keeps one line."""
        print(line, flush=True)
        with self._path.open("a") as file:
            file.write(line + "\n")


@contextmanager
def following(folder: Path, period: float = 0.3) -> Iterator[None]:
    """Prints what is added to `train.log` while the block runs: the lines of a worker on another machine.

    Args:
        folder: of the run.
        period: seconds between two looks.
    """
    path, done = folder / LOG, threading.Event()
    position = path.stat().st_size if path.exists() else 0

    def follow() -> None:
        nonlocal position
        last = False
        while not last:
            last = done.wait(period)
            if path.exists():
                with path.open() as file:
                    file.seek(position)
                    print(file.read(), end="", flush=True)
                    position = file.tell()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class Progress:
    """One line an epoch: loss, validation metric, coefficients and the time left.

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
        """See `Tracker`."""
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
        """See `Tracker`."""


def check_trackers(names: Sequence[str] | None) -> None:
    """Whether what `--trackers` names exists and is installed here.

    Raises:
        UsageError: it is not; the message says what to install.
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
    """The metrics file, the lines of progress, and what `--trackers` names; by default TensorBoard if it is installed.

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
            from cggm_ray.engine.services import Careful, MLflow, WandB

            service = MLflow if name == "mlflow" else WandB
            trackers.append(Careful(name, partial(service, folder, parameters, finished), console.say))
    return trackers


def read_metrics(folder: Path) -> list[dict[str, float | None]]:
    """The lines of a run's `metrics.jsonl`."""
    return _lines(folder / METRICS)


def _lines(path: Path) -> list[dict[str, float | None]]:
    """Whole lines of a JSON-lines file; a last line that a crash cut short is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
