"""Reports failures of workers, beside Ray Train's own restart from the last checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.train import UserCallback

from cggm_ray.core.console import form, use_form
from cggm_ray.distributed.cluster import own_error, what_failed
from cggm_ray.engine.tracking import Console


class Failures(UserCallback):
    """A callback of Ray Train that runs in the controller of a run and sees the failures of workers.

    An error of this package would come again, on the same data and the same weights: it ends the run at once. Everything
    else, such as a node that is gone, is left to Ray Train, which starts the workers again up to `max_failures` times.

    Args:
        folder: of the run; a line in its `train.log` says which worker failed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._form = folder, form()

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Reports the errors of a group, by rank.

        Raises:
            CggmError: a worker's own. Ray Train does not retry what a callback raises.
        """
        for error in worker_exceptions.values():
            own = own_error(error)
            if own is not None:
                raise own
        for rank, error in worker_exceptions.items():
            # The controller may be on a node that has not had this run before.
            self._folder.mkdir(parents=True, exist_ok=True)
            use_form(self._form)
            Console(self._folder).say(f"worker {rank} failed: {what_failed(error).splitlines()[-1]}")
