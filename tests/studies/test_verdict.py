"""The verdict in the documentation is what its recorded runs say, and they are those that were registered."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cggm_ray.__main__ import main
from cggm_ray.studies.bench import FILE, read_bench
from cggm_ray.studies.bench_results import RESULTS, SETS, TRIALS, read_results

ROOT = Path(__file__).parents[2]
SCIENCE = ROOT / "benchmarks" / "science"
RECORDED = SCIENCE / "results" / "verdict"


def test_the_page_says_what_the_runs_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (FILE, SETS, TRIALS, RESULTS):
        shutil.copy(RECORDED / name, tmp_path / name)
    assert main(["bench", str(tmp_path), "--page"]) == 0
    assert Path(capsys.readouterr().out.strip()).exists()
    assert (tmp_path / "leaderboard.md").read_text().strip() in (ROOT / "docs" / "verdict.md").read_text()


def test_what_was_run_is_what_was_registered(tmp_path: Path) -> None:
    """Without data the command that was registered writes the same file with fewer sets."""
    command = [sys.executable, str(SCIENCE / "verdict.py"), "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    registered = read_bench(tmp_path / "out" / "verdict.yaml")
    ran, found = read_bench(RECORDED / FILE), read_results(RECORDED)
    # Removed afterwards, as the registration says of an arm that is not better.
    removed = ran.arms.keys() - registered.arms.keys()
    assert removed == {"cggm-edge"}
    assert {name: ran.arms[name] for name in registered.arms} == dict(registered.arms)
    assert (dict(ran.space), ran.trials, ran.search_seed) == (dict(registered.space), registered.trials, 0)
    assert ran.seeds == registered.seeds
    assert [pair for pair in ran.questions if not removed & {*pair}] == [*registered.questions]
    assert {seed for _, _, seed in found.runs} <= set(registered.seeds)
    for name in {name for name, _, _ in found.runs}:
        for arm in ran.arms:
            # The search of an arm without a run need not be over.
            if any((name, arm) == (s, a) for s, a, _ in found.runs):
                assert sorted(n for s, a, n in found.trials if (s, a) == (name, arm)) == list(range(ran.trials))


def test_the_benchmark_of_the_paper_can_be_read() -> None:
    bench = read_bench(SCIENCE / "paper.yaml")
    assert set(bench.sets) == {"mosi", "iemocap", "food101", "brats"}
    assert bench.baseline == "none"
