"""Runs and searches at a URL on nodes that have no folder in common."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from raylets import Raylets, raylets
from waiting import wait_for

from cggm_ray.storage.base import open_storage
from cggm_ray.storage.work import WORK
from conftest import SMALL, small_set, write_pickle

pytestmark = [pytest.mark.ray, pytest.mark.slow]
OWN_FOLDER = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"')
"""A command whose processes have an empty folder of their own where the others see another one: `"$0"` is the folder."""
SEARCH = """
metric: mae
trials: 3
seed: 0
scheduler: {name: none}
space: {lr: {loguniform: [1.0e-3, 1.0e-2]}}
"""
TIMES = {"seconds", "samples_per_second", "peak_memory"}


@pytest.fixture
def cluster(tmp_path: Path, bucket: str) -> Iterator[Raylets]:
    """Two nodes of one CPU; the second one has a disk of its own for its runs."""
    work = tmp_path / "work"
    work.mkdir()
    tried = subprocess.run([*OWN_FOLDER, str(work), "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no mount namespaces here: {tried.stderr.strip()}")
    with raylets(cpus=1, **{WORK: str(work)}) as nodes:
        nodes.add_node(1, inside=(*OWN_FOLDER, str(work)))
        nodes.wait_for_nodes(2)
        yield nodes


def flags(tmp_path: Path, storage: str, name: str, *more: str) -> list[str]:
    pickle = write_pickle(tmp_path / "small.pkl", small_set())
    paths = ["--data_path", str(pickle), "--shard_path", str(tmp_path / "shards"), "--storage_path", storage]
    return [*SMALL, *paths, "--name", name, *more]


def lines(text: str) -> list[dict[str, float]]:
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in text.splitlines()]


def test_two_workers(cluster: Raylets, bucket: str, tmp_path: Path) -> None:
    """The driver is killed, and the next one goes on; the bits are those of a shared folder."""
    more = ("--workers", "2", "--num_epochs", "3", "--save_every", "1")
    at_url = flags(tmp_path, f"{bucket}/runs", "r", *more)
    done = cluster.run("python", "pipelines/mosi.py", *flags(tmp_path, str(tmp_path / "plain"), "r", *more))
    assert done.returncode == 0, done.stdout + done.stderr
    log, store = tmp_path / "driver.log", open_storage(f"{bucket}/runs/r")
    run = cluster.start("python", "pipelines/mosi.py", *at_url, log=log)
    try:
        wait_for(lambda: "checkpoints/epoch-00001/checksums.json" in store.list(), "no epoch ends", by=run)
        assert run.poll() is None, log.read_text()
    finally:
        run.kill()
        run.wait()
    # The lease is known to be that of a process that is gone.
    done = cluster.run("python", "pipelines/mosi.py", *at_url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "continues after epoch" in done.stdout
    assert f"best checkpoint:    {bucket}/runs/r/best" in done.stdout
    plain = tmp_path / "plain" / "r"
    assert lines(store.read("metrics.jsonl").decode()) == lines((plain / "metrics.jsonl").read_text())
    for name in ("best/model.safetensors", "summary.json"):
        assert store.read(name) == (plain / name).read_bytes(), name


def test_a_search(cluster: Raylets, bucket: str, tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_text(SEARCH)
    more = ("--tune", str(tmp_path / "search.yaml"))
    done = cluster.run("python", "pipelines/mosi.py", *flags(tmp_path, f"{bucket}/runs", "s", *more))
    assert done.returncode == 0, done.stdout + done.stderr
    store = open_storage(f"{bucket}/runs/s")
    summary = json.loads(store.read("summary.json"))
    # Whether ASHA stops a trial depends on which trial comes first to the epoch where they are compared.
    assert sum(summary["trials"].values()) == 3
    assert summary["trials"].keys() <= {"finished", "stopped"}
    for number in range(3):
        assert (
            f"storage_path: {bucket}/runs/s/trials\n" in store.read(f"trials/trial-{number:03d}/config.yaml").decode()
        )
        record = json.loads(store.read(f"trials/trial-{number:03d}/trial.json"))
        assert record["status"] in ("finished", "stopped")
        assert len(record["starts"]) == 1
        epochs = len(lines(store.read(f"trials/trial-{number:03d}/metrics.jsonl").decode()))
        assert epochs == 2 if record["status"] == "finished" else 1 <= epochs <= 2
    assert store.read("best/model.safetensors") == store.read(f"trials/{summary['trial']}/best/model.safetensors")
    # Again, by a driver with an empty disk: everything is known from the bucket.
    cluster.environment[WORK] = str(tmp_path / "empty")
    done = cluster.run("python", "pipelines/mosi.py", *flags(tmp_path, f"{bucket}/runs", "s", *more))
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(store.read("summary.json")) == summary
