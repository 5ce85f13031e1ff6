"""MLflow and W&B as trackers.

Each is an extra. No data leaves the machine unless the service's own environment variables name a server. An error of a
service is reported once and never stops a run, because the metrics are in `metrics.jsonl` anyway.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from cggm_ray.core.errors import one_line
from cggm_ray.core.optional import require

T = TypeVar("T")
PROJECT = "cggm-ray"
FOLDER_TAG = "cggm_folder"
LONGEST = 500
"""Largest number of characters of a parameter in MLflow."""


class MLflow:
    """Logs to a run of the experiment 'cggm-ray' in `mlflow/` in the folder of the run, or at MLFLOW_TRACKING_URI.

    Args:
        folder: of the run. A run that goes on is the same run there.
        parameters: of the run by name, plain values.
        finished: epochs that the run continues from.
    """

    def __init__(self, folder: Path, parameters: Mapping[str, object], finished: int) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        address = os.environ.get("MLFLOW_TRACKING_URI")
        if address is None:
            # A folder needs no database, but MLflow accepts it only if this variable is set.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            address = (folder / "mlflow").absolute().as_uri()
        entities = require("mlflow.entities", extra="mlflow", purpose="trackers")
        tracking = require("mlflow.tracking", extra="mlflow", purpose="trackers")

        self._metric, self._client = entities.Metric, tracking.MlflowClient(tracking_uri=address)
        experiment = self._client.get_experiment_by_name(PROJECT)
        number = self._client.create_experiment(PROJECT) if experiment is None else experiment.experiment_id
        tag = _identity(folder)
        there = self._client.search_runs([number], filter_string=f"tags.{FOLDER_TAG} = '{tag}'") if finished else []
        if there:
            self._run = there[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
        else:
            self._run = self._client.create_run(number, run_name=folder.name, tags={FOLDER_TAG: tag}).info.run_id
            logged = [entities.Param(key, str(value)[:LONGEST]) for key, value in parameters.items()]
            self._client.log_batch(self._run, params=logged)

    def log(self, record: Mapping[str, float]) -> None:
        """Sends the metrics of an epoch."""
        epoch = int(record["epoch"])
        metrics = [
            self._metric(name, value, 0, epoch)
            for name, value in record.items()
            if name != "epoch" and math.isfinite(value)
        ]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self) -> None:
        """Closes the run of the service."""
        self._client.set_terminated(self._run)


class WandB:
    """Logs to a run of the project 'cggm-ray', stored in `wandb/` in the folder of the run.

    The data stays there unless WANDB_API_KEY or WANDB_MODE is set; `wandb sync` uploads it later.

    Args:
        folder: of the run. A run that goes on is the same run there.
        parameters: of the run by name, plain values.
        finished: epochs that the run continues from.
    """

    def __init__(self, folder: Path, parameters: Mapping[str, object], finished: int) -> None:
        wandb = require("wandb", extra="wandb", purpose="trackers")

        wanted = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        settings = wandb.Settings(
            mode=wanted,
            silent=True,
            console="off",
            disable_git=True,
            save_code=False,
            x_disable_stats=True,
            x_disable_meta=True,
        )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            id=_identity(folder),
            resume="allow" if wanted == "online" else None,
            dir=str(folder),
            config=dict(parameters),
            settings=settings,
        )

    def log(self, record: Mapping[str, float]) -> None:
        """Sends the metrics of an epoch."""
        values = {name: value for name, value in record.items() if math.isfinite(value)}
        self._run.log(values, step=int(record["epoch"]))

    def close(self) -> None:
        """Closes the run of the service."""
        self._run.finish()


class TolerantTracker:
    """Passes metrics to a service until it fails; the first error is printed, and later metrics are not sent.

    Args:
        name: of the service.
        make: opens it.
        say: prints a line.
    """

    def __init__(self, name: str, make: Callable[[], MLflow | WandB], say: Callable[[str], None]) -> None:
        self._name, self._say = name, say
        self._service: MLflow | WandB | None = None
        self._service = self._try(make)

    def log(self, record: Mapping[str, float]) -> None:
        """Sends the metrics of an epoch."""
        service = self._service
        if service is not None:
            self._try(lambda: service.log(record))

    def close(self) -> None:
        """Closes the run of the service."""
        service = self._service
        if service is not None:
            self._try(service.close)

    def _try(self, act: Callable[[], T]) -> T | None:
        try:
            return act()
        except Exception as error:
            self._service = None
            text = one_line(f"{type(error).__name__}: {error}")
            self._say(f"{self._name} failed, and the run goes on without it: {text}")
            return None


def _identity(folder: Path) -> str:
    """Returns a name that is the same for every start of a run and differs between folders.

    It holds no quotes, because they end a text in a search of the service.
    """
    name = re.sub(r"[^\w.-]", "_", folder.name[:40])
    return f"{name}-{hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:12]}"
