"""Joining or starting a cluster, and what fits on it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import ray

from cggm_ray.config import RunConfig
from cggm_ray.errors import CggmError, UsageError

MOST_CPUS = 4


def connect() -> None:
    """Joins the cluster of the job or of RAY_ADDRESS, or starts one on this machine."""
    if not ray.is_initialized():
        # The dashboard stays on: Ray Train's own housekeeping asks it which runs are alive.
        ray.init(logging_level=logging.WARNING, log_to_driver=False)


def node_cpus() -> list[int]:
    """CPUs of every living node."""
    return [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]


def cpus_per_worker(config: RunConfig) -> int:
    """CPUs of a training worker: as configured, else the most, up to 4, with which all workers fit.

    Raises:
        UsageError: the cluster cannot hold the workers.
    """
    nodes = node_cpus()
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if config.use_gpu and gpus < config.workers:
        raise UsageError(f"workers: {config.workers} workers with a GPU each; the cluster has {gpus} GPUs")
    wanted = [config.cpus_per_worker] if config.cpus_per_worker else range(MOST_CPUS, 0, -1)
    for cpus in wanted:
        if sum(node // cpus for node in nodes) >= config.workers:
            return cpus
    each = config.cpus_per_worker or 1
    raise UsageError(
        f"workers: {config.workers} workers with {each} CPU each do not fit; the cluster has nodes with {nodes} CPUs"
    )


def own_error(error: BaseException) -> CggmError | None:
    """The error of this package that lies under the layers in which Ray wraps it."""
    seen: set[int] = set()
    for inner in _causes(error, seen):
        if isinstance(inner, CggmError):
            return inner
    return None


def _causes(error: BaseException, seen: set[int]) -> Iterator[BaseException]:
    if id(error) in seen:
        return
    seen.add(id(error))
    yield error
    failures = getattr(error, "worker_failures", None)
    nested = [getattr(error, "cause", None), error.__cause__, error.__context__]
    nested += list(failures.values()) if isinstance(failures, dict) else []
    for inner in nested:
        if isinstance(inner, BaseException):
            yield from _causes(inner, seen)
