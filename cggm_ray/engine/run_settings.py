"""The section of the configuration for where a run happens and where its files are stored."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cggm_ray.config.fields import at_least, check, one_of, option
from cggm_ray.config.parsing import check_path, whole
from cggm_ray.core.console import FORMATS, TEXT
from cggm_ray.core.errors import UsageError
from cggm_ray.storage.base import is_url
from cggm_ray.storage.work import check_folder_url, work_folder

WORKERS = re.compile(r"([1-9]\d*)(?::([1-9]\d*))?")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of where a run happens and where its files are stored."""

    local: bool = option(False, "train in this process, without Ray; implied under torchrun", resume=True)
    workers: str = option(
        "1", "number of training workers; 2:8 for as many as the cluster has room for, between 2 and 8", resume=True
    )
    resize_interval: int = option(
        60,
        "seconds between two checks whether a group like 2:8 can grow; growing repeats the running epoch",
        resume=True,
    )
    max_failures: int = option(
        3, "times that a run on Ray continues from its last checkpoint after a worker or a node was lost", resume=True
    )
    collective_timeout: int = option(
        1800,
        "seconds that workers wait for one another before a run stops and names those that are missing",
        resume=True,
    )
    allow_config_change: bool = option(
        False, "continue a run of the same name although its configuration was another", resume=True
    )
    fresh: bool = option(
        False, "start over: a run of the same name is kept, moved aside to NAME.1, NAME.2, ...", resume=True
    )
    use_gpu: bool = option(False, "one GPU per worker", resume=True)
    no_cuda: bool = option(False, "stay on the CPU even where there is a GPU", resume=True)
    cpus_per_worker: int | None = option(
        None,
        "CPUs and torch threads of a worker; default under Ray as many as fit, at most 4, else torch's own",
        resume=True,
    )
    keep_checkpoints: int = option(
        2,
        "number of newest checkpoints to keep, beside those of the best epochs; of 2 the older one serves if the newest is "
        "damaged",
        resume=True,
    )
    quiet: bool = option(False, "print only the result and errors; train.log has the lines of progress", resume=True)
    log_format: str = option(
        TEXT,
        "format of the lines that are printed and kept in train.log: text, or json (objects with time, run, rank, step)",
        resume=True,
    )
    report: bool = option(
        True, "at the end, score every subset of modalities and draw the page report/report.html", resume=True
    )
    contributions_seconds: int = option(
        300,
        "seconds for scoring subsets of modalities at the end; those that take longer are left out; 0 for none",
        resume=True,
    )
    headroom: bool | None = option(
        None,
        "also train each modality alone and simple models of scikit-learn, and print what balancing can gain; default only "
        "after a comparison",
        resume=True,
    )
    headroom_seconds: int = option(3600, "seconds after which no further part of the head-room is started", resume=True)
    trackers: tuple[str, ...] | None = option(
        None,
        "services beside metrics.jsonl: tensorboard, mlflow, wandb; default tensorboard where it is installed",
        resume=True,
    )
    storage_path: str = option(
        "~/cggm_runs",
        "folder of all runs; on several nodes one that all of them mount, or a URL such as s3://bucket/runs",
        resume=True,
        path=True,
        url=True,
    )
    name: str | None = option(
        None, "name of the run's folder; the same name continues the run; default from the time", resume=True
    )

    def __post_init__(self) -> None:
        check(
            WORKERS.fullmatch(self.workers) is not None and self.min_workers <= self.max_workers,
            self,
            "workers",
            "a whole number of at least 1, or the smallest and the largest such as 2:8",
        )
        one_of(self, "log_format", FORMATS)
        at_least(self, "resize_interval", 1)
        at_least(self, "max_failures", 0)
        at_least(self, "keep_checkpoints", 1)
        at_least(self, "contributions_seconds", 0)
        at_least(self, "headroom_seconds", 1)
        at_least(self, "collective_timeout", 1)
        if self.fresh and self.allow_config_change:
            raise UsageError("fresh: given together with allow_config_change; expected one of them")
        if self.cpus_per_worker is not None:
            at_least(self, "cpus_per_worker", 1)
        if self.local and self.max_workers > 1:
            raise UsageError(
                f"workers: found {self.workers} with --local, which is one process; leave out --local, or start the "
                "processes with torchrun"
            )
        if is_url(self.storage_path):
            check_folder_url("storage_path", self.storage_path)
        else:
            check_path("storage_path", self.storage_path)
        if self.use_gpu and self.no_cuda:
            raise UsageError("use_gpu: given together with no_cuda; expected one of them")
        if self.name is not None and (not self.name or self.name != Path(self.name).name or self.name.startswith(".")):
            raise UsageError(f"name: found {self.name!r}; expected a plain folder name")

    @property
    def min_workers(self) -> int:
        """The smallest group that trains; a fixed group has its one size."""
        return int(self.workers.partition(":")[0])

    @property
    def max_workers(self) -> int:
        """The largest group."""
        return int(self.workers.rpartition(":")[2])

    @property
    def storage(self) -> Path:
        """`storage_path`, absolute; the folder of this node that mirrors it where it is a URL."""
        if is_url(self.storage_path):
            return work_folder(self.storage_path)
        return whole("storage_path", self.storage_path)
