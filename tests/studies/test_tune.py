"""Searches on Ray Tune: what they leave, what a killed one repeats, and what population based training exchanges."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from waiting import wait_for

from cggm_ray.commands.cli import main
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.state import WEIGHTS
from cggm_ray.engine.tracking import read_metrics
from conftest import SMALL, small_set, write_pickle

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
SPACE: dict[str, Any] = {"rho": {"uniform": [0.8, 2.0]}, "lr": {"loguniform": [1e-4, 1e-2]}}
WHOLE = {"trials": 3, "scheduler": {"name": "none", "max_epochs": 3}, "space": SPACE}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=4, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pickle(tmp_path_factory.mktemp("raw") / "small.pkl", small_set())


def argv(raw: Path, storage: Path, search: dict[str, Any], *flags: str) -> list[str]:
    storage.mkdir(exist_ok=True)
    file = storage / "given.yaml"
    file.write_text(yaml.safe_dump(search, sort_keys=False))
    places = ["--data_path", str(raw), "--storage_path", str(storage), "--name", "search", "--tune", str(file)]
    return [*SMALL, *places, *flags]


def run(raw: Path, storage: Path, search: dict[str, Any], *flags: str) -> Path:
    assert main(Config(), argv(raw, storage, search, *flags)) == 0
    return storage / "search"


def table(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "trials.csv").open() as file:
        return {row["trial"]: row for row in csv.DictReader(file)}


def starts(folder: Path) -> dict[str, list[dict[str, float]]]:
    records = (json.loads(path.read_text()) for path in sorted(folder.glob("trials/*/trial.json")))
    return {record["name"]: record["starts"] for record in records}


@pytest.fixture(scope="module")
def undisturbed(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search without a scheduler, so that what each trial does depends on nothing else."""
    return run(raw, tmp_path_factory.mktemp("undisturbed"), WHOLE, "--report", "true")


def test_what_a_search_leaves(raw: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = table(undisturbed)
    assert list(rows) == ["trial-000", "trial-001", "trial-002"]
    assert {row["status"] for row in rows.values()} == {"finished"}
    best = min(rows, key=lambda name: float(rows[name]["best_mae"]))
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert summary["trial"] == best
    assert summary["valid"]["mae"] == pytest.approx(float(rows[best]["best_mae"]), abs=1e-12)
    # Only the best trial ever saw the test split.
    assert [path.parent.name for path in undisturbed.glob("trials/*/summary.json")] == [best]
    assert (undisturbed / "best" / WEIGHTS).read_bytes() == (
        undisturbed / "trials" / best / "best" / WEIGHTS
    ).read_bytes()
    assert (
        f"validation mean absolute error {summary['value']:.4f}" in (undisturbed / "report" / "report.html").read_text()
    )
    for picture in ("parameters.png", "curves.png"):
        assert (undisturbed / "pictures" / picture).read_bytes().startswith(b"\x89PNG")

    # The best configuration, run by itself, is the trial.
    storage = undisturbed.parent / "again"
    flags = ["--config", str(undisturbed / "best.yaml"), "--storage_path", str(storage), "--name", "run", "--local"]
    assert main(Config(), [*flags, "--cpus_per_worker", "1"]) == 0
    times = {"seconds", "samples_per_second", "peak_memory"}
    ours, theirs = (
        [{k: v for k, v in line.items() if k not in times} for line in read_metrics(folder)]
        for folder in (storage / "run", undisturbed / "trials" / best)
    )
    assert ours == theirs
    assert json.loads((storage / "run" / "summary.json").read_text())["test"] == summary["test"]


def test_a_finished_search_is_told_again_and_not_run_again(
    raw: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (starts(undisturbed), table(undisturbed), json.loads((undisturbed / "summary.json").read_text()))
    run(raw, undisturbed.parent, WHOLE)
    assert before == (starts(undisturbed), table(undisturbed), json.loads((undisturbed / "summary.json").read_text()))
    assert all(len(entries) == 1 for entries in before[0].values())
    more = WHOLE | {"trials": 4}
    run(raw, undisturbed.parent, more)
    assert {name: len(entries) for name, entries in starts(undisturbed).items()} == {
        f"trial-00{number}": 1 for number in range(4)
    }
    other = WHOLE | {"space": SPACE | {"rho": {"uniform": [0.8, 1.9]}}}
    assert main(Config(), argv(raw, undisturbed.parent, other)) == 2
    assert "holds a search with another space; choose another --name" in capsys.readouterr().err


def test_asha_stops_trials_and_their_epochs_are_counted(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scheduler = {"name": "asha", "max_epochs": 4, "grace_period": 1, "reduction_factor": 2}
    # A rate that learns nothing loses every comparison.
    space = {"rho": SPACE["rho"], "lr": {"grid": [1e-2, 5e-3, 1e-9, 2e-9]}}
    folder = run(raw, tmp_path, {"scheduler": scheduler, "space": space, "concurrent": 1})
    rows = table(folder)
    assert rows["trial-000"]["status"] == "finished"
    assert "stopped" in {rows["trial-002"]["status"], rows["trial-003"]["status"]}
    for name, row in rows.items():
        assert int(row["epochs"]) == len(read_metrics(folder / "trials" / name))
        assert (row["status"] == "finished") == (int(row["epochs"]) == 4)
    epochs = sum(int(row["epochs"]) for row in rows.values())
    assert epochs < 16
    assert f"{epochs} of 16 epochs trained" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_driver_goes_on_with_the_same_command(raw: Path, undisturbed: Path, tmp_path: Path) -> None:
    """The driver dies together with its cluster; what was over stays, what ran goes on, the table is that of the whole."""
    command = [sys.executable, str(ROOT / "pipelines" / "mosi.py"), *argv(raw, tmp_path, WHOLE | {"concurrent": 1})]
    environment = os.environ | {"RAY_ADDRESS": "local"}
    driver = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    folder = tmp_path / "search"

    def statuses() -> list[str]:
        return [json.loads(path.read_text())["status"] for path in folder.glob("trials/*/trial.json")]

    try:
        wait_for(lambda: "finished" in statuses(), "no trial ends", by=driver)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    over = [path for path in folder.glob("trials/*/trial.json") if "finished" in path.read_text()]
    untouched = {path: path.stat().st_mtime_ns for found in over for path in found.parent.glob("metrics.jsonl")}
    assert untouched
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = table(folder)
    assert {row["status"] for row in rows.values()} == {"finished"}
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched
    reference = table(undisturbed)
    assert {name: row["best_mae"] for name, row in rows.items()} == {name: reference[name]["best_mae"] for name in rows}


@pytest.mark.slow
def test_optuna_goes_on_where_it_was(raw: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    search = {"trials": 2, "searcher": "optuna", "scheduler": {"name": "none", "max_epochs": 1}, "space": SPACE}
    first = table(run(raw, tmp_path, search))
    again = table(run(raw, tmp_path, search | {"trials": 3}))
    assert {name: again[name] for name in first} == first
    assert list(again) == ["trial-000", "trial-001", "trial-002"]
    assert {row["starts"] for row in starts_of(tmp_path / "search")} == {1}


def starts_of(folder: Path) -> list[dict[str, int]]:
    return [{"starts": len(entries)} for entries in starts(folder).values()]


@pytest.mark.slow
def test_population_based_training_moves_weights_and_values(raw: Path, tmp_path: Path) -> None:
    # Guides that break two trials before the exchange: the others do not wait for them, and the worse one takes over.
    space = {"lr": {"loguniform": [1e-9, 1e-2]}, "cls_lr": {"choice": [1e-3, 1e30]}}
    scheduler = {"name": "pbt", "max_epochs": 4, "interval": 2}
    folder = run(raw, tmp_path, {"trials": 4, "seed": 14, "scheduler": scheduler, "space": space})
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("trials/*/trial.json"))]
    assert [record["status"] for record in records] == ["failed", "finished", "finished", "failed"]
    assert not records[2]["exchanges"]
    (exchange,) = records[1]["exchanges"]
    assert (exchange["after_epoch"], exchange["from"]) == (2, "trial-002")
    # What the search's seed draws: the giver's rate, a fifth more.
    assert exchange["values"] == records[1]["values"]
    assert exchange["values"]["lr"] == pytest.approx(1.2 * records[2]["values"]["lr"])
    # The learning rate that the loop used is the one that was given.
    after = [line for line in read_metrics(folder / "trials/trial-001") if (line["epoch"] or 0) > 2]
    assert after
    assert all(line["lr"] == pytest.approx(exchange["values"]["lr"]) for line in after)
    assert len(table(folder)) == 4


@pytest.mark.parametrize(
    ("search", "flags", "expected"),
    [
        (WHOLE | {"metric": "maee"}, "", "metric: no validation metric 'maee' (did you mean mae?)"),
        (WHOLE | {"metric": "mae", "mode": "max"}, "", "mode: found max; mae is better the other way, min"),
        (WHOLE | {"trails": 3}, "", "unknown key 'trails' (did you mean trials?)"),
        (WHOLE | {"space": {}}, "", "space: found {}"),
        (
            WHOLE,
            "--cpus_per_worker 9",
            "1 worker of a trial, each with 9 CPUs and 0 GPUs, do not fit; the cluster has nodes: 1 with 4",
        ),
        (WHOLE, "--workers 5", "5 workers of a trial, each with 1 CPU and 0 GPUs, do not fit"),
        (WHOLE, "--use_gpu", "1 worker of a trial, each with 1 CPU and 1 GPUs, do not fit"),
        (WHOLE, "--local", "tune: a search runs on Ray; leave out --local"),
        (WHOLE | {"scheduler": {"name": "pbt"}}, "--workers 2", "population based training has trials of one worker"),
    ],
)
def test_what_cannot_be_searched_is_one_line(
    raw: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    search: dict[str, Any],
    flags: str,
    expected: str,
) -> None:
    assert main(Config(), argv(raw, tmp_path, search, *flags.split())) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert not (tmp_path / "search").exists()


def test_a_search_whose_trials_all_fail_says_why(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = {"cls_lr": {"choice": [1e30]}}
    search = {"trials": 2, "scheduler": {"name": "none", "max_epochs": 3}, "space": space}
    assert main(Config(), argv(raw, tmp_path, search)) == 1
    captured = capsys.readouterr()
    assert "failed: step " in captured.out
    assert "no trial has a value; the first error: step " in captured.err
