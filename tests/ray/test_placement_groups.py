"""What a dead controller had set aside is free again; what others hold stays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from waiting import wait_for

from cggm_ray.distributed.tune import placement_groups
from cggm_ray.distributed.tune.placement_groups import abandoned, removing_abandoned

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=4, log_to_driver=False)
    yield
    ray.shutdown()


def maker(name: str) -> Any:
    """Starts an actor of a class with a name that sets CPUs aside, as a controller does for its workers."""
    import ray

    def make(self: Any) -> Any:
        from ray.util import placement_group

        self.group = placement_group([{"CPU": 1}])
        return self.group.id if self.group.wait() else None

    return ray.remote(num_cpus=0)(type(name, (), {"make": make})).remote()


def free() -> float:
    import ray

    return float(ray.available_resources().get("CPU", 0))


def test_only_groups_of_dead_controllers_are_removed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray
    from ray.util import placement_group

    monkeypatch.setattr(placement_groups, "PERIOD", 0.05)
    # One of this process, as those of Tune are, one of a living controller, and one of another dead actor.
    own = placement_group([{"CPU": 1}])
    assert own.wait()
    dead, living, other = map(maker, ("TrainController", "TrainController", "Other"))
    left = ray.get([actor.make.remote() for actor in (dead, living, other)])[0]
    assert left is not None
    wait_for(lambda: free() == 0, "four groups")
    assert abandoned() == []
    ray.kill(other)
    ray.kill(dead)
    wait_for(lambda: [group.id for group in abandoned()] == [left], "the group that is left")
    with removing_abandoned():
        wait_for(lambda: free() == 1, "the CPU of the dead controller")
    assert abandoned() == []
    assert capsys.readouterr().out.splitlines() == [
        "the controller of a trial is gone; what was set aside for its 1 worker is free again"
    ]
    states = {key: group["state"] for key, group in ray.util.placement_group_table().items()}
    assert sorted(states.values()) == ["CREATED"] * 3 + ["REMOVED"]
    assert states[left.hex()] == "REMOVED"
