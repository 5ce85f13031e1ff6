"""What a run prints before its data is read and before Ray is imported."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from feature_sets import as_npz

from cggm_ray.commands.cli import main
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.header import DEMONSTRATION
from cggm_ray.recipes.base import RECIPES
from conftest import SMALL


@pytest.mark.parametrize(("flags", "workers"), [((), "1 worker, CPU"), (("--workers", "2:4"), "2:4 workers, CPU")])
def test_they_come_before_ray(
    flags: tuple[str, ...],
    workers: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    printed: list[str] = []
    launch = SimpleNamespace(run_on_ray=lambda *arguments: printed.append(capsys.readouterr().out))
    monkeypatch.setitem(sys.modules, "cggm_ray.distributed.train.launch", launch)
    assert main(Config(), ["--storage_path", str(tmp_path), "--name", "first", "--modulation", "none", *flags]) == 0
    assert printed == [
        "run: first\n"
        f"  data        {DEMONSTRATION}\n"
        "  strategy    none\n"
        f"  runs on     Ray, {workers}\n"
        f"  folder      {tmp_path / 'first'}\n"
    ]


def test_the_rest_follows_and_the_log_has_all(
    small_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--local", "--data_path", str(small_pickle), "--storage_path", str(tmp_path), "--name", "first"]
    assert main(Config(), [*flags, *SMALL, "--num_epochs", "1", "--no_cuda", "--report", "false"]) == 0
    printed, log = capsys.readouterr().out, (tmp_path / "first" / "train.log").read_text()
    for text in (printed, log):
        assert text.count("run: first\n") == text.count(f"  data        {small_pickle}\n") == 1
        assert "  runs on     this process, CPU\n" in text
        assert "  device      cpu, 1 worker\n" in text
        assert text.index("  folder  ") < text.index("  samples ") < text.index("  length ") < text.index("epoch 1/1")


@pytest.mark.parametrize(("samples", "said"), [(30, True), (200, False)])
def test_few_samples_of_a_split_are_said(
    samples: int, said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    as_npz(
        tmp_path,
        {"image": rng.normal(size=(samples, 4)), "sound": rng.normal(size=(samples, 3)), "y": rng.normal(size=samples)},
    )
    flags = [
        "--local",
        "--data_path",
        str(tmp_path / "f.npz"),
        "--target",
        "y",
        "--task",
        "regression",
        "--max_steps",
        "2",
    ]
    assert main(RECIPES.get("features").config, [*flags, "--storage_path", str(tmp_path), "--report", "false"]) == 0
    text = "  few samples 3 valid and 3 test: so few that choices and metrics may be chance\n"
    assert (text in capsys.readouterr().out) == said


def test_the_table_has_arrows_with_quiet_too(
    small_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--local", "--data_path", str(small_pickle), "--storage_path", str(tmp_path), "--name", "first", "--quiet"]
    assert main(Config(), [*flags, *SMALL, "--num_epochs", "1", "--report", "false"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "best epoch 1"
    assert [line.split()[:2] for line in lines if "mae" in line or "corr" in line] == [["mae", "↓"], ["corr", "↑"]]
