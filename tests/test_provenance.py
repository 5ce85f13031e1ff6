"""What is recorded of a run, and whether its checkpoint still has the recorded metrics."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from cggm_ray.__main__ import main as command
from cggm_ray.commands.cli import main
from cggm_ray.core.seeding import make_deterministic, seed_all
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.state import WEIGHTS
from cggm_ray.runs.provenance import PROVENANCE, git_commit, read_provenance
from conftest import SMALL, tamper


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
