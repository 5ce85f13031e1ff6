"""Checks that the nodes of a cluster have the same code, and share the folders to which a run writes."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cggm_ray.core.errors import UsageError, listed
from cggm_ray.core.package import different, package_digest
from cggm_ray.storage.places import is_local
from cggm_ray.storage.work import url_of

PATIENCE = 5.0
"""Seconds within which a node must see a new file, because network file systems cache directories."""
TIMEOUT = 120.0
MOST_NAMED = 3


def check_nodes(folders: Mapping[str, Path]) -> None:
    """Checks that every living node has this package's code, and can write to the same folders.

    A cluster of one node needs no check. This program writes a file with a random name into each folder, and a task on every
    node searches for it.

    Args:
        folders: by the name of the configuration's field. A folder inside an earlier one is not checked, nor one that
            is a URL or mirrors one.

    Raises:
        UsageError: a node has other code; a folder is another one there, or cannot be written. The check leaves no file behind.
    """
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(nodes) < 2:
        return
    for address, found in _on_every_node(_code, nodes):
        if found != package_digest():
            raise UsageError(different(address, found, package_digest()))
    seen: list[Path] = []
    for field, folder in folders.items():
        if not is_local(folder) or url_of(folder) is not None or any(folder.is_relative_to(other) for other in seen):
            continue
        seen.append(folder)
        _check(field, folder, nodes)


def _check(field: str, folder: Path, nodes: Mapping[str, str]) -> None:
    """Checks a folder of `check_nodes` on the given nodes, which are addresses by id."""
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    probe = folder / f".shared-{secrets.token_hex(8)}"
    shared = False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        strange = _nodes_without(probe, nodes)
        shared = not strange
    except OSError as error:
        raise UsageError(f"{field}: {folder} cannot be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
        # A folder that another run has begun to use is not empty, and stays.
        for parent in [] if shared else made:
            with suppress(OSError):
                parent.rmdir()
    if strange:
        raise UsageError(
            f"{field}: {folder} is not the same folder on node {listed(strange, MOST_NAMED)} as here; found a cluster of "
            f"{len(nodes)} nodes; expected storage that every node mounts for writing, such as NFS"
        )


def _nodes_without(probe: Path, nodes: Mapping[str, str]) -> list[str]:
    """Returns the addresses of the nodes that do not see the file."""
    seen = _on_every_node(_sees, nodes, str(probe), PATIENCE)
    return sorted(address for address, sees in seen if not sees)


def _on_every_node(task: Any, nodes: Mapping[str, str], *arguments: object) -> list[tuple[str, Any]]:
    """Returns address and what a task gives, for each node that answers. Several nodes of a machine may share an address.

    Raises:
        UsageError: a node cannot run this package.
    """
    tasks = {}
    for node, address in nodes.items():
        place = NodeAffinitySchedulingStrategy(node, soft=False)
        tasks[task.options(scheduling_strategy=place).remote(*arguments)] = address
    ray.wait(list(tasks), num_returns=len(tasks), timeout=TIMEOUT)
    found = []
    for reference, address in tasks.items():
        try:
            found.append((address, ray.get(reference, timeout=0)))
        except RayTaskError as error:
            text = str(error).strip().splitlines()[-1]
            raise UsageError(
                f"node {address} cannot run cggm_ray: {text}; install the package on every node, or submit a job with "
                "the package in its working directory"
            ) from None
        except (RayError, TimeoutError):
            # The node has left or is too busy to answer; this check does not decide about such a node.
            ray.cancel(reference, force=True)
    return found


@ray.remote(num_cpus=0, max_retries=0)
def _code() -> str:
    """Returns the digest of this package on a node."""
    return package_digest()


@ray.remote(num_cpus=0, max_retries=0)
def _sees(probe: str, patience: float) -> bool:
    """Returns whether the file exists and the folder can be written. It runs on a node."""
    path, end = Path(probe), time.monotonic() + patience
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        beside.touch()
        beside.unlink()
    except OSError:
        return False
    return True
