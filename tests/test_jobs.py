"""`ray start --head` and `ray job submit`, by Ray's own command line, with token authentication."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import SMALL
from raylets import ROOT, Raylets, descendants, raylets

pytestmark = pytest.mark.ray
WAIT = 120


@pytest.fixture(scope="module")
def cluster() -> Iterator[Raylets]:
    # A job that says where its cluster is does not depend on RAY_ADDRESS, which here names the driver's way in.
    with raylets(cpus=2) as nodes:
        nodes.environment.pop("RAY_ADDRESS")
        yield nodes


@pytest.fixture(scope="module")
def submit(cluster: Raylets) -> list[str]:
    """The command that submits a pipeline."""
    excludes = json.dumps({"excludes": [".venv", ".git"]})
    flags = ["--address", cluster.jobs, "--working-dir", str(ROOT), "--runtime-env-json", excludes]
    return ["ray", "job", "submit", *flags, "--", sys.executable, "pipelines/mosi.py"]


def until(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + WAIT
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.5)


def training(cluster: Raylets) -> list[str]:
    """Titles of the processes of this cluster that train or steer a training."""
    node = cluster.nodes[0].pid
    pids = ",".join(map(str, descendants(node)))
    titles = subprocess.run(["ps", "-o", "args=", "-p", pids], capture_output=True, text=True, check=False).stdout
    return [title for title in titles.splitlines() if title.startswith(("ray::RayTrainWorker", "ray::TrainController"))]


def test_a_job_runs_to_the_end(cluster: Raylets, submit: list[str], small_pickle: Path, tmp_path: Path) -> None:
    flags = [
        *SMALL,
        "--data_path",
        str(small_pickle),
        "--storage_path",
        str(tmp_path),
        "--name",
        "job",
        "--workers",
        "2",
    ]
    done = cluster.run(*submit, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "epoch 2/2" in done.stdout
    assert f"best checkpoint:   {tmp_path / 'job' / 'best'}" in done.stdout
    assert (tmp_path / "job" / "summary.json").exists()


def test_a_job_that_fails_says_why_and_fails(cluster: Raylets, submit: list[str], tmp_path: Path) -> None:
    flags = ["--data_path", str(tmp_path / "none.pkl")]
    done = cluster.run(*submit, *flags)
    assert done.returncode != 0
    assert "none.pkl does not exist" in done.stdout + done.stderr


def test_a_job_streams_its_log_and_can_be_stopped(
    cluster: Raylets, submit: list[str], small_pickle: Path, tmp_path: Path
) -> None:
    flags = [*SMALL, "--data_path", str(small_pickle), "--storage_path", str(tmp_path), "--num_epochs", "900"]
    command = [*submit[:-3], "--submission-id", "stopped", *submit[-3:]]
    log = tmp_path / "log"
    job = cluster.start(*command, *flags, "--workers", "2", log=log)
    try:
        until(lambda: "epoch   3/900" in log.read_text(), "the log does not come while the job runs")
        assert job.poll() is None
        assert sorted(title.split(".")[0] for title in training(cluster)) == [
            *["ray::RayTrainWorker"] * 2,
            "ray::TrainController",
        ]
        stopped = cluster.run("ray", "job", "stop", "--address", cluster.jobs, "stopped")
        assert stopped.returncode == 0, stopped.stdout + stopped.stderr
        until(lambda: not training(cluster), "workers are left")
        job.wait(timeout=WAIT)
    finally:
        job.kill()
        job.wait()
    status = cluster.run("ray", "job", "status", "--address", cluster.jobs, "stopped")
    assert "was stopped" in status.stdout + status.stderr
    free = cluster.run("ray", "status", "--address", cluster.address).stdout
    assert "0.0/2.0 CPU" in free, free
