"""What the controller of a study does when a trial ends, by the number of trials that are recorded.

    python benchmarks/scale/studies.py                # 100, 1,000 and 10,000 recorded trials
    python benchmarks/scale/studies.py --trials 50    # seconds, to see that it works

Writes the folders of trials that are over, each with 20 epochs, and ends 50 more one after the other, as Ray Tune's callback
does: the record is written, the line is printed, and the checkpoints of trials that are not among the best five are removed. No
trial trains. Prints milliseconds for each, and how long reading the record once took at the start.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from cggm_ray.distributed.tune.trial import Study
from cggm_ray.distributed.tune.tune import Watch
from cggm_ray.engine.checkpoints import CHECKPOINTS
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.runtime import RunConfig
from cggm_ray.engine.tracking import METRICS
from cggm_ray.studies.space import Resources
from cggm_ray.studies.store import FINISHED, Trial, ended, make_trial, started, trial_name

EPOCHS, ENDING, KEPT = 20, 50, 5


def recorded(trial: Trial, best: float) -> None:
    """Writes the folder of a trial that has trained."""
    started(trial, 0)
    lines = [{"epoch": epoch + 1.0, "best_epoch": epoch + 1.0, "best_value": best} for epoch in range(EPOCHS)]
    (trial.folder / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))


def measure(count: int, folder: Path) -> tuple[float, list[float]]:
    """Returns the seconds of the start, and the seconds of every trial that ends, with so many that ended before."""
    base = Config(run=RunConfig(storage_path=str(folder)))
    names = range(count + ENDING)
    trials = [make_trial(base, folder, n, trial_name(n), {"lr": 1e-4 * (n + 1)}, folder) for n in names]
    for number, (trial, best) in enumerate(zip(trials, np.random.default_rng(0).random(len(trials)), strict=True)):
        recorded(trial, float(best))
        if number < count:
            ended(trial, FINISHED)
        else:
            (trial.folder / CHECKPOINTS / "epoch-1").mkdir(parents=True)
    study = Study(
        folder=folder,
        base=base,
        shards=folder,
        trials=tuple(trials),
        own=(),
        resources=Resources(),
        test=False,
        kept=KEPT,
    )
    start = time.perf_counter()
    watch = Watch(study, None, "min")
    first, times = time.perf_counter() - start, []
    for trial in trials[count:]:
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            watch._ended(trial, FINISHED, None)
        times.append(time.perf_counter() - start)
    return first, times


def main() -> None:
    """Prints a line for each number of trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", default="100,1000,10000")
    for count in map(int, parser.parse_args().trials.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            first, times = measure(count, Path(folder))
        print(
            f"{count} recorded trials: {1000 * statistics.median(times):.1f} ms for each that ends, at most "
            f"{1000 * max(times):.1f}; the start takes {first:.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
