"""Which cluster a program joins, and what it says where none answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from cggm_ray.commands.cli import main
from cggm_ray.engine.configuration import Config
from conftest import SMALL
from raylets import free_ports

cluster = pytest.importorskip("cggm_ray.distributed.cluster")


@pytest.fixture
def nobody() -> str:
    """An address where nobody listens."""
    return f"127.0.0.1:{free_ports(1)[0]}"


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
