"""The verdict in the documentation is what its recorded runs say, and they are those that were registered."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from cggm_ray.__main__ import main
from cggm_ray.studies.bench import FILE, MINUS, read_bench
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


def test_what_was_run_is_what_was_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCIENCE))
    import verdict

    ran, found = read_bench(RECORDED / FILE), read_results(RECORDED)
    assert {name: dict(arm.space) for name, arm in ran.arms.items()} == {
        name: dict(arm.get("space", {})) for name, arm in verdict.ARMS.items()
    }
    assert (dict(ran.space), ran.trials, ran.search_seed) == (verdict.SPACE, verdict.TRIALS, verdict.SEARCH_SEED)
    assert ran.seeds == tuple(verdict.SEEDS)
    assert tuple(MINUS.join(pair) for pair in ran.questions) == verdict.QUESTIONS
    assert {seed for _, _, seed in found.runs} <= set(verdict.SEEDS)
    for name in {name for name, _, _ in found.runs}:
        for arm in ran.arms:
            assert sorted(n for s, a, n in found.trials if (s, a) == (name, arm)) == list(range(verdict.TRIALS))
    sys.modules.pop("verdict")


def test_the_benchmark_of_the_paper_can_be_read() -> None:
    bench = read_bench(SCIENCE / "paper.yaml")
    assert set(bench.sets) == {"mosi", "iemocap", "food101", "brats"}
    assert bench.baseline == "none"
