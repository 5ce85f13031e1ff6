"""A group of workers that grows and shrinks with the cluster follows the curve of one worker."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from raylets import raylets
from waiting import wait_for

from cggm_ray.commands.cli import main
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.tracking import LOG, read_metrics
from conftest import SMALL, small_set, write_pickle

pytestmark = pytest.mark.ray


@pytest.mark.slow
def test_one_worker_then_two_then_one(tmp_path: Path) -> None:
    pickle = write_pickle(tmp_path / "small.pkl", small_set())
    dropouts = [flag for name in ("attn", "relu", "embed", "res", "out") for flag in (f"--{name}_dropout", "0")]
    argv = [*SMALL, *dropouts, "--data_path", str(pickle), "--storage_path", str(tmp_path)]
    log = tmp_path / "run" / LOG

    def epochs(starts: int) -> int:
        """Epochs since the group was started for the n-th time."""
        parts = log.read_text().split(" workers of 1:2\n") if log.exists() else []
        return parts[starts].count("epoch ") if len(parts) > starts else 0

    # The first attempt after the loss of a node may still count with that node. The run is stopped when all was seen.
    with raylets(cpus=1, RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="30") as cluster:
        elastic = [*argv, "--num_epochs", str(10**6), "--name", "run", "--workers", "1:2", "--resize_interval", "1"]
        run = cluster.start("python", "pipelines/mosi.py", *elastic, log=tmp_path / "driver.log")
        try:
            wait_for(lambda: epochs(1) >= 1, "the run does not start", by=run)
            node = cluster.add_node(cpus=1)
            wait_for(lambda: epochs(2) >= 2, "the group does not grow", by=run)
            cluster.remove_node(node)
            wait_for(lambda: epochs(3) >= 2, "the run does not go on with the node that is left", by=run)
            assert run.poll() is None, (tmp_path / "driver.log").read_text()
        finally:
            run.kill()
            run.wait()
    told = log.read_text()
    assert [line[0] for line in told.splitlines() if line.endswith(" workers of 1:2")] == ["1", "2", "1"]
    assert " failed: " in told
    assert told.count("continues after epoch") == 2
    got = read_metrics(tmp_path / "run")
    assert [line["epoch"] for line in got] == list(range(1, len(got) + 1))
    assert main(Config(), [*argv, "--num_epochs", str(len(got)), "--local", "--name", "local"]) == 0
    want = read_metrics(tmp_path / "local")
    assert got[0]["train/loss"] == want[0]["train/loss"]
    for name in ("train/loss", "valid/loss", "coefficient/text"):
        assert np.allclose([line[name] for line in want], [line[name] for line in got], rtol=1e-3, atol=1e-5), name
