"""The dataset in docs/own-dataset.md, as a person would save and run it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cggm_ray.folds import save_folds
from cggm_ray.train import Result

ROOT = Path(__file__).parents[1]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The code of the page, in a file."""
    text = (ROOT / "docs" / "own-dataset.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code.splitlines()) <= 70, "the page promises a short file"
    path = tmp_path / "sensors.py"
    path.write_text(code)
    return path


def summary(program: Path, *flags: str) -> dict[str, dict[str, float]]:
    """Runs the program for two epochs in a process of its own; the summary of the run."""
    runs = program.parent / "runs"
    command = [sys.executable, str(program), "--storage_path", str(runs), "--num_epochs", "2", "--name", "r", *flags]
    # Only the package's own root: what is next to the tests is not importable for a person either.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=program.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "best epoch" in done.stdout
    return json.loads((runs / "r" / "summary.json").read_text())


def test_page_runs_here(program: Path) -> None:
    found = summary(program, "--local", "--proj_dim", "10")
    assert found["epochs"] == 2
    table = pq.read_table(program.parent / "runs" / "r" / "predictions.parquet")
    assert table.num_rows == 16
    assert set(table.column("target").to_pylist()) == {0, 1}


@pytest.mark.ray
def test_page_runs_on_two_workers(program: Path) -> None:
    """A class that only the driver's main file has reaches the workers, in whose package it is not."""
    found = summary(program, "--workers", "2", "--cpus_per_worker", "1", "--proj_dim", "10")
    assert found["epochs"] == 2


def test_folds_are_summarised(tmp_path: Path) -> None:
    def result(accuracy: float) -> Result:
        return Result(folder=tmp_path, best_epoch=1, valid={"accuracy": 1.0}, test={"accuracy": accuracy})

    path = save_folds(tmp_path / "run", {"cv1": result(0.5), "cv2": result(0.7)})
    found = json.loads(path.read_text())["test"]["accuracy"]
    assert found["mean"] == pytest.approx(0.6)
    assert found["std"] == pytest.approx(0.2 / 2**0.5)
    assert found["folds"] == {"cv1": 0.5, "cv2": 0.7}
