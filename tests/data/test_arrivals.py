"""A conversion or prediction on Ray says what it expects, where nothing arrives for a while."""

from __future__ import annotations

import threading

import pytest

waiting = pytest.importorskip("cggm_ray.distributed.waiting")


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that are shown, with a patience of no time at all."""
    lines: list[str] = []
    monkeypatch.setattr(waiting, "PATIENCE", 0.02)
    monkeypatch.setattr(waiting, "LOOK", 0.01)
    monkeypatch.setattr(waiting.ray, "nodes", lambda: [{"Alive": True}, {"Alive": False}])
    monkeypatch.setattr(waiting, "_free", lambda: "0 of 2 CPUs")
    monkeypatch.setattr(waiting, "show", lines.append)
    return lines


def test_it_says_what_is_expected_again_and_again(shown: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    enough = threading.Event()
    monkeypatch.setattr(waiting, "show", lambda line: (shown.append(line), len(shown) >= 2 and enough.set()))
    arrivals = waiting.Arrivals("shards", 5)
    arrivals.arrived()
    arrivals.arrived()
    with arrivals.beating():
        enough.wait()
    assert shown[0].startswith("2 of 5 shards have arrived, none for ")
    assert shown[0].endswith("the cluster has 1 node, free: 0 of 2 CPUs")


def test_it_is_silent_where_nothing_is_late(shown: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "PATIENCE", 3600.0)
    with waiting.Arrivals("shards", 5).beating():
        pass
    assert not shown


def test_it_says_that_the_cluster_does_not_answer(shown: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "ANSWER", 0.01)
    enough, head = threading.Event(), threading.Event()
    monkeypatch.setattr(waiting, "show", lambda line: (shown.append(line), len(shown) >= 2 and enough.set()))
    questions = []
    with waiting.Heartbeat(lambda seconds: questions.append(seconds) or str(head.wait())).beating():
        enough.wait()
    head.set()
    assert all(line.startswith("the head of the cluster does not answer") for line in shown)
    # One question at a time.
    assert len(questions) == 1
