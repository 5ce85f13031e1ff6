"""The same run on Ray Data and Ray Train, against the run in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from inspect import signature
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from cggm_ray.commands.cli import main
from cggm_ray.distributed.train import launch
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.state import WEIGHTS
from cggm_ray.engine.tracking import LOG, read_metrics
from conftest import SMALL, small_set, write_pickle

pytestmark = pytest.mark.ray
NO_DROPOUT = [flag for name in ("attn", "relu", "embed", "res", "out") for flag in (f"--{name}_dropout", "0")]
TIMES = {"seconds", "samples_per_second", "peak_memory"}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=2, log_to_driver=False)
    yield
    ray.shutdown()


def argv(pickle: Path, storage: Path, name: str, *flags: str) -> list[str]:
    return [*SMALL, *NO_DROPOUT, "--data_path", str(pickle), "--storage_path", str(storage), "--name", name, *flags]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The raw file, and the finished run in this process."""
    folder = tmp_path_factory.mktemp("reference")
    pickle = write_pickle(folder / "small.pkl", small_set())
    assert main(Config(), argv(pickle, folder, "run", "--local")) == 0
    return pickle, folder / "run"


def curves(run: Path) -> dict[str, np.ndarray]:
    lines = read_metrics(run)
    return {name: np.array([line[name] for line in lines], dtype=float) for name in lines[0] if name not in TIMES}


def test_one_worker_is_the_local_run_also_when_continued(reference: tuple[Path, Path], tmp_path: Path) -> None:
    pickle, local = reference
    assert main(Config(), argv(pickle, tmp_path, "run", "--num_epochs", "1")) == 0
    assert main(Config(), argv(pickle, tmp_path, "run")) == 0
    run = tmp_path / "run"
    assert {file.name for file in local.iterdir()} <= {file.name for file in run.iterdir()}
    assert (run / "best" / WEIGHTS).read_bytes() == (local / "best" / WEIGHTS).read_bytes()
    assert all(np.array_equal(values, curves(run)[name], equal_nan=True) for name, values in curves(local).items())
    assert json.loads((run / "summary.json").read_text()) == json.loads((local / "summary.json").read_text())
    # Ray Data wrote the same shards, byte for byte, as this process did.
    ours, theirs = (sorted((folder / "shards").rglob("*.parquet")) for folder in (tmp_path, local.parent))
    assert [file.read_bytes() for file in ours] == [file.read_bytes() for file in theirs]
    assert {path.name for path in (run / "checkpoints").iterdir()} == {
        path.name for path in (local / "checkpoints").iterdir()
    }


def test_two_workers_follow_one(reference: tuple[Path, Path], tmp_path: Path) -> None:
    pickle, local = reference
    assert main(Config(), argv(pickle, tmp_path, "run", "--workers", "2")) == 0
    want, got = curves(local), curves(tmp_path / "run")
    off = {
        name: (want[name], got[name]) for name in want if not np.allclose(want[name], got[name], rtol=1e-4, atol=1e-5)
    }
    assert not off
    best = load_file(tmp_path / "run" / "best" / WEIGHTS)
    for name, value in load_file(local / "best" / WEIGHTS).items():
        # The key third of the attention bias has a zero gradient; Adam moves it by rounding noise alone.
        if not name.endswith("in_proj_bias"):
            assert torch.allclose(best[name], value, rtol=1e-3, atol=1e-5), name
    predictions = [pq.read_table(run / "predictions.parquet").to_pandas() for run in (local, tmp_path / "run")]
    assert np.allclose(*(table["prediction"] for table in predictions), rtol=1e-3, atol=1e-4)
    assert list(predictions[0]["target"]) == list(predictions[1]["target"])


def test_a_worker_s_error_is_one_line_and_code_1(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = small_set()
    content["train"]["text"][3] = 3e38
    pickle = write_pickle(tmp_path / "huge.pkl", content)
    # Groups of workers have a fixed size before Ray 2.55.
    elastic = "elastic_resize_monitor_interval_s" in signature(launch.ScalingConfig).parameters
    assert main(Config(), argv(pickle, tmp_path, "run", "--workers", "1:2" if elastic else "1")) == 1
    # The same data make the same error: the workers were started once, not `max_failures` times.
    if elastic:
        assert (tmp_path / "run" / LOG).read_text().count("workers of 1:2") == 1
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("error: step ")
    assert "not finite" in line
    assert "seen on rank" in line


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--workers 3", "workers: 3 workers with 1 CPU each do not fit; the cluster has nodes with [2] CPUs"),
        ("--workers 1 --use_gpu", "workers: 1 workers with a GPU each; the cluster has 0 GPUs"),
    ],
)
def test_what_does_not_fit_is_said_at_once(
    reference: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str, expected: str
) -> None:
    assert main(Config(), argv(reference[0], tmp_path, "run", *flags.split())) == 2
    assert expected in capsys.readouterr().err
