"""What follows the test of a run: the table first, then work that the first signal leaves out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cggm_ray.__main__ import main as command
from cggm_ray.commands.cli import main
from cggm_ray.engine.configuration import Config
from cggm_ray.runs.contributions import BALANCE, Contributions
from conftest import SMALL

ROOT = Path(__file__).parents[2]
TINY = ["--num_epochs", "1", "--backbone", "resnet18", "--crop", "32", "--batch_size", "4", "--warmup_epochs", "0"]
"""BraTS on its demonstration set: scoring the subsets takes longer than training."""


def start(folder: Path, *flags: str) -> subprocess.Popen[str]:
    pipeline = [sys.executable, "-u", str(ROOT / "pipelines" / "brats.py")]
    return subprocess.Popen(
        [*pipeline, *TINY, "--cpus_per_worker", "1", "--storage_path", str(folder), "--name", "run", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "RAY_ADDRESS": "local"},
    )


def lines_until(process: subprocess.Popen[str], beginning: str) -> list[str]:
    """What the process prints, up to the line that begins so."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if line.startswith(beginning):
            return lines
    raise AssertionError(f"{beginning!r} was not printed: {lines} {process.communicate()[1]}")


def check_finished(run: Path, before: list[str], after: str) -> None:
    """The table was there before the signal, and the run is a finished one."""
    table = before.index("best epoch 1 on demonstration data, which was generated")
    assert before[table + 1].split() == ["valid", "test"]
    summary = json.loads((run / "summary.json").read_text())
    row = ["dice_mean", "↑", *(f"{summary[split]['dice_mean']:.4f}" for split in ("valid", "test"))]
    assert row in [line.split() for line in before]
    assert f"{run} is finished; what was left to do after the test was left out" in after
    assert "drawing the report" not in after
    assert not (run / "report").exists()
    if (run / BALANCE).exists():
        assert Contributions.load(run / BALANCE).missing
    assert command(["report", str(run), "--no_contributions"]) == 0
    assert (run / "report" / "report.html").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_leaves_out_what_follows_the_test(number: signal.Signals, tmp_path: Path) -> None:
    process = start(tmp_path, "--local", "--overlays", "1", "--contributions_seconds", "3600")
    before = lines_until(process, "scoring 16 subsets of the modalities, for at most 3600 s")
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "the run is finished; what is left is left out" in err
    assert "subsets were left out" in out
    assert before.index("best epoch 1 on demonstration data, which was generated") < before.index(
        "drawing pictures of test cases"
    )
    check_finished(tmp_path / "run", before, out)


@pytest.mark.slow
@pytest.mark.ray
def test_a_signal_leaves_it_out_on_ray_too(tmp_path: Path) -> None:
    process = start(tmp_path, "--overlays", "0", "--contributions_seconds", "3600")
    before = lines_until(process, "scoring 16 subsets of the modalities, for at most 3600 s")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode == 0, err
    check_finished(tmp_path / "run", before, out)


def run(pickle: Path, storage: Path, *flags: str) -> list[str]:
    places = ["--data_path", str(pickle), "--storage_path", str(storage), "--name", "run"]
    return ["--local", *SMALL, *places, "--num_epochs", "1", "--report", "true", *flags]


def test_no_seconds_score_nothing(small_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(Config(), run(small_pickle, tmp_path, "--contributions_seconds", "0")) == 0
    printed = capsys.readouterr().out.splitlines()
    assert not any("subsets" in line for line in printed)
    assert printed.index("best epoch 1") < printed.index("drawing the report (--report false leaves it out)")
    assert printed[-1].split() == ["report:", str(tmp_path / "run" / "report" / "report.html")]
    assert not (tmp_path / "run" / BALANCE).exists()
    # The command leaves them out too where it is told to, and scores them where it is not.
    assert command(["report", str(tmp_path / "run"), "--no_contributions"]) == 0
    assert not (tmp_path / "run" / BALANCE).exists()
    assert command(["report", str(tmp_path / "run")]) == 0
    assert not Contributions.load(tmp_path / "run" / BALANCE).missing


def test_the_page_says_what_is_missing(small_pickle: Path, tmp_path: Path) -> None:
    assert main(Config(), run(small_pickle, tmp_path)) == 0
    path = tmp_path / "run" / BALANCE
    whole = Contributions.load(path)
    content = json.loads(path.read_text())
    content |= {"scores": content["scores"][:3], "missing": [line["present"] for line in content["scores"][3:]]}
    path.write_text(json.dumps(content | {"shapley": {}, "imbalance": None}))
    assert command(["report", str(tmp_path / "run"), "--no_contributions"]) == 0
    text = (tmp_path / "run" / "report" / "report.html").read_text()
    assert "5 of 8 subsets of modalities were not scored" in text
    assert "Imbalance degree" not in text
    assert command(["report", str(tmp_path / "run")]) == 0
    assert Contributions.load(path) == whole


def test_a_signal_while_the_page_is_drawn_leaves_it_out(
    small_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal did not end this")

    monkeypatch.setattr("cggm_ray.report.page.write_page", draw)
    before = signal.getsignal(signal.SIGTERM)
    assert main(Config(), run(small_pickle, tmp_path)) == 0
    assert signal.getsignal(signal.SIGTERM) is before
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == f"{tmp_path / 'run'} is finished; what was left to do after the test was left out"
    assert "best epoch 1" in printed
