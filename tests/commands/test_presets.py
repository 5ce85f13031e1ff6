"""The presets that search: what they leave, what they do when they are started again, and what they refuse."""

from __future__ import annotations

import csv
import json
import runpy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from cggm_ray.__main__ import main as command
from cggm_ray.commands.cli import main, parse
from cggm_ray.commands.train import run as train
from cggm_ray.core.errors import UsageError
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.tracking import read_metrics

RECIPE: Config = runpy.run_path(str(Path(__file__).parents[2] / "pipelines" / "features.py"))["RECIPE"]
GOOD = ["--preset", "good", "--minutes", "60", "--lr", "0.003"]
SHORT = ["--max_steps", "20", "--valid_interval", "5", "--cpus_per_worker", "1", "--batch_size", "16"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 samples of three classes, which both vectors tell apart with some errors."""
    rng = np.random.default_rng(0)
    label = np.arange(90) % 3
    centres = rng.normal(size=(3, 6))
    content = {name: centres[label] + 1.2 * rng.normal(size=(90, 6)) for name in ("left", "right")}
    part = np.array((["train"] * 3 + ["valid", "test"]) * 18)
    path = tmp_path_factory.mktemp("raw") / "three.npz"
    np.savez(path, **content, label=label, part=rng.permutation(part), id=np.array([f"s{k}" for k in range(90)]))
    return path


def argv(raw: Path, storage: Path, *flags: str, name: str = "run") -> list[str]:
    data = ["--data_path", str(raw), "--modalities", "left,right", "--target", "label", "--split", "part"]
    return [*data, "--storage_path", str(storage), "--name", name, *SHORT, *flags]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=2, log_to_driver=False)
    yield
    ray.shutdown()


def test_flags_are_fixed_and_values_of_a_file_are_not(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("lr: 0.001")
    found = parse(RECIPE, ["--preset", "good", "--weight_decay", "0.1", "--config", str(tmp_path / "c.yaml")])
    assert {"preset", "weight_decay"} <= found.fixed
    assert "lr" not in found.fixed
    assert (found.config.optim.lr, found.config.optim.weight_decay) == (0.001, 0.1)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--preset", "good", "--local"], "preset: good searches on Ray; leave out --local"),
        (["--preset", "good", "--tune", "s.yaml"], "tune: given together with --preset good"),
        (["--preset", "good", "--minutes", "0"], "minutes: found 0"),
        (["--preset", "best"], "preset: best cannot be run yet; take --preset good"),
    ],
)
def test_what_a_preset_refuses(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], expected: str
) -> None:
    assert main(RECIPE, argv(raw, tmp_path, *flags)) == 2
    shown = capsys.readouterr().err
    assert expected in shown
    assert shown.count("\n") == 1
    assert not list(tmp_path.glob("run*"))


@pytest.fixture(scope="module")
def good(raw: Path, tmp_path_factory: pytest.TempPathFactory, cluster: None) -> Path:
    storage = tmp_path_factory.mktemp("good")
    with pytest.MonkeyPatch.context() as patch:
        # A bound on trials in place of time, so that a slow machine has as many.
        patch.setattr("cggm_ray.studies.around.FEWEST", 4)
        patch.setattr("cggm_ray.studies.around.MOST", 4)
        assert main(RECIPE, argv(raw, storage, *GOOD)) == 0
    return storage / "run"


@pytest.mark.ray
def test_good_trains_the_best_trial_again_and_tests_only_that(good: Path) -> None:
    search = json.loads((good / "search" / "summary.json").read_text())
    with (good / "search" / "trials.csv").open() as file:
        rows = {row["trial"]: row for row in csv.DictReader(file)}
    assert sum(search["trials"].values()) == len(rows)
    assert "waiting" not in search["trials"]
    best = rows[search["trial"]]
    assert float(best["best_accuracy"]) == max(float(row["best_accuracy"] or 0) for row in rows.values())
    assert search["value"] >= search["first"]["value"]
    assert "lr" not in search["space"]
    # No trial was tested, and the run has the configuration of the best one.
    assert not list(good.glob("search/trials/*/summary.json"))
    config = yaml.safe_load((good / "config.yaml").read_text())
    assert config["train"]["preset"] == "quick"
    assert config["optim"]["lr"] == 0.003
    for key, value in search["values"].items():
        found = next(section[key] for section in config.values() if key in section)
        assert (",".join(found) if isinstance(found, list) else found) == value
    assert json.loads((good / "summary.json").read_text())["test"]["accuracy"] > 1 / 3
    # It is that trial to the last digit, for as long as that was trained.
    trial = [line["valid/loss"] for line in read_metrics(good / "search" / "trials" / search["trial"])]
    assert [line["valid/loss"] for line in read_metrics(good)][: len(trial)] == trial


@pytest.mark.ray
def test_the_page_says_what_was_tried(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (good / "report" / "report.html").read_text()
    search = json.loads((good / "search" / "summary.json").read_text())
    assert "What was tried" in page
    assert f"the best of {sum(search['trials'].values())} trials" in page
    assert f"{search['first']['value']:.4f} of the first trial" in page
    assert f"{search['value']:.4f} of the best one" in page


@pytest.mark.ray
def test_a_run_of_good_is_a_run_for_every_other_command(
    raw: Path, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["verify", str(good)]) == 0
    assert command(["predict", str(good), "--data_path", str(raw), "--out", str(tmp_path / "p.parquet")]) == 0
    assert command(["export", str(good), "--out", str(tmp_path / "m.pt2")]) == 0
    assert "predicted" in capsys.readouterr().out


@pytest.mark.ray
@pytest.mark.slow
def test_started_again_it_searches_no_second_time(raw: Path, good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (good / "search" / "trials.csv").read_text()
    result = json.loads((good / "summary.json").read_text())
    assert main(RECIPE, argv(raw, good.parent, *GOOD, "--report", "false")) == 0
    assert "is over" in capsys.readouterr().out
    assert (good / "search" / "trials.csv").read_text() == before
    assert json.loads((good / "summary.json").read_text())["test"] == result["test"]
    # Nor does it take the results of another one.
    assert main(RECIPE, argv(raw, good.parent, *GOOD, "--width", "64")) == 2
    assert "width: was 256, now 64" in capsys.readouterr().err


@pytest.mark.ray
def test_a_run_that_no_search_led_to_is_not_touched(
    raw: Path, tmp_path: Path, cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("train: {num_epochs: 3}")
    assert main(RECIPE, argv(raw, tmp_path, "--preset", "good")) == 2
    assert "holds a run without a search" in capsys.readouterr().err


def test_a_preset_needs_something_to_search() -> None:
    with pytest.raises(UsageError, match="preset"):
        parse(RECIPE, ["--preset", "better"])


@pytest.mark.ray
@pytest.mark.slow
def test_time_ends_a_search(raw: Path, tmp_path: Path, cluster: None, capsys: pytest.CaptureFixture[str]) -> None:
    length = ["--min_steps", "1000000", "--max_steps", "1000000", "--patience", "1000000"]
    endless = ["--preset", "good", "--minutes", "0.3", *length, "--seeds", "1"]
    with pytest.MonkeyPatch.context() as patch:
        # What follows the search would take as long as its trials.
        patch.setattr("cggm_ray.commands.searched.compare", lambda config, strategies, seeds: print("then", seeds))
        code = main(RECIPE, argv(raw, tmp_path, *endless))
    shown = capsys.readouterr()
    if code == 1:
        # A machine that is too slow for a single epoch.
        assert "no trial was validated in 0.3 minutes" in shown.err
        return
    search = json.loads((tmp_path / "run" / "search" / "summary.json").read_text())
    assert set(search["trials"]) <= {"stopped"}
    assert "then (1,)" in shown.out


def test_a_search_is_no_run_for_callers_of_the_api() -> None:
    with pytest.raises(UsageError, match="preset: good stands for a search"):
        train(Config().replace({"preset": "good"}))
