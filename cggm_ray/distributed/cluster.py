"""Joining or starting a cluster, and what fits on it."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import ray
from ray._private import services
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._private.state import state
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get as internal_kv_get

from cggm_ray.core.errors import CggmError, UsageError
from cggm_ray.engine.runtime import RunConfig

MOST_CPUS = 4
ANSWER = 5.0
"""Seconds in which a cluster must take a connection."""


def running_cluster() -> str | None:
    """Address of the cluster to join: that of the job, of RAY_ADDRESS, or one that runs on this machine; None where none is.

    Raises:
        UsageError: RAY_ADDRESS names a cluster that does not answer.
    """
    address = services.canonicalize_bootstrap_address(None)  # type: ignore[arg-type]
    if address is None or "://" in address:
        return address
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER).close()
    except (OSError, ValueError):
        if "RAY_ADDRESS" in os.environ:
            raise UsageError(
                f"RAY_ADDRESS: no cluster answers at {address}; RAY_ADDRESS=local starts one here"
            ) from None
        # Ray remembers in a file where a cluster was, also when it was killed, and would wait there for minutes.
        return None
    return address


def joins() -> bool:
    """Whether `connect` joins a cluster that is there already."""
    return ray.is_initialized() or running_cluster() is not None


def connect() -> None:
    """Joins the running cluster, or starts one on this machine.

    Raises:
        UsageError: the cluster does not answer, or refuses the token.
    """
    if ray.is_initialized():
        return
    try:
        # The dashboard stays on: Ray Train's own housekeeping asks it which runs are alive.
        ray.init(address=running_cluster() or "local", logging_level=logging.WARNING, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"Ray: {text}; check RAY_ADDRESS and the token (RAY_AUTH_TOKEN, ~/.ray/auth_token), or set RAY_ADDRESS=local to "
            "start a cluster on this machine"
        ) from error


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """Nodes of one kind.

    Attributes:
        cpus: of each.
        gpus: of each.
        count: how many.
    """

    cpus: int
    gpus: int
    count: int = 1

    def workers(self, cpus: int, gpus: float) -> int:
        """How many workers of so many CPUs and GPUs each have room."""
        return self.count * min(self.cpus // cpus, int(self.gpus / gpus) if gpus else sys.maxsize)


def nodes_now() -> list[Nodes]:
    """The living nodes."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Nodes(cpus=int(each.get("CPU", 0)), gpus=int(each.get("GPU", 0))) for each in alive]


def nodes_later() -> list[Nodes]:
    """The nodes that the cluster has when it has grown as far as it may; empty where it does not say so.

    Ray Train and Ray Data ask the same table, in which only some autoscalers write.
    """
    config = state.get_cluster_config()
    return [
        Nodes(
            cpus=int(group.resources.get("CPU", 0)),
            gpus=int(group.resources.get("GPU", 0)),
            count=group.max_count if group.max_count >= 0 else sys.maxsize,
        )
        for group in (config.node_group_configs if config is not None else ())
    ]


def autoscaled() -> bool:
    """Whether an autoscaler adds nodes to this cluster. Without one, Ray's monitor invents a kind for every node."""
    if is_autoscaler_v2():
        return any("ray.io/node-group" in node["Labels"] for node in ray.nodes())
    status = internal_kv_get(DEBUG_AUTOSCALING_STATUS.encode())
    report = json.loads(status).get("autoscaler_report", {}) if status else {}
    return any(kind != f"node_{node}" for node, kind in (report.get("node_type_mapping") or {}).items())


def cpus_per_worker(config: RunConfig) -> int:
    """CPUs of a training worker: as configured, else the most, up to 4, with which all workers fit.

    A group of 2 to 8 starts with 2; where 8 never fit, the CPUs are those with which 2 do. A cluster that grows counts with
    the nodes that it can have. Where its autoscaler does not say which these are, as those of `ray up` and KubeRay do not,
    the run waits for them.

    Raises:
        UsageError: the cluster cannot hold the workers, now or when it has grown.
    """
    now, later = nodes_now(), nodes_later()
    gpus = int(config.use_gpu)
    wanted = [config.cpus_per_worker] if config.cpus_per_worker else list(range(MOST_CPUS, 0, -1))
    for workers in (config.max_workers, config.min_workers):
        for cpus in wanted:
            if any(sum(kind.workers(cpus, gpus) for kind in nodes) >= workers for nodes in (now, later)):
                return cpus
    if not later and autoscaled():
        print(f"waiting for nodes: {_excess(config, wanted[-1], now, later)}; `ray status` tells what was asked for")
        return wanted[-1]
    raise UsageError(f"workers: {_excess(config, wanted[-1], now, later)}")


def _excess(config: RunConfig, cpus: int, now: list[Nodes], later: list[Nodes]) -> str:
    """Says what does not fit where."""
    workers = config.min_workers
    has = "when it has grown, the cluster has" if later else "the cluster has"
    nodes = later or now
    gpus = sum(kind.count * kind.gpus for kind in nodes)
    if config.use_gpu and gpus < workers:
        return f"{workers} workers with a GPU each; {has} {gpus} GPUs"
    sizes = [kind.cpus for kind in nodes for _ in range(kind.count)]
    return f"{workers} workers with {cpus} CPU each do not fit; {has} nodes with {sizes} CPUs"


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
    nested = [getattr(error, name, None) for name in ("cause", "controller_failure")]
    nested += [error.__cause__, error.__context__]
    nested += list(failures.values()) if isinstance(failures, dict) else []
    for inner in nested:
        if isinstance(inner, BaseException):
            yield from _causes(inner, seen)
