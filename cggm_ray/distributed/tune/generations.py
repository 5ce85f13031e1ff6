"""Population based training of Ray Tune whose exchanges follow from the seed of the search."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

from cggm_ray.core.seeding import derive_seed


class Generations(PopulationBasedTraining):
    """Population based training whose exchanges wait for the whole population: a seed decides them, and not the clock.

    Args:
        seed: of what an exchange draws: who learns from whom, and the new values.
        last: the epoch after which a trial is over. An exchange there would only give a trial values that it never trained.
        settings: of `PopulationBasedTraining`.
    """

    def __init__(self, *, seed: int, last: int, **settings: Any) -> None:
        super().__init__(synch=True, **settings)
        self._seed = seed
        self._last = last

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """What Ray Tune does with a trial after a result: it goes on, or it waits until the population exchanges values."""
        if result["epoch"] >= self._last:
            return str(TrialScheduler.CONTINUE)
        # The draws come from the global generators of Python and numpy.
        before = random.getstate(), np.random.get_state()
        seed = derive_seed(self._seed, "exchanges", int(result["epoch"]))
        random.seed(seed)
        np.random.seed(seed % 2**32)
        decision = super().on_trial_result(tune_controller, trial, result)
        random.setstate(before[0])
        np.random.set_state(before[1])
        return str(decision)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """The next trial. Where all wait for one that has ended meanwhile, they exchange without it."""
        chosen = super().choose_trial_to_run(tune_controller)
        live = tune_controller.get_live_trials()
        if chosen is None and live and all(trial.status == "PAUSED" for trial in live):
            # The last result of any of them, heard again, finds nobody to wait for.
            waiting = next(iter(live))
            # Private to Ray's class, which tells its results to nobody.
            heard = self._trial_state[waiting].last_result
            assert heard is not None
            self.on_trial_result(tune_controller, waiting, dict(heard))
            chosen = super().choose_trial_to_run(tune_controller)
        return chosen
