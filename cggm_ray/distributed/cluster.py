"""Joins or starts a Ray cluster, and computes how many workers fit on it.

This module and `tune/placement_groups.py` alone import private modules of Ray. No public function answers three questions:
which cluster `ray.init` would join, before it is joined (`services`); which nodes a cluster may grow to, which Ray Train and
Ray Data read from the same table (`state`); and what the autoscaler of the first version reports (`internal_kv`). Which
versions of Ray are supported is in docs/versions.md, and tests/ray/test_connect.py fails where one of them has moved.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray import cloudpickle
from ray._private import services
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._private.state import state
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get as internal_kv_get

from cggm_ray.core import errors
from cggm_ray.core.errors import CggmError, UsageError
from cggm_ray.core.live import moved
from cggm_ray.distributed.session import session_folder, short_temporary_folder
from cggm_ray.engine.own_code import imported_modules
from cggm_ray.engine.runtime import RunConfig

MOST_CPUS = 4
OWN_ERROR = re.compile(rf"^{re.escape(errors.__name__)}\.(\w+): (.+)$", re.MULTILINE)
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
"""Colours of a terminal."""
TOKENS = "ray._private.authentication.authentication_token_setup"
"""Logger that warns at every start that a cluster has a token, which Ray makes by itself."""
ANSWER = 5.0
"""Seconds within which a cluster must accept a connection."""


def running_cluster() -> str | None:
    """Returns the address of the cluster to join, or None if there is none.

    It is the cluster of the job, that of RAY_ADDRESS, or one that runs on this machine.

    Raises:
        UsageError: RAY_ADDRESS is no address, or names a cluster that does not answer.
    """
    # Ray logs a traceback beside what it raises.
    log = logging.getLogger(services.__name__)
    before, log.disabled = log.disabled, True
    try:
        address = services.canonicalize_bootstrap_address(None)  # type: ignore[arg-type]
    except Exception as error:
        found = os.environ.get("RAY_ADDRESS")
        raise UsageError(
            f"RAY_ADDRESS: found {found!r}, which leads to no cluster: {error}; expected HOST:PORT of one that runs, or local "
            "to start one here"
        ) from None
    finally:
        log.disabled = before
    if address is None:
        return None
    try:
        host, port = address.rsplit(":", 1)
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
    """Returns whether `connect` joins an existing cluster."""
    return ray.is_initialized() or running_cluster() is not None


def connect() -> None:
    """Joins the running cluster, or starts one on this machine.

    Raises:
        UsageError: with what to do: the cluster does not answer, refuses the token or has other versions, or none can be
            started here.
    """
    for module in imported_modules():
        # No other process finds them by their names.
        cloudpickle.register_pickle_by_value(module)
    if ray.is_initialized():
        return
    address = running_cluster()
    session = session_folder() if address is None else None
    print(f"joining the Ray cluster at {address}" if address else "starting Ray on this machine", flush=True)
    moved("starting Ray", 0, 0)
    where: dict[str, Any] = {"address": "local", "_temp_dir": session} if address is None else {"address": address}
    try:
        with short_temporary_folder(session):
            # The dashboard stays on, because Ray Train's own housekeeping queries it for the living runs.
            logging.getLogger(TOKENS).setLevel(logging.ERROR)
            ray.init(**where, logging_level=logging.WARNING, log_to_driver=False)
    # Errors of the processes that Ray starts arrive here, as exceptions of many types.
    except Exception as error:
        with suppress(Exception):
            ray.shutdown()
        text = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"Ray: {text}; {_way_out(error, address)}") from error


def _way_out(error: Exception, address: str | None) -> str:
    """Returns advice about an error of `ray.init`."""
    text = str(error).lower()
    if "version mismatch" in text:
        return "run this program with the Python and the Ray of the cluster, or set RAY_ADDRESS=local to start one here"
    # Ray has this class from 2.52 on.
    if type(error).__name__ == "AuthenticationError" or "token" in text or "/.ray" in text:
        return (
            "check the token: RAY_AUTH_TOKEN, or the file ~/.ray/auth_token or RAY_AUTH_TOKEN_PATH, which must be the "
            "cluster's; `ray get-auth-token --generate` makes one"
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "free some space there, or set RAY_TMPDIR to a short folder on another local disk"
    if address is None:
        return (
            "a cluster could not be started on this machine; set RAY_TMPDIR to a short folder on a local disk that can be "
            "written, RAY_ADDRESS=HOST:PORT to join a cluster, or --local to train without Ray"
        )
    return f"the cluster at {address} cannot be used; check RAY_ADDRESS, or set RAY_ADDRESS=local to start one here"


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
        """Returns how many workers of so many CPUs and GPUs each fit on the nodes."""
        return self.count * min(self.cpus // cpus, int(self.gpus / gpus) if gpus else sys.maxsize)


def nodes_now() -> list[Nodes]:
    """Returns the living nodes."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Nodes(cpus=int(each.get("CPU", 0)), gpus=int(each.get("GPU", 0))) for each in alive]


def nodes_later() -> list[Nodes]:
    """Returns the nodes of the fully grown cluster, or an empty list if its autoscaler does not tell them.

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
    """Returns whether an autoscaler adds nodes to this cluster.

    Without an autoscaler, Ray's monitor reports a separate kind for every node.
    """
    if is_autoscaler_v2():
        return any("ray.io/node-group" in node["Labels"] for node in ray.nodes())
    status = internal_kv_get(DEBUG_AUTOSCALING_STATUS.encode())
    report = json.loads(status).get("autoscaler_report", {}) if status else {}
    return any(kind != f"node_{node}" for node, kind in (report.get("node_type_mapping") or {}).items())


def cpus_per_worker(config: RunConfig) -> int:
    """Returns the CPUs of a training worker: the configured number, or the largest number up to 4 with which all workers
    fit.

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
        print(
            f"waiting for nodes: {_excess(config, wanted[-1], now, later)}; `ray status` lists the requested resources"
        )
        return wanted[-1]
    raise UsageError(f"workers: {_excess(config, wanted[-1], now, later)}")


def _excess(config: RunConfig, cpus: int, now: list[Nodes], later: list[Nodes]) -> str:
    """Returns a text that says which workers do not fit on which nodes."""
    workers = config.min_workers
    has = "when it has grown, the cluster has" if later else "the cluster has"
    nodes = later or now
    gpus = sum(kind.count * kind.gpus for kind in nodes)
    if config.use_gpu and gpus < workers:
        return f"{workers} workers with a GPU each; {has} {gpus} GPUs"
    sizes = [kind.cpus for kind in nodes for _ in range(kind.count)]
    return f"{workers} workers with {cpus} CPU each do not fit; {has} nodes with {sizes} CPUs"


def own_error(error: BaseException) -> CggmError | None:
    """Returns the error of this package inside the layers in which Ray wraps it."""
    seen: set[int] = set()
    for inner in _causes(error, seen):
        if isinstance(inner, CggmError):
            return inner
    # An error of a process that did not come up is a text in Ray's error.
    found = OWN_ERROR.findall(str(error))
    kind = getattr(errors, found[-1][0], None) if found else None
    return kind(found[-1][1].strip()) if isinstance(kind, type) and issubclass(kind, CggmError) else None


def what_failed(error: BaseException) -> str:
    """Returns the text of an error that Ray reports, of a traceback the last line, which says what it was."""
    text = ESCAPES.sub("", str(error)).strip() or type(error).__name__
    return text.splitlines()[-1].strip() if '  File "' in text else text


def _causes(error: BaseException, seen: set[int]) -> Iterator[BaseException]:
    if id(error) in seen:
        return
    seen.add(id(error))
    yield error
    failures = getattr(error, "worker_failures", None)
    nested = [getattr(error, name, None) for name in ("cause", "controller_failure", "_base_exc")]
    nested += [error.__cause__, error.__context__]
    nested += list(failures.values()) if isinstance(failures, dict) else []
    for inner in nested:
        if isinstance(inner, BaseException):
            yield from _causes(inner, seen)
