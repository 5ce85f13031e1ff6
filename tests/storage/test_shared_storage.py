"""Nodes that do not share the folder of all runs are found before any work starts."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from raylets import Raylets, raylets

from conftest import SMALL

pytestmark = pytest.mark.ray
OWN_FOLDER = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"')
"""A command whose processes have an empty folder of their own where the others see a shared one: `"$0"` is the folder."""


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def cluster(storage: Path) -> Iterator[Raylets]:
    """Two nodes, of which the second one has an empty folder `apart` in the storage."""
    apart = storage / "apart"
    apart.mkdir()
    tried = subprocess.run([*OWN_FOLDER, str(apart), "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no mount namespaces here: {tried.stderr.strip()}")
    with raylets(cpus=1) as nodes:
        nodes.add_node(1, inside=(*OWN_FOLDER, str(apart)))
        nodes.wait_for_nodes(2)
        yield nodes


def test_a_folder_of_one_node_is_refused(cluster: Raylets, storage: Path, small_pickle: Path) -> None:
    mine = storage / "apart" / "team" / "runs"
    flags = [*SMALL, "--data_path", str(small_pickle), "--storage_path", str(mine), "--workers", "2"]
    done = cluster.run("python", "pipelines/mosi.py", *flags)
    assert done.returncode == 2, done.stdout + done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"error: storage_path: {mine} is not the same folder on node ")
    assert line.endswith("expected storage that every node mounts for writing, such as NFS")
    assert list((storage / "apart").iterdir()) == []


@pytest.mark.slow
def test_a_shared_one_trains(cluster: Raylets, storage: Path, small_pickle: Path) -> None:
    flags = [*SMALL, "--data_path", str(small_pickle), "--storage_path", str(storage / "runs"), "--name", "run"]
    done = cluster.run("python", "pipelines/mosi.py", *flags, "--workers", "2", "--num_epochs", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (storage / "runs" / "run" / "summary.json").exists()
    assert not [each for each in (storage / "runs").rglob("*") if each.name.startswith(".shared")]


@pytest.mark.slow
def test_shards_of_their_own_are_looked_at_as_well(cluster: Raylets, storage: Path, small_pickle: Path) -> None:
    flags = [*SMALL, "--data_path", str(small_pickle), "--storage_path", str(storage / "runs")]
    done = cluster.run("python", "pipelines/mosi.py", *flags, "--shard_path", str(storage / "apart" / "shards"))
    assert done.returncode == 2
    assert "error: shard_path: " in done.stderr
    assert list((storage / "apart").iterdir()) == []
