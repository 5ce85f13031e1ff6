"""What is recorded of a run, and whether its checkpoint still has the recorded metrics."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cggm_ray.__main__ import main as command
from cggm_ray.commands.cli import main
from cggm_ray.core.seeding import make_deterministic, seed_all
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.state import WEIGHTS
from cggm_ray.runs.provenance import PROVENANCE, git_commit, note_start, read_provenance, typed
from conftest import SMALL, tamper

ROOT = Path(__file__).parents[2]


def train(pickle: Path, storage: Path, *flags: str) -> Path:
    places = ["--data_path", str(pickle), "--storage_path", str(storage), "--name", "run"]
    assert main(Config(), ["--local", *SMALL, *places, *flags]) == 0
    return storage / "run"


def test_every_start_has_a_line(small_pickle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCESS_TOKEN", "a-secret-of-this-test")
    train(small_pickle, tmp_path, "--num_epochs", "1")
    run = train(small_pickle, tmp_path)
    first, second = read_provenance(run)
    assert first["versions"]["torch"] == torch.__version__
    assert first["data"]["sources"].keys() == {str(small_pickle)}
    assert first["data"] == second["data"]
    assert (first["workers"], first["threads"]) == (1, 1)
    for file in run.rglob("*"):
        assert not file.is_file() or b"a-secret-of-this-test" not in file.read_bytes(), file


def test_the_commit_is_that_of_the_checkout(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None
    found = git_commit(Path(__file__).parent)
    assert found is None or len(found["commit"]) == 40


def test_a_run_is_verified_to_the_last_bit(
    small_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(small_pickle, tmp_path)
    assert command(["verify", str(run)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "equal to the last bit"
    entry = read_provenance(run)[-1]
    (run / PROVENANCE).write_text(json.dumps(entry | {"workers": 2}) + "\n")
    assert command(["verify", str(run)]) == 0
    assert "equal within 0.0001, because of other workers" in capsys.readouterr().out
    summary = json.loads((run / "summary.json").read_text())
    summary["test"]["mae"] *= 1 + 1e-3
    (run / "summary.json").write_text(json.dumps(summary))
    assert command(["verify", str(run)]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.endswith("differs")]
    assert line.split()[:2] == ["test", "mae"]


def test_other_weights_are_not_equal_and_damaged_ones_an_error(
    small_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(small_pickle, tmp_path, "--num_epochs", "1")
    tamper(run / "best", WEIGHTS, lambda weights: weights["head.weight"].add_(1e-3))
    assert command(["verify", str(run)]) == 1
    assert "not equal to the last bit" in capsys.readouterr().out
    (run / "best" / WEIGHTS).write_bytes((run / "best" / WEIGHTS).read_bytes()[:-1])
    assert command(["verify", str(run)]) == 1
    assert f"{run / 'best' / WEIGHTS}: this checkpoint cannot be used: damaged" in capsys.readouterr().err
    assert command(["verify", str(tmp_path)]) == 2
    assert "expected the folder of a finished run" in capsys.readouterr().err


def test_all_generators_are_seeded() -> None:
    def draw() -> tuple[float, float, float]:
        return torch.rand(()).item(), float(np.random.rand()), random.random()

    seed_all(2**62 + 5)
    first = draw()
    seed_all(2**62 + 5)
    assert draw() == first
    seed_all(2**62 + 6)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_deterministic_runs_are_the_same_bits(small_pickle: Path, tmp_path: Path) -> None:
    try:
        runs = [train(small_pickle, tmp_path / name, "--deterministic") for name in ("a", "b")]
        assert torch.are_deterministic_algorithms_enabled()
        make_deterministic()
    finally:
        torch.use_deterministic_algorithms(False)
    assert len({(run / "best" / WEIGHTS).read_bytes() for run in runs}) == 1


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("USER", "LOGNAME", "USERNAME")}
    return kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | changes


def start(folder: Path, *flags: str, before: str = "", **changes: str) -> subprocess.CompletedProcess[str]:
    """A local run whose process starts in a folder, after shell commands that spoil its surroundings."""
    command = shlex.join([sys.executable, str(ROOT / "pipelines" / "mosi.py"), "--local", *SMALL, *flags])
    script = f"cd {shlex.quote(str(folder))} && {before}exec {command}"
    return subprocess.run(
        ["/bin/sh", "-c", script], capture_output=True, text=True, env=environment(**changes), check=False
    )


SPOILT = {
    "the working directory is gone": ("rmdir ../cwd && ", {}),
    "git is not installed": ("", {"PATH": "/nonexistent"}),
    "git fails": ("", {"GIT_DIR": "/proc/self/environ"}),
    "the home folder cannot be read": ("", {"HOME": "/proc/self/environ", "XDG_CONFIG_HOME": "/proc/self/environ"}),
}


@pytest.mark.parametrize("name", SPOILT)
def test_provenance_never_ends_a_run(name: str, small_pickle: Path, tmp_path: Path) -> None:
    before, changes = SPOILT[name]
    (tmp_path / "cwd").mkdir()
    places = ["--data_path", str(small_pickle), "--storage_path", str(tmp_path / "runs"), "--name", "run"]
    done = start(tmp_path / "cwd", *places, "--num_epochs", "1", before=before, **changes)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    (entry,) = read_provenance(tmp_path / "runs" / "run")
    assert entry["git"] is None
    assert entry["versions"]["torch"] == torch.__version__
    assert entry["data"]["sources"].keys() == {str(small_pickle)}


def test_relative_paths_need_a_working_directory(small_pickle: Path, tmp_path: Path) -> None:
    (tmp_path / "cwd").mkdir()
    flags = ["--data_path", str(small_pickle), "--storage_path", "runs"]
    done = start(tmp_path / "cwd", *flags, before="rmdir ../cwd && ")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "error: storage_path: found the relative path 'runs', and the working directory does not exist"
    )


def test_a_checkout_of_another_owner_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(tmp_path), *author, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    found = git_commit(tmp_path)
    assert found is not None
    # What git's own tests set to see another owner.
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert git_commit(tmp_path) is None


def test_what_cannot_be_written_or_read_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / PROVENANCE).mkdir()
    note_start(tmp_path, Config(), tmp_path / "no-shards")
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f"{tmp_path / PROVENANCE} cannot be written: Is a directory; this start is not recorded"
    note_start(tmp_path.joinpath("run-folder-that-is-gone"), Config(), tmp_path)
    assert "No such file or directory; this start is not recorded" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["pipelines/mosi.py", "--name", "a b"], "python pipelines/mosi.py --name 'a b'"),
        (["/home/me/.venv/bin/cggm", "compare", "mosi"], "cggm compare mosi"),
        (["/home/me/cggm_ray/__main__.py", "compare"], "python -m cggm_ray compare"),
        (["/home/me/ipykernel_launcher.py", "-f", "/home/me/kernel.json"], "called from Python"),
        (["-c"], "called from Python"),
    ],
)
def test_a_command_is_shown_as_it_was_typed(argv: list[str], shown: str) -> None:
    assert typed(argv) == shown
