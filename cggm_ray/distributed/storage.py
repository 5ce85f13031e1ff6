"""Checks that the nodes of a cluster share the folders to which a run writes."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cggm_ray.core.errors import UsageError, listed
from cggm_ray.storage.places import is_local
from cggm_ray.storage.work import url_of

PATIENCE = 5.0
"""Seconds within which a node must see a new file, because network file systems cache directories."""
TIMEOUT = 120.0
MOST_NAMED = 3


def check_shared(folders: Mapping[str, Path]) -> None:
    """Checks that every living node can write to the same folders. A cluster of one node needs no check.

    This program writes a file with a random name into each folder, and a task on every node searches for it.

    Args:
        folders: by the name of the configuration's field. A folder inside an earlier one is not checked, nor one that
            is a URL or mirrors one.

    Raises:
        UsageError: a folder is another one on some node, or cannot be written. The check leaves no file behind.
    """
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(nodes) < 2:
        return
    seen: list[Path] = []
    for field, folder in folders.items():
        if not is_local(folder) or url_of(folder) is not None or any(folder.is_relative_to(other) for other in seen):
            continue
        seen.append(folder)
        _check(field, folder, nodes)


def _check(field: str, folder: Path, nodes: Mapping[str, str]) -> None:
    """Checks the folders of `check_shared` on the given nodes, which are addresses by id."""
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
    """Returns the addresses of the nodes that do not see the file.

    Raises:
        UsageError: a node cannot run this package.
    """
    tasks = {}
    for node, address in nodes.items():
        place = NodeAffinitySchedulingStrategy(node, soft=False)
        tasks[_sees.options(scheduling_strategy=place).remote(str(probe), PATIENCE)] = address
    ray.wait(list(tasks), num_returns=len(tasks), timeout=TIMEOUT)
    without = []
    for task, address in tasks.items():
        try:
            if not ray.get(task, timeout=0):
                without.append(address)
        except RayTaskError as error:
            text = str(error).strip().splitlines()[-1]
            raise UsageError(
                f"node {address} cannot run cggm_ray: {text}; install the package on every node, or submit a job with "
                "the package in its working directory"
            ) from None
        except (RayError, TimeoutError):
            # The node has left or is too busy to answer; this check does not decide about such a node.
            ray.cancel(task, force=True)
    return sorted(without)


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
