"""Benchmarks: their files, the statistics of their page, and what a start after a kill adds."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from programs import blocks
from scipy import stats
from waiting import wait_for

from cggm_ray.__main__ import main
from cggm_ray.core.errors import UsageError
from cggm_ray.report.leaderboard import sentence, write_leaderboard
from cggm_ray.studies.bench import FILE, read_bench, write_bench
from cggm_ray.studies.bench_results import (
    MEMORY,
    RESULTS,
    SECONDS,
    STEPS,
    TEST,
    TRIALS,
    Results,
    Standing,
    Tried,
    answers,
    read_results,
    relative_cost,
    relative_memory,
    save_standings,
)
from cggm_ray.studies.headroom import Headroom

SMALL = {
    "seeds": [3, 4],
    "trials": 2,
    "space": {"lr": {"loguniform": [1e-3, 1e-2]}, "max_steps": {"choice": [4, 8]}},
    "sets": {"one": {"recipe": "features"}, "two": {"recipe": "features", "by_seed": {"split_seed": "{seed}"}}},
    "arms": {"none": {}, "cggm": {"space": {"rho": {"uniform": [0.8, 2.0]}}}},
}


def written(folder: Path, **changes: object) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    return path


def write_data(folder: Path, name: str, seed: int) -> str:
    random = np.random.default_rng(seed)
    label = np.arange(60) % 3
    a, b = (random.normal(size=(60, 4)) + scale * np.eye(4)[label] for scale in (2.0, 1.0))
    np.savez(folder / name, a=a.astype(np.float32), b=b.astype(np.float32), label=label)
    return str(folder / name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A benchmark of two sets."""
    common = {"preset": "quick", "max_steps": 6, "valid_interval": 2, "width": 8, "standardise": "on"}
    flags = [{**common, "data_path": write_data(tmp_path, f"{n}.npz", n)} for n in (1, 2)]
    sets = {name: {**part, "flags": own} for (name, part), own in zip(SMALL["sets"].items(), flags, strict=True)}
    return written(tmp_path, sets=sets)


def test_a_file_is_read_and_written(tmp_path: Path) -> None:
    bench = read_bench(written(tmp_path, seeds="5-7", questions=["cggm - none"]))
    assert (bench.name, bench.seeds, bench.baseline) == ("small", (5, 6, 7), "none")
    assert bench.arms["cggm"].flags == {"modulation": "cggm"}
    assert bench.questions == (("cggm", "none"),)
    assert bench.sets["two"].seeded(7) == {"seed": 7, "split_seed": 7}
    write_bench(tmp_path, bench)
    assert read_bench(tmp_path / FILE) == bench
    more = read_bench(written(tmp_path, seeds="5-9", arms={**SMALL["arms"], "mlb": {}}))
    assert bench.differences(more) == []
    assert bench.differences(read_bench(written(tmp_path, trials=3, arms={"none": {"flags": {"lr": 1}}}))) == [
        "trials",
        "arms: none",
    ]


def test_the_file_of_the_page_is_one(tmp_path: Path) -> None:
    (text,) = blocks("bench.md", "yaml")
    (tmp_path / "small.yaml").write_text(text)
    assert len(read_bench(tmp_path / "small.yaml").questions) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arm": {}}, "unknown key 'arm' (did you mean arms?)"),
        ({"arms": {}}, "arms: found none"),
        ({"arms": {"a b": {}}}, "arms: found the name 'a b'"),
        ({"sets": {"one": {}}}, "sets: one: recipe: found None"),
        ({"sets": {"one": {"recipe": "features", "by_seed": {"split": "x"}}}}, "sets: one: by_seed: split: found 'x'"),
        ({"seeds": [1, 1]}, "seeds: found [1, 1]; expected different whole numbers"),
        ({"seeds": None}, "seeds: found None"),
        ({"trials": -1}, "trials: found -1"),
        ({"trials": 0}, "a search needs both trials and a space"),
        ({"baseline": "non"}, "baseline: unknown arm 'non' (did you mean none?)"),
        ({"questions": ["cggm-none"]}, "questions: found 'cggm-none'; expected two arms"),
        ({"name": "a/b"}, "name: found 'a/b'"),
    ],
)
def test_a_file_that_cannot_be_is_one_line(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as error:
        read_bench(written(tmp_path, **changes))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sets": {"one": {"recipe": "feature"}}}, "unknown recipe 'feature' (did you mean features?)"),
        ({"arms": {"none": {}, "cgm": {}}}, "unknown strategy 'cgm' (did you mean cggm?"),
        ({"space": {"lr": {"grid": [0.1, 0.2]}}}, "a grid is no equal budget"),
        ({"space": {"rat": {"choice": [1]}}}, "space: unknown key 'rat'"),
        ({"preset": "good"}, "preset: found good, which is a search of its own"),
    ],
)
def test_what_cannot_run_is_refused_before_any_run(
    file: Path, tmp_path: Path, changes: dict[str, object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load(file.read_text())
    if "preset" in changes:
        content["sets"]["one"]["flags"] |= changes
    else:
        content |= changes
    file.write_text(yaml.safe_dump(content))
    assert main(["bench", str(file), "--local", "--storage_path", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("small/*/search"))


def results() -> tuple[Results, dict[str, Standing]]:
    random, found = np.random.default_rng(0), Results()
    for name, gain in (("one", 0.05), ("two", 0.0), ("three", 0.2)):
        for seed in range(6):
            level = random.normal(0.8, 0.02)
            for arm, value in (("none", level), ("cggm", level + gain + random.normal(0, 0.01))):
                seconds = 2.0 if arm == "none" else 3.0
                found.runs[name, arm, seed] = {TEST + "accuracy": value, SECONDS: seconds, STEPS: 10.0}
    rooms = {"one": True, "two": None, "three": False}
    return found, {
        name: Standing(
            metric="accuracy", better="max", headroom=Headroom(metric="accuracy", better="max", rows=[], room=r)
        )
        for name, r in rooms.items()
    }


def test_answers_against_scipy() -> None:
    """A set without room has a difference and takes no part in the correction."""
    found, standings = results()
    given = {a.name: a for a in answers(found, standings, ("cggm", "none"))}
    p = {}
    for name in standings:
        ours, theirs = (list(found.of(name, arm, TEST + "accuracy").values()) for arm in ("cggm", "none"))
        p[name] = float(stats.ttest_rel(ours, theirs).pvalue)
        assert given[name].change.mean == pytest.approx(float(np.mean(ours) - np.mean(theirs)))
        assert given[name].change.p == pytest.approx(p[name])
    small, large = sorted((p["one"], p["two"]))
    corrected = sorted(given[name].change.p_holm for name in ("one", "two"))
    assert corrected == pytest.approx([2 * small, max(2 * small, large)])
    assert given["three"].change.p_holm is None
    assert not given["three"].counted
    text = sentence(("cggm", "none"), list(given.values()))
    assert "of 2 sets" in text
    assert "better beyond chance on one" in text


def test_the_page_is_made_from_the_files_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, standings = results()
    arms = {"none": {}, "cggm": {}}
    sets = {name: {"recipe": "features"} for name in standings}
    bench = read_bench(written(tmp_path, sets=sets, arms=arms, trials=0, space={}))
    assert relative_cost(found, bench, "one", "cggm") == pytest.approx(1.5)
    assert relative_memory(found, bench, "one", "cggm") is None
    for arm, peak in (("none", 400.0), ("cggm", 500.0)):
        for (name, each, _), run in found.runs.items():
            run |= {MEMORY: peak} if (name, each) == ("one", arm) else {}
    assert relative_memory(found, bench, "one", "cggm") == pytest.approx(1.25)
    folder = tmp_path / "folder"
    found.trials["one", "none", 0] = Tried(status="finished", value=0.5, changes={"lr": 0.1})
    found.save(folder)
    assert read_results(folder) == found
    save_standings(folder, standings)
    write_bench(folder, bench)
    first = write_leaderboard(folder, bench, found, standings).read_text()
    assert main(["bench", str(folder), "--page"]) == 0
    assert Path(capsys.readouterr().out.strip()).read_text() == first
    assert "three, accuracy ↑ (no room)" in first
    assert "\\toprule" in (folder / "leaderboard.tex").read_text()
    (folder / RESULTS).write_text("set,arm\n")
    assert main(["bench", str(folder), "--page"]) == 2
    assert "found the columns set, arm" in capsys.readouterr().err


def numbers(folder: Path) -> list[list[str]]:
    """All rows of both files but for those about time and memory."""
    rows = []
    for name in (TRIALS, RESULTS):
        with (folder / name).open() as file:
            rows += [row for row in csv.reader(file) if not {SECONDS, MEMORY} & set(row)]
    return rows


@pytest.mark.slow
def test_killed_twice_it_ends_with_the_same_table(file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cggm_ray", "bench", str(file), "--local", "--storage_path"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    whole = tmp_path / "whole" / "small"
    assert len(read_results(whole).runs) == 2 * 2 * 2
    assert len(read_results(whole).trials) == 2 * 2 * 2
    killed = tmp_path / "killed"
    for marker in ("one/search/trials/cggm-trial-000/metrics.jsonl", "two/seeds/trials/none-seed-3/metrics.jsonl"):
        process = subprocess.Popen([*command, str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for((killed / "small" / marker).exists, f"no {marker}", by=process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*command, str(killed)], check=True, capture_output=True)
    assert numbers(killed / "small") == numbers(whole)
    # What is in the files needs no folder any more.
    for part in ("one", "two"):
        os.rename(whole / part, tmp_path / f"gone-{part}")
    before = (whole / RESULTS).read_text()
    done = subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True, text=True)
    assert "trial-" not in done.stdout
    assert (whole / RESULTS).read_text() == before
