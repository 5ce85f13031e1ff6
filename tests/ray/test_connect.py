"""Which cluster a program joins, and what it says where none answers."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray.exceptions

from cggm_ray.commands.cli import main
from cggm_ray.engine.configuration import Config
from conftest import SMALL

cluster = pytest.importorskip("cggm_ray.distributed.cluster")
session = pytest.importorskip("cggm_ray.distributed.session")
# Ray 2.50 and 2.51 have no such class.
AuthenticationError = getattr(ray.exceptions, "AuthenticationError", type("AuthenticationError", (Exception,), {}))


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address where nobody listens, and nobody else can."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def test_an_address_that_was_asked_for_must_answer(
    nobody: str, small_pickle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", nobody)
    argv = [*SMALL, "--data_path", str(small_pickle), "--storage_path", str(tmp_path / "runs"), "--name", "run"]
    assert main(Config(), argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: RAY_ADDRESS: no cluster answers at ")
    assert not (tmp_path / "runs" / "run").exists()


def test_a_cluster_that_was_killed_is_not_waited_for(nobody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # What Ray reads from the file in which the last `ray start` left its address.
    monkeypatch.setattr(cluster.services, "canonicalize_bootstrap_address", lambda address: nobody)
    assert cluster.running_cluster() is None
    assert not cluster.joins()


def test_local_means_a_cluster_of_one_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert cluster.running_cluster() is None


def test_an_address_that_is_none_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small_pickle: Path, tmp_path: Path
) -> None:
    for address in ("foo", ":", "ray://127.0.0.1:9", "http://127.0.0.1:9"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert main(Config(), [*SMALL, "--data_path", str(small_pickle), "--storage_path", str(tmp_path / "runs")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: RAY_ADDRESS: found '{address}', which leads to no cluster: ")
        assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.9\n    Python: 3.10"),
            "Ray: 2.9 Python",
        ),
        (ConnectionError("Could not reach the GCS"), "RAY_ADDRESS=HOST:PORT to join a cluster"),
        (Exception("The current node timed out during startup."), "or --local to train without Ray"),
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/ray"), "free some space there, or set RAY_TMPDIR"),
        (PermissionError(errno.EACCES, "Permission denied", "/home/x/.ray"), "check the token: RAY_AUTH_TOKEN"),
        (AuthenticationError("InvalidAuthToken"), "check the token: RAY_AUTH_TOKEN"),
        (AssertionError(), "Ray: AssertionError; a cluster could not be started"),
    ],
)
def test_whatever_ray_raises_is_one_line(
    error: Exception,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    small_pickle: Path,
    tmp_path: Path,
) -> None:
    def fail(**arguments: object) -> None:
        raise error

    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr(cluster.ray, "init", fail)
    argv = [*SMALL, "--data_path", str(small_pickle), "--storage_path", str(tmp_path / "runs"), "--name", "run"]
    assert main(Config(), argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: Ray: ")
    assert expected in line


@pytest.fixture
def long_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / ("a_folder_that_a_scheduler_made_" * 4)
    folder.mkdir()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def test_a_folder_that_is_too_long_is_left_for_a_short_one(
    long_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = session.session_folder()
    assert found is not None
    assert len(f"{found}/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store") <= 107
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"TMPDIR: {long_folder} is too long for the sockets of Ray")
    assert line.endswith(f"Ray keeps its session in {found}")


@pytest.mark.parametrize("length", range(session.LONGEST - 8, session.LONGEST + 3))
def test_the_limit_is_that_of_sockets(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is taken holds a real socket of the longest name."""
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        folder = Path(short) / ("x" * (length - len(short) - 1 - len("/ray")))
        monkeypatch.setenv("RAY_TMPDIR", str(folder))
        taken = session.session_folder() is None
        assert taken == (length <= session.LONGEST)
        if taken:
            sockets = folder / "ray" / "session_2026-01-01_00-00-00_000000_4194304" / "sockets"
            sockets.mkdir(parents=True)
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(str(sockets / "plasma_store"))


def test_folders_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert session.unfit(Path("relative")) == "is no absolute path"
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        (Path(short) / "file").touch()
        assert session.unfit(Path(short) / "file") == "cannot be written: File exists"
        (Path(short) / "link").symlink_to(short)
        assert session.unfit(Path(short) / "link", own=True) == "belongs to somebody else"
        assert session.unfit(Path(short), own=True) is None
        monkeypatch.setattr(session, "LEAST_FREE", 2**40)
        assert "MiB free" in (session.unfit(Path(short)) or "")


def test_where_no_folder_will_do_a_line_says_what_will(
    long_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    small_pickle: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr(session, "LEAST_FREE", 2**40)
    assert main(Config(), [*SMALL, "--data_path", str(small_pickle), "--storage_path", str(tmp_path / "runs")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: TMPDIR: {long_folder} is too long for the sockets of Ray")
    assert "set RAY_TMPDIR to a folder on a local disk that can be written, with a path of at most" in line


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_under_a_long_tmpdir(long_folder: Path, small_pickle: Path, tmp_path: Path) -> None:
    """In a process of its own, whose Ray reads the variable when it starts."""
    flags = [*SMALL, "--data_path", str(small_pickle), "--storage_path", str(tmp_path / "runs"), "--name", "run"]
    pipeline = Path(__file__).parents[2] / "pipelines" / "mosi.py"
    done = subprocess.run(
        [sys.executable, str(pipeline), *flags, "--num_epochs", "1"],
        capture_output=True,
        text=True,
        env=os.environ | {"RAY_ADDRESS": "local", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"TMPDIR: {long_folder} is too long for the sockets of Ray")
    assert "dashboard" not in done.stdout + done.stderr
    assert (tmp_path / "runs" / "run" / "summary.json").exists()
