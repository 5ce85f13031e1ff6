"""Several processes under torchrun: they stop at the same step, and say who is missing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from waiting import wait_for

from cggm_ray.commands.cli import main
from cggm_ray.engine.checkpoints import Checkpoints
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.tracking import read_metrics
from conftest import SMALL

ROOT = Path(__file__).parents[2]
PROGRAM = """
import os, runpy, signal, sys
from datetime import timedelta
import torch
import torch.distributed as dist
from cggm_ray.engine import loop as train

take, rank = train.train_step, int(os.environ["RANK"])

def acting(state, *rest, **named):
    {act}
    return take(state, *rest, **named)

train.train_step = acting
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
HANG = """
if state.epoch == 1 and rank == 1:
    print(f"process {os.getpid()} hangs", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
if state.epoch == 1 and rank == 0:
    group = dist.distributed_c10d._get_default_group()
    assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(seconds=3000)
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=1))
"""
DROPOUTS = [flag for name in ("attn", "relu", "embed", "res", "out") for flag in (f"--{name}_dropout", "0")]


def flags(pickle: Path, storage: Path, name: str, epochs: int) -> list[str]:
    places = ["--data_path", str(pickle), "--storage_path", str(storage), "--name", name]
    return [*SMALL, *DROPOUTS, *places, "--num_epochs", str(epochs), "--log_interval", "1"]


@contextmanager
def started(tmp_path: Path, act: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Two processes under torchrun that run `act` before every step; their output goes to the file `said`."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(act=textwrap.indent(act, "    ").strip()))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(program)]
    with (tmp_path / "said").open("w") as said:
        both = subprocess.Popen(
            [*command, str(ROOT / "pipelines" / "mosi.py"), *arguments],
            stdout=said,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    try:
        yield both
    finally:
        both.kill()
        both.wait()


def test_two_stop_at_the_same_step_and_one_goes_on(small_pickle: Path, tmp_path: Path) -> None:
    # The signal comes to one of the two only: they agree.
    act = "if rank == 1 and state.step == 3:\n    signal.raise_signal(signal.SIGTERM)"
    with started(tmp_path, act, *flags(small_pickle, tmp_path, "run", 10**6)) as both:
        both.wait()
    said = (tmp_path / "said").read_text()
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


@pytest.mark.slow
def test_a_process_that_hangs_is_named(small_pickle: Path, tmp_path: Path) -> None:
    """It hangs at a step, and only from that step on the other one has a limit that is short."""
    arguments = [*flags(small_pickle, tmp_path, "run", 10), "--collective_timeout", "3000"]
    said = tmp_path / "said"
    with started(tmp_path, HANG, *arguments) as both:
        try:
            wait_for(lambda: "error: " in said.read_text(), f"rank 0 does not notice, see {said}", by=both)
        finally:
            for pid in re.findall(r"^process (\d+) hangs$", said.read_text(), re.MULTILINE):
                os.kill(int(pid), signal.SIGKILL)
        both.wait()
    (line,) = [line for line in said.read_text().splitlines() if line.startswith("error: ")]
    assert "rank 0 waited for the others, for at most 3000 s (--collective_timeout): rank 1 of 2 is missing" in line
    assert f"last good checkpoint: {tmp_path / 'run' / 'checkpoints' / 'epoch-00001'}" in line
