"""The presets that search: what they leave, what they do when they are started again, and what they refuse."""

from __future__ import annotations

import csv
import json
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from cggm_ray.__main__ import main as command
from cggm_ray.commands.cli import main, parse
from cggm_ray.commands.search_folder import Plan, Searched
from cggm_ray.commands.train import run as train
from cggm_ray.core.errors import UsageError
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.tracking import read_metrics
from cggm_ray.runs.finishing import LINEAR_CHOICE
from cggm_ray.runs.result import read_summary
from cggm_ray.studies.choice import Choice, candidates_of, decide
from cggm_ray.tasks import Classification

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
        (["--preset", "best", "--local"], "preset: best searches on Ray; leave out --local"),
        (
            ["--preset", "best", "--seeds", "1,2"],
            "preset: best trains an ensemble over seeds of its own; leave out --seeds",
        ),
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
        patch.setattr("cggm_ray.studies.choice.LEADERS", 2)
        patch.setattr("cggm_ray.studies.choice.SEEDS", 2)
        assert main(RECIPE, argv(raw, storage, *GOOD)) == 0
    return storage / "run"


def hits(run: Path) -> float:
    """Returns the share of the validation samples whose class a run of the choice predicts."""
    table = pq.read_table(run / "validation.parquet")
    said = np.array(table["prediction"].to_pylist()).argmax(1)
    return float((said == table["target"].to_numpy()).mean())


@pytest.mark.ray
@pytest.mark.slow
def test_good_trains_what_was_chosen_and_tests_only_that(good: Path) -> None:
    search = json.loads((good / "search" / "summary.json").read_text())
    with (good / "search" / "trials.csv").open() as file:
        rows = {row["trial"]: row for row in csv.DictReader(file)}
    assert sum(search["trials"].values()) == len(rows)
    assert "waiting" not in search["trials"]
    best = rows[search["trial"]]
    assert float(best["best_accuracy"]) == max(float(row["best_accuracy"] or 0) for row in rows.values())
    assert search["value"] >= search["first"]["value"]
    assert "lr" not in search["space"]
    # Neither a trial nor a run of the choice was tested.
    assert not [*good.glob("search/trials/*/summary.json"), *good.glob("choice/trials/*/summary.json")]
    choice = json.loads((good / "choice" / "choice.json").read_text())
    tried = [each["trial"] for each in choice["candidates"]]
    assert tried[0] == "trial-000"
    assert search["trial"] in tried
    # The choice by hand, from what the runs would predict when tested; the seeds are not that of the search.
    folders = {trial: sorted(good.glob(f"choice/trials/{trial}-*")) for trial in tried}
    values = {trial: [hits(run) for run in runs] for trial, runs in folders.items()}
    assert choice["seeds"] == choice["compared"] == [667, 668]
    assert {len(found) for found in values.values()} == {2}
    for trial, runs in folders.items():
        for run, value in zip(runs, values[trial], strict=True):
            assert json.loads((run / "validation.json").read_text())["accuracy"] == pytest.approx(value)
            if not (run / LINEAR_CHOICE).exists():
                # Without a linear model it is that of the best epoch.
                assert value == pytest.approx(max(line["valid/accuracy"] for line in read_metrics(run)))
    assert choice["first"] == tried[0]
    for trial in tried[1:]:
        assert choice["leads"][trial]["mean"] == pytest.approx(np.mean(values[trial]) - np.mean(values[tried[0]]))
    ahead = [trial for trial, lead in choice["leads"].items() if lead["mean"] > 2 * lead["error"]]
    assert choice["chosen"] == max([tried[0], *ahead], key=lambda trial: np.mean(values[trial]))
    # The run has the configuration that was chosen.
    chosen = next(each for each in choice["candidates"] if each["trial"] == choice["chosen"])
    config = yaml.safe_load((good / "config.yaml").read_text())
    assert config["train"]["preset"] == "quick"
    assert config["optim"]["lr"] == 0.003
    for key, value in chosen["values"].items():
        found = next(section[key] for section in config.values() if key in section)
        assert (",".join(found) if isinstance(found, list) else found) == value
    assert json.loads((good / "summary.json").read_text())["test"]["accuracy"] > 1 / 3
    # It is trained on both splits for the share of the steps after which the runs of the choice were best by metric and loss.
    ends = []
    for lines in map(read_metrics, folders[choice["chosen"]]):
        least = min(lines, key=lambda line: line["valid/loss"])
        ends.append(max(lines[-1]["best_epoch"], least["epoch"]))
    assert config["train"]["refit"] == choice["share"] == pytest.approx(np.mean(ends) / 3)


@pytest.mark.ray
@pytest.mark.slow
def test_it_is_the_run_of_its_configuration(raw: Path, good: Path, tmp_path: Path) -> None:
    choice = json.loads((good / "choice" / "choice.json").read_text())
    (values,) = (each["values"] for each in choice["candidates"] if each["trial"] == choice["chosen"])
    flags = [text for field, value in values.items() if value != "" for text in (f"--{field}", str(value))]
    alone = ["--local", "--lr", "0.003", "--refit", str(choice["share"]), "--report", "false"]
    alone += ["--linear_blend", ":".join(map(str, choice["linear"])) if choice["linear"] else "off"]
    assert main(RECIPE, argv(raw, tmp_path, *flags, *alone)) == 0
    assert pq.read_table(tmp_path / "run" / "predictions.parquet").equals(pq.read_table(good / "predictions.parquet"))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--refit", "0", "--seeds", "1"], 0.0),
        (["--seeds", "1"], None),
        (["--compare", "none,cggm", "--seeds", "1"], 0.0),
    ],
)
def test_who_trains_on_validation(
    raw: Path, good: Path, tmp_path: Path, cluster: None, flags: list[str], expected: float | None
) -> None:
    for name in ("search", "choice"):
        shutil.copytree(good / name, tmp_path / "run" / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cggm_ray.studies.around.FEWEST", 4)
        patch.setattr("cggm_ray.studies.around.MOST", 4)
        assert main(RECIPE, argv(raw, tmp_path, *GOOD, "--report", "false", "--headroom", "false", *flags)) == 0
    share = json.loads((tmp_path / "run" / "choice" / "choice.json").read_text())["share"]
    found = [yaml.safe_load(path.read_text())["train"]["refit"] for path in tmp_path.glob("run/trials/*/config.yaml")]
    assert found
    assert set(found) == {share if expected is None else expected}


@pytest.mark.ray
@pytest.mark.slow
def test_the_page_says_what_was_tried(good: Path) -> None:
    page = (good / "report" / "report.html").read_text()
    search = json.loads((good / "search" / "summary.json").read_text())
    choice = json.loads((good / "choice" / "choice.json").read_text())
    assert "What was tried" in page
    assert f"A search of {sum(search['trials'].values())} trials" in page
    assert f"{search['first']['value']:.4f} of the first trial" in page
    assert f"{search['value']:.4f} of the best one" in page
    count, by = len(choice["candidates"]), "the mean validation accuracy over 2 seeds"
    kept = choice["chosen"] == choice["first"]
    words = (
        f"of {count} configurations, compared by {by}" if kept else f"is chosen among {count} configurations by {by}"
    )
    assert words in page


@pytest.mark.ray
@pytest.mark.slow
def test_best_goes_on_with_a_search_and_leaves_an_ensemble(
    raw: Path, good: Path, tmp_path: Path, cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    for name in ("search", "choice"):
        shutil.copytree(good / name, folder / name)
    # As if the command had been killed before the last run of the choice.
    choice = (folder / "choice" / "choice.json").read_text()
    (folder / "choice" / "choice.json").unlink()
    runs = sorted((folder / "choice" / "trials").iterdir())
    shutil.rmtree(runs[-1])
    before = {run.name: (run / "metrics.jsonl").read_text() for run in runs[:-1]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cggm_ray.studies.choice.LEADERS", 2)
        patch.setattr("cggm_ray.studies.choice.SEEDS", 2)
        flags = [*GOOD, "--preset", "best"]
        assert main(RECIPE, argv(raw, tmp_path, *flags)) == 0
    assert "is over" in capsys.readouterr().out
    assert (folder / "choice" / "choice.json").read_text() == choice
    # Every run was trained once and is a run of its own.
    assert {run.name: (run / "metrics.jsonl").read_text() for run in runs[:-1]} == before
    assert all((run / "summary.json").exists() for run in runs)
    ensemble = json.loads((folder / "ensemble.json").read_text())
    own = {f"choice/trials/{run.name}": read_summary(run).valid["accuracy"] for run in runs}
    assert ensemble["candidates"] == pytest.approx(own)
    result = read_summary(folder)
    assert result.valid["accuracy"] == pytest.approx(ensemble["steps"][-1]["value"])
    assert result.valid["accuracy"] >= max(own.values())
    page = (folder / "report" / "report.html").read_text()
    assert f"the mean of {len(ensemble['members'])} of {len(runs)} runs" in page
    assert command(["verify", str(folder)]) == 0
    new = ["--data_path", str(raw), "--split", "test", "--ray"]
    assert command(["predict", str(folder), *new, "--out", str(tmp_path / "p.parquet")]) == 0
    columns = [pq.read_table(path).to_pydict() for path in (tmp_path / "p.parquet", folder / "predictions.parquet")]
    there, here = (dict(zip(found["id"], found["prediction"], strict=True)) for found in columns)
    assert there.keys() == here.keys()
    assert np.array(list(there.values())) == pytest.approx(np.array([here[name] for name in there]), abs=1e-5)
    # Neither preset goes on in the folder of the other.
    assert main(RECIPE, argv(raw, tmp_path, *GOOD)) == 2
    assert "holds an ensemble of preset best" in capsys.readouterr().err
    assert main(RECIPE, argv(raw, good.parent, *flags)) == 2
    assert "holds what preset good trained" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.slow
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
@pytest.mark.slow
def test_without_time_the_best_trial_is_compared_with_the_first(
    raw: Path, good: Path, tmp_path: Path, cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(good / "search", tmp_path / "run" / "search")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cggm_ray.commands.searched.SEARCH_SHARE", 1.0)
        patch.setattr("cggm_ray.studies.around.FEWEST", 4)
        patch.setattr("cggm_ray.studies.around.MOST", 4)
        assert main(RECIPE, argv(raw, tmp_path, *GOOD, "--report", "false")) == 0
    choice = json.loads((tmp_path / "run" / "choice" / "choice.json").read_text())
    first, second = (each["trial"] for each in choice["candidates"][:2])
    assert first == "trial-000"
    assert sorted(run.name for run in (tmp_path / "run" / "choice" / "trials").iterdir()) == sorted(
        [f"{first}-seed-667", f"{second}-seed-667"]
    )
    assert choice["compared"] == [667]
    assert "by validation accuracy" in capsys.readouterr().out


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


def chosen_by_search(plan: Plan, done: Searched, folder: Path, minutes: float) -> Choice:
    return decide(Classification(3), plan.metric, candidates_of(done.found[0], done.order), [1], [])


@pytest.mark.ray
@pytest.mark.slow
def test_time_ends_a_search(raw: Path, tmp_path: Path, cluster: None, capsys: pytest.CaptureFixture[str]) -> None:
    length = ["--min_steps", "1000000", "--max_steps", "1000000", "--patience", "1000000"]
    endless = ["--preset", "good", "--minutes", "0.3", *length, "--seeds", "1"]
    with pytest.MonkeyPatch.context() as patch:
        # What follows the search would take as long as its trials.
        patch.setattr("cggm_ray.commands.searched.compare", lambda config, strategies, seeds: print("then", seeds))
        patch.setattr("cggm_ray.commands.searched.choose", chosen_by_search)
        code = main(RECIPE, argv(raw, tmp_path, *endless))
    shown = capsys.readouterr()
    if code == 1:
        # A machine that is too slow for a single epoch.
        assert "no trial was validated in 0.2 minutes" in shown.err
        return
    search = json.loads((tmp_path / "run" / "search" / "summary.json").read_text())
    assert set(search["trials"]) <= {"stopped"}
    assert "then (1,)" in shown.out


def test_a_search_is_no_run_for_callers_of_the_api() -> None:
    with pytest.raises(UsageError, match="preset: good stands for a search"):
        train(Config().replace({"preset": "good"}))
