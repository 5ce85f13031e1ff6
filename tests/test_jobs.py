"""`ray start --head` and `ray job submit`, by Ray's own command line, with token authentication."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[1]
RAY = Path(sys.executable).with_name("ray")


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def submit() -> Iterator[list[str]]:
    """A head node of its own; yields the command that submits to it."""
    port, dashboard, agent = free_ports(3)
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    os.environ.update(environment)
    # A folder of its own keeps other Ray programs on this machine from joining this cluster; sockets want a short path.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        start = [RAY, "start", "--head", "--block", "--num-cpus=2", f"--port={port}", f"--temp-dir={folder}"]
        log = (Path(folder) / "head.log").open("w")
        head = subprocess.Popen(
            [
                *(*start, "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
                f"--dashboard-agent-listen-port={agent}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        address = f"http://127.0.0.1:{dashboard}"
        try:
            for _ in range(60):
                listed = subprocess.run([RAY, "job", "list", "--address", address], capture_output=True, check=False)
                if listed.returncode == 0:
                    break
                time.sleep(1)
            else:
                pytest.fail(f"the head node does not answer: {(Path(folder) / 'head.log').read_text()[-2000:]}")
            excludes = json.dumps({"excludes": [".venv", ".git"]})
            yield [
                str(RAY),
                *(
                    "job",
                    "submit",
                    "--address",
                    address,
                    "--working-dir",
                    str(ROOT),
                    "--runtime-env-json",
                    excludes,
                    "--",
                ),
                *(sys.executable, "pipelines/mosi.py"),
            ]
        finally:
            os.killpg(head.pid, signal.SIGTERM)
            try:
                head.wait(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(head.pid, signal.SIGKILL)
                head.wait()
            for name in environment:
                del os.environ[name]


def test_a_job_runs_to_the_end(submit: list[str], small_pickle: Path, tmp_path: Path) -> None:
    from conftest import SMALL

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
    done = subprocess.run([*submit, *flags], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "epoch 2/2" in done.stdout
    assert f"best checkpoint:   {tmp_path / 'job' / 'best'}" in done.stdout
    assert (tmp_path / "job" / "summary.json").exists()


def test_a_job_that_fails_says_why_and_fails(submit: list[str], tmp_path: Path) -> None:
    flags = ["--data_path", str(tmp_path / "none.pkl")]
    done = subprocess.run([*submit, *flags], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode != 0
    assert "none.pkl does not exist" in done.stdout + done.stderr
