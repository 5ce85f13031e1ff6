"""Small raw data, and the flags of a network that trains in milliseconds."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import browser  # noqa: F401
from hypothesis import HealthCheck, settings
from s3_server import bucket, s3_endpoint  # noqa: F401
from safetensors.torch import load_file, save_file

from cggm_ray.data.datasets.mosi import planted_imbalance
from cggm_ray.storage.digests import FILE
from cggm_ray.storage.files import copy_files, write_folder

DATA = Path(os.environ.get("CGGM_DATA", Path(__file__).parents[2] / "shared" / "data"))

SMALL = [
    *("--nlevels", "3", "--cls_layers", "1", "--num_heads", "2", "--proj_dim", "8"),
    *("--batch_size", "5", "--num_epochs", "2", "--cpus_per_worker", "1"),
    # Drawing takes longer than such a run. Tests of the page ask for it.
    *("--report", "false", "--headroom", "false"),
]
"""Flags for a small network on the data of `small_set`."""

torch.set_num_threads(1)
# What is tested are numbers; a busy machine takes as long as it takes.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


def small_set(seed: int = 3) -> dict[str, dict[str, Any]]:
    """22, 9 and 7 samples of 4 time steps, in the released layout. 22 makes a last batch of 2 at batch size 5."""
    return planted_imbalance(seed, samples={"train": 22, "valid": 9, "test": 7}, steps=4)


def tamper(folder: Path, file: str, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Changes tensors of a checkpoint, and its checksums with them."""

    def write(partial: Path) -> None:
        copy_files(folder, partial)
        tensors = load_file(partial / file)
        change(tensors)
        save_file(tensors, partial / file)

    write_folder(folder, write)


def sets(shards: Path) -> list[Path]:
    """What the folder of shards holds, finished or not, but for the checksums of raw files."""
    return [path for path in shards.glob("*") if path.name != FILE]


def write_pickle(path: Path, content: object) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path


@pytest.fixture(autouse=True, scope="module")
def no_cluster_is_left() -> Iterator[None]:
    """A pipeline leaves the cluster that it started running; the next test file starts without one."""
    yield
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()


@pytest.fixture
def small_pickle(tmp_path: Path) -> Path:
    return write_pickle(tmp_path / "small.pkl", small_set())


@pytest.fixture(scope="session")
def real_mosi() -> Path:
    path = DATA / "mosi" / "mosi_data_noalign.pkl"
    if not path.exists():
        pytest.skip(f"{path} is not there (set CGGM_DATA)")
    return path
