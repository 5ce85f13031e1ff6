"""A trial of a search whose process is killed goes on, and ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from test_tune import WHOLE, run, starts, table

from cggm_ray.engine.tracking import JsonLines
from conftest import small_set, write_pickle

pytestmark = pytest.mark.ray
KILL = "kill"
"""The first process that has trained a second epoch beside a file of this name is killed. It puts its trial's name there."""


def killing() -> None:
    """Runs in every process of the cluster, before anything else."""
    log = JsonLines.log

    def logging(lines: JsonLines, record: Mapping[str, float]) -> None:
        trial = lines._path.parent
        kill = trial.parents[2] / KILL
        if record["epoch"] == 2 and kill.exists():
            try:
                kill.rename(kill.with_name(f"{KILL}ed"))
            except FileNotFoundError:
                # Another one was faster.
                pass
            else:
                kill.with_name(f"{KILL}ed").write_text(trial.name)
                os.kill(os.getpid(), signal.SIGKILL)
        log(lines, record)

    JsonLines.log = logging  # type: ignore[method-assign]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    import ray
    from ray import cloudpickle

    # The processes of the cluster cannot import this file, so the hook travels as a value.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(address="local", num_cpus=4, log_to_driver=False, runtime_env={"worker_process_setup_hook": killing})
    yield
    ray.shutdown()


@pytest.mark.slow
def test_a_trial_whose_process_is_killed_goes_on(tmp_path: Path) -> None:
    raw = write_pickle(tmp_path / "small.pkl", small_set())
    whole = run(raw, tmp_path / "whole", WHOLE)
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / KILL).touch()
    folder = run(raw, parts, WHOLE)
    victim = (parts / f"{KILL}ed").read_text()
    entries = starts(folder)
    assert {name: len(each) for name, each in entries.items()} == {name: 1 + (name == victim) for name in entries}
    assert entries[victim][1]["after_epoch"] == 1
    values = [{name: row["best_mae"] for name, row in table(each).items()} for each in (folder, whole)]
    assert values[0] == values[1]
