"""The dataset in docs/own-dataset.md, as a person would save and run it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from programs import blocks, command, python

from cggm_ray.__main__ import main
from cggm_ray.runs.folds import save_folds
from cggm_ray.runs.result import Result


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The code of the page, in a file."""
    code, new = blocks("own-dataset.md")
    assert len(code.splitlines()) <= 70, "the page promises a short file"
    path = tmp_path / "own" / "sensors.py"
    path.parent.mkdir()
    code = code.replace("import RawShard", "import PREDICT, RawShard").replace(
        "\n\nRECIPE", f"{new.partition(chr(10))[2]}\n\nRECIPE"
    )
    path.write_text(code)
    return path


def summary(program: Path, *flags: str) -> dict[str, dict[str, float]]:
    """Runs the program for two epochs in a process of its own; the summary of the run."""
    runs = program.parent.parent / "runs"
    done = python(program.parent, str(program), "--storage_path", str(runs), "--num_epochs", "2", "--name", "r", *flags)
    assert "best epoch" in done.stdout
    return json.loads((runs / "r" / "summary.json").read_text())


def test_page_runs_here(program: Path) -> None:
    found = summary(program, "--local", "--proj_dim", "10")
    assert found["epochs"] == 2
    table = pq.read_table(program.parent.parent / "runs" / "r" / "predictions.parquet")
    assert table.num_rows == 16
    assert set(table.column("target").to_pylist()) == {0, 1}


@pytest.mark.slow
def test_commands_know_the_class_of_a_run(program: Path, tmp_path: Path) -> None:
    """Each in a fresh process; the new recordings have neither labels nor splits, and the run's own data is gone."""
    summary(program, "--local", "--proj_dim", "10", "--report", "false")
    run = tmp_path / "runs" / "r"
    assert "equal to the last bit" in command(tmp_path, "verify", str(run)).stdout
    assert "equal to the network" in command(tmp_path, "export", str(run)).stdout
    assert (tmp_path / command(tmp_path, "report", str(run)).stdout.strip()).exists()
    recordings = sorted((tmp_path / "runs" / "demonstration").rglob("test/*.csv"))[:5]
    new = tmp_path / "new"
    new.mkdir()
    for number, file in enumerate(recordings):
        shutil.copy(file, new / f"{number}.csv")
    for folder in ("demonstration", "shards"):
        shutil.rmtree(tmp_path / "runs" / folder)
    done = command(tmp_path, "predict", str(run), "--data_path", str(new))
    assert f"imports {program}, which registered the dataset sensors" in done.stderr
    assert [line.split() for line in done.stdout.splitlines()[:-1]] == [["predicted", "5"], ["labelled", "0"]]
    found, tested = (pq.read_table(run / name) for name in ("predictions-new.parquet", "predictions.parquet"))
    assert np.allclose(found["prediction"].to_pylist(), tested["prediction"].to_pylist()[:5], atol=1e-6)
    assert set(found["class"].to_pylist()) <= {"calm", "stress"}
    # The file has moved.
    moved = program.rename(tmp_path / "elsewhere.py")
    (line,) = command(tmp_path, "predict", str(run), "--data_path", str(new), code=2).stderr.splitlines()
    assert str(program) in line
    assert "--import FILE" in line
    command(tmp_path, "predict", str(run), "--data_path", str(new), "--import", str(moved), "--out", "again.parquet")
    assert pq.read_table(tmp_path / "again.parquet").equals(found)


@pytest.mark.slow
@pytest.mark.ray
def test_the_class_of_a_run_reaches_the_workers_of_a_prediction(program: Path, tmp_path: Path) -> None:
    summary(program, "--local", "--proj_dim", "10", "--report", "false")
    run, new = tmp_path / "runs" / "r", tmp_path / "new"
    new.mkdir()
    for number, file in enumerate(sorted((tmp_path / "runs" / "demonstration").rglob("test/*.csv"))):
        shutil.copy(file, new / f"{number:02d}.csv")
    moved = program.rename(tmp_path / "elsewhere.py")
    flags = ["--data_path", str(new), "--import", str(moved), "--out"]
    command(tmp_path, "predict", str(run), *flags, "ray.parquet", "--ray", "--workers", "2")
    command(tmp_path, "predict", str(run), *flags, "here.parquet")
    ours, theirs = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("here", "ray"))
    assert ours["id"].equals(theirs["id"])
    assert np.allclose(ours["prediction"].to_pylist(), theirs["prediction"].to_pylist(), rtol=1e-6, atol=1e-7)


def test_a_file_that_is_no_module_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = "from cggm_ray.commands.cli import main\nfrom cggm_ray.engine.configuration import Config\nimport sys\n"
    for text, wanted in (
        ("x = (", "SyntaxError"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        (recipe + "sys.exit(main(Config()))", "starts a run when it is imported"),
        (None, "does not exist; expected a Python file"),
    ):
        path = tmp_path / f"own{len(wanted)}.py"
        if text is not None:
            path.write_text(text)
        assert main(["verify", str(tmp_path), "--import", str(path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert wanted in line
        assert str(path) in line


@pytest.mark.slow
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
