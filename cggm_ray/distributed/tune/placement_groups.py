"""Removes placement groups whose controller is dead, so that their CPUs and GPUs are free for the next start of a trial.

Ray removes a group when both its job and the actor that made it have ended. A controller of Ray Train that dies with its node
leaves its group to a `PlacementGroupCleaner`, which is told of the group when all workers of it have started. If the node dies
before that, nobody removes the group as long as the job lasts: Ray moves its bundles to other nodes, and the trial that is
started again waits for them for ever. Seen with Ray 2.60.0 (row 64 of `benchmarks/faults/host_faults.py`).

Which actor made a group, and whether it is dead, is in the table of Ray's head, but in no public answer.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import ray
from ray._private.state import state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
from ray.util.placement_group import PlacementGroup, remove_placement_group

from cggm_ray.core.console import show
from cggm_ray.core.threads import beside

PERIOD = 20.0
"""Seconds between two looks."""
CONTROLLER = "TrainController"
"""Class of the actors whose groups are removed; what somebody else's actors make is not touched."""


@contextmanager
def removing_abandoned() -> Iterator[None]:
    """Removes such groups of this job while the block runs, and says so."""
    with beside(_look_now_and_then):
        yield


def _look_now_and_then(done: threading.Event) -> None:
    while not done.wait(PERIOD):
        # The head may be away, which ends this process sooner than it matters here.
        with suppress(Exception):
            for group in abandoned():
                remove_placement_group(group)
                show(
                    f"the controller of a trial is gone; what was set aside for its {group.bundle_count} "
                    f"worker{'s' * (group.bundle_count != 1)} is free again"
                )


def abandoned() -> list[PlacementGroup]:
    """Returns the groups of this job that dead controllers have left."""
    job = ray.get_runtime_context().get_job_id()
    found = []
    for data in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(data)
        if group.state == PlacementGroupTableData.REMOVED or not group.creator_actor_dead:
            continue
        # Groups that no actor made, those of Tune among them, count as those of a dead actor.
        maker = state.actor_table(group.creator_actor_id.hex())
        if group.creator_job_id.hex() == job and maker and maker["ActorClassName"] == CONTROLLER:
            bundles = [dict(bundle.unit_resources) for bundle in group.bundles]
            found.append(PlacementGroup(ray.PlacementGroupID(group.placement_group_id), bundles))
    return found
