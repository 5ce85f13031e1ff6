"""`ray start --head` and `ray job submit`, by Ray's own command line, with token authentication."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from raylets import ROOT, Raylets, raylets
from waiting import wait_for

from conftest import SMALL

pytestmark = pytest.mark.ray
ENDLESS = 10**6
"""Epochs of what is to be stopped."""


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
    assert ["best", "checkpoint:", str(tmp_path / "job" / "best")] in [
        line.split() for line in done.stdout.splitlines()
    ]
    assert (tmp_path / "job" / "summary.json").exists()


def search_file(folder: Path, epochs: int) -> list[str]:
    """Flags of a search with two trials."""
    file = folder / "search.yaml"
    space = {"rho": {"grid": [1.0, 1.3]}}
    file.write_text(yaml.safe_dump({"scheduler": {"name": "none", "max_epochs": epochs}, "space": space}))
    return ["--tune", str(file)]


@pytest.mark.slow
def test_a_search_and_a_comparison_are_jobs_too(
    cluster: Raylets, submit: list[str], small_pickle: Path, tmp_path: Path
) -> None:
    flags = [*SMALL, "--data_path", str(small_pickle), "--storage_path", str(tmp_path), "--num_epochs", "1"]
    done = cluster.run(*submit, *flags, "--name", "search", *search_file(tmp_path, epochs=1))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[2/2] trial-00" in done.stdout
    assert (tmp_path / "search" / "best.yaml").exists()
    done = cluster.run(*submit, *flags, "--name", "table", "--compare", "none,cggm", "--seeds", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "difference to none" in done.stdout
    # One of its runs fails: so does the job.
    done = cluster.run(
        *submit, *flags, "--name", "fails", "--compare", "none,cggm", "--cls_lr", "1e30", "--num_epochs", "3"
    )
    assert done.returncode != 0
    assert "1 of 2 runs failed; cggm-seed-666: step" in done.stdout + done.stderr


@pytest.mark.slow
def test_a_search_that_is_stopped_leaves_no_trial_running(
    cluster: Raylets, submit: list[str], small_pickle: Path, tmp_path: Path
) -> None:
    flags = [*SMALL, "--data_path", str(small_pickle), "--storage_path", str(tmp_path), "--name", "search"]
    command = [*submit[:-3], "--submission-id", "search", *submit[-3:], *flags, *search_file(tmp_path, epochs=ENDLESS)]
    job = cluster.start(*command, log=tmp_path / "log")
    try:
        lines = tmp_path / "search" / "trials" / "trial-001" / "metrics.jsonl"
        wait_for(lambda: lines.exists() and lines.read_text(), "the trials do not start", by=job)
        both = ["ray::ImplicitFunc"] * 2
        wait_for(lambda: cluster.working() == both, f"there are never {both}", by=job)
        stopped = cluster.run("ray", "job", "stop", "--address", cluster.jobs, "search")
        assert stopped.returncode == 0, stopped.stdout + stopped.stderr
        wait_for(lambda: not cluster.working(), "trials are left")
        job.wait()
    finally:
        job.kill()
        job.wait()


def test_a_job_that_fails_says_why_and_fails(cluster: Raylets, submit: list[str], tmp_path: Path) -> None:
    flags = ["--data_path", str(tmp_path / "none.pkl")]
    done = cluster.run(*submit, *flags)
    assert done.returncode != 0
    assert "none.pkl does not exist" in done.stdout + done.stderr


@pytest.mark.slow
def test_a_job_streams_its_log_and_can_be_stopped(
    cluster: Raylets, submit: list[str], small_pickle: Path, tmp_path: Path
) -> None:
    flags = [*SMALL, "--data_path", str(small_pickle), "--storage_path", str(tmp_path), "--num_epochs", str(ENDLESS)]
    command = [*submit[:-3], "--submission-id", "stopped", *submit[-3:]]
    log = tmp_path / "log"
    job = cluster.start(*command, *flags, "--workers", "2", log=log)
    try:
        wait_for(lambda: f"epoch       3/{ENDLESS}" in log.read_text(), "the log does not come", by=job)
        assert job.poll() is None
        training = [*["ray::RayTrainWorker"] * 2, "ray::TrainController"]
        wait_for(lambda: cluster.working() == training, f"there are never {training}", by=job)
        stopped = cluster.run("ray", "job", "stop", "--address", cluster.jobs, "stopped")
        assert stopped.returncode == 0, stopped.stdout + stopped.stderr
        wait_for(lambda: not cluster.working(), "workers are left")
        job.wait()
    finally:
        job.kill()
        job.wait()
    status = cluster.run("ray", "job", "status", "--address", cluster.jobs, "stopped")
    assert "was stopped" in status.stdout + status.stderr
    asks = ("ray", "status", "--address", cluster.address)
    wait_for(lambda: "0.0/2.0 CPU" in cluster.run(*asks).stdout, "CPUs are taken by nobody")
