"""Several processes under torchrun: they stop at the same step, and say who is missing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from raylets import descendants, wait_for

from cggm_ray.commands.cli import main
from cggm_ray.engine.checkpoints import Checkpoints
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.tracking import LOG, read_metrics
from conftest import SMALL

ROOT = Path(__file__).parents[2]
DROPOUTS = [flag for name in ("attn", "relu", "embed", "res", "out") for flag in (f"--{name}_dropout", "0")]


def flags(pickle: Path, storage: Path, name: str, epochs: int) -> list[str]:
    places = ["--data_path", str(pickle), "--storage_path", str(storage), "--name", name]
    return [*SMALL, *DROPOUTS, *places, "--num_epochs", str(epochs), "--log_interval", "1"]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.Popen(
        [*command, str(ROOT / "pipelines" / "mosi.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_two_stop_at_the_same_step_and_one_goes_on(small_pickle: Path, tmp_path: Path) -> None:
    log = tmp_path / "run" / LOG
    both = start(flags(small_pickle, tmp_path, "run", 2000))
    wait_for(lambda: log.exists() and "epoch 1  step 3/" in log.read_text(), 120, "the run does not start")
    # To one of the two only: they agree.
    os.kill(descendants(both.pid)[-1], signal.SIGTERM)
    said, _ = both.communicate(timeout=120)
    assert "stopped after " in said, said
    newest = Checkpoints(tmp_path / "run").newest()
    assert newest is not None
    assert str(newest) in said
    epochs = len(read_metrics(tmp_path / "run")) + 1
    assert main(Config(), ["--local", *flags(small_pickle, tmp_path, "run", epochs)]) == 0
    assert main(Config(), ["--local", *flags(small_pickle, tmp_path, "one", epochs)]) == 0
    for one, two in list(zip(read_metrics(tmp_path / "one"), read_metrics(tmp_path / "run"), strict=True))[:3]:
        for name in ("train/loss", "valid/loss", "coefficient/text", "grad_norm/vision"):
            assert np.isclose(one[name], two[name], rtol=1e-3), name


def test_a_process_that_hangs_is_named(small_pickle: Path, tmp_path: Path) -> None:
    log = tmp_path / "run" / LOG
    both = start([*flags(small_pickle, tmp_path, "run", 5000), "--collective_timeout", "5"])
    try:
        wait_for(lambda: log.exists() and "valid mae" in log.read_text(), 120, "the run does not start")
    except AssertionError:
        both.kill()
        raise
    ranks = {environment_of(pid).get("RANK"): pid for pid in descendants(both.pid)}
    os.kill(ranks["1"], signal.SIGSTOP)
    try:
        wait_for(lambda: gone(ranks["0"]), 60, "rank 0 does not notice")
    finally:
        time.sleep(0.2)
        os.kill(ranks["1"], signal.SIGKILL)
    said, _ = both.communicate(timeout=60)
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "rank 0 waited for the others, for at most 5 s (--collective_timeout): rank 1 of 2 is missing" in line
    assert f"last good checkpoint: {tmp_path / 'run' / 'checkpoints' / 'epoch-'}" in line


def environment_of(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def gone(pid: int) -> bool:
    """Whether a process ended, reaped by its parent or not."""
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"
