"""Leases: one holder at a time, and another one only after the first has let go or is gone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cggm_ray.core.errors import StorageError
from cggm_ray.storage import leases
from cggm_ray.storage.base import Storage, open_storage
from cggm_ray.storage.leases import Fence, leasing, newest


class Busy(Exception):
    """What the callback of a test raises."""


def busy(holder: str) -> None:
    raise Busy(holder)


@pytest.fixture(params=["s3", "file"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return open_storage(f"{request.getfixturevalue('bucket')}/x" if request.param == "s3" else str(tmp_path / "store"))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "PERIOD", 0.01)
    monkeypatch.setattr(leases, "RENEWAL", 0.01)


def elsewhere(storage: Storage, number: int, **more: object) -> None:
    """A lease that a process of another machine holds."""
    content = {"holder": "process 7 on other", "machine": ["other", "other"], "process": [7, 7], **more}
    storage.write(f"lock.{number:06d}", json.dumps(content).encode())


def test_one_holder_at_a_time(storage: Storage) -> None:
    with leasing(storage, "lock", busy), pytest.raises(Busy, match="process"), leasing(storage, "lock", busy):
        pass
    with leasing(storage, "lock", busy):
        assert newest(storage, "lock") == 2
        assert storage.list() == ["lock.000002"]


def test_a_dead_process_of_this_machine_holds_nothing(storage: Storage) -> None:
    program = (
        "import os, sys\nfrom cggm_ray.storage.base import open_storage\nfrom cggm_ray.storage.leases import leasing\n"
        "with leasing(open_storage(sys.argv[1]), 'lock', print):\n    os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, storage.url]).returncode == -9
    assert newest(storage, "lock") == 1
    with leasing(storage, "lock", busy):
        assert newest(storage, "lock") == 2


def test_another_machine_keeps_a_lease_that_it_renews(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere(storage, 3, renewals=0)
    count = 0

    def renewed(seconds: float) -> None:
        nonlocal count
        count += 1
        elsewhere(storage, 3, renewals=count)

    monkeypatch.setattr(leases.time, "sleep", renewed)
    with pytest.raises(Busy, match="process 7 on other"), leasing(storage, "lock", busy):
        pass


def test_another_machine_loses_a_lease_that_it_does_not_renew(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(leases, "LEASE", 0)
    elsewhere(storage, 3)
    fence = Fence(storage, "lock")
    fence.check()
    with leasing(storage, "lock", busy):
        assert newest(storage, "lock") == 4
        with pytest.raises(StorageError, match="was taken by process") as caught:
            fence.check()
        assert len(str(caught.value).splitlines()) == 1
        Fence(storage, "lock").check()


def test_who_has_lost_a_lease_leaves_that_of_the_other(storage: Storage) -> None:
    with leasing(storage, "lock", busy):
        elsewhere(storage, 2)
    assert json.loads(storage.read("lock.000002"))["holder"] == "process 7 on other"


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"a": 1}'])
def test_a_damaged_lease_belongs_to_somebody(storage: Storage, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write("lock.000001", content)
    monkeypatch.setattr(leases, "LEASE", 0)
    with leasing(storage, "lock", busy):
        assert newest(storage, "lock") == 2
