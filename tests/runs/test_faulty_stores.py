"""Runs at a URL whose store fails now and then, or for good."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_store import Fault, FaultyStore, faulty_store
from test_runs_at_a_url import at, new_machine, train, wanted  # noqa: F401

from cggm_ray.__main__ import main as command
from cggm_ray.storage import leases, objects
from cggm_ray.storage.base import open_storage
from cggm_ray.storage.mirror import mirror_of


@pytest.fixture
def store(s3_endpoint: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    """A store between the test and the server, which passes everything on."""
    monkeypatch.setattr(leases, "PERIOD", 0.01)
    monkeypatch.setattr(objects, "PAUSE", 0.01)
    with faulty_store(s3_endpoint) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.url)
        yield found
    mirror_of.cache_clear()


def every(number: int, faults: Iterator[str]) -> Callable[[str, str], Fault]:
    """The faults in turn, each for one request of so many."""
    count, lock = itertools.count(1), threading.Lock()

    def decide(method: str, path: str) -> Fault:
        with lock:
            return next(faults) if next(count) % number == 0 else None

    return decide


@pytest.mark.parametrize(
    ("faults", "of"), [(("503", "cut"), 3), (("404",), 3), (("slow",), 20)], ids=["503-cut", "404", "slow"]
)
def test_what_fails_once_is_done_again(
    small_pickle: Path,
    wanted: dict[str, Any],  # noqa: F811
    bucket: str,
    store: FaultyStore,
    new_machine: Callable[[], None],  # noqa: F811
    faults: tuple[str, ...],
    of: int,
) -> None:
    store.decide = every(of, itertools.cycle(faults))
    flags = ("--num_epochs", "1", "--save_every", "3")
    assert train(small_pickle, f"{bucket}/runs", *flags) == 0
    new_machine()
    assert train(small_pickle, f"{bucket}/runs", "--allow_config_change") == 0
    store.decide = lambda method, path: None
    assert at(bucket) == wanted


@pytest.mark.parametrize(
    ("part", "code", "said"),
    [
        ("", 2, "storage_path: s3://bucket-N/runs/r cannot be"),
        ("metrics.jsonl", 1, "s3://bucket-N/runs/r/metrics.jsonl: cannot be written or read: 503"),
        ("checkpoints/epoch-00001/model", 1, "epoch-00001/model.safetensors: cannot be written or read: 503"),
        ("summary.json", 1, "s3://bucket-N/runs/r/summary.json: cannot be written or read: 503"),
    ],
)
def test_what_fails_for_good_is_one_line(
    small_pickle: Path,
    wanted: dict[str, Any],  # noqa: F811
    bucket: str,
    store: FaultyStore,
    new_machine: Callable[[], None],  # noqa: F811
    part: str,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(objects, "RETRY", {"max_retries": 1})
    mirror_of.cache_clear()
    store.always("503", part)
    assert train(small_pickle, f"{bucket}/runs") == code
    (line,) = capsys.readouterr().err.splitlines()
    assert said.replace("s3://bucket-N", bucket) in line
    store.decide = lambda method, path: None
    new_machine()
    assert train(small_pickle, f"{bucket}/runs") == 0
    assert at(bucket) == wanted


def test_commands_about_a_run(
    small_pickle: Path,
    bucket: str,
    store: FaultyStore,
    new_machine: Callable[[], None],  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train(small_pickle, f"{bucket}/runs") == 0
    new_machine()
    store.decide = every(4, itertools.cycle(("503", "404", "cut")))
    assert command(["verify", f"{bucket}/runs/r"]) == 0
    store.always("403", "best/model.safetensors")
    new_machine()
    assert command(["verify", f"{bucket}/runs/r"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "best/model.safetensors: cannot be written or read: the store refuses it: 403 Forbidden" in line
    store.decide = lambda method, path: None
    assert open_storage(f"{bucket}/runs/r").list()
