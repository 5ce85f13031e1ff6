"""Seeds and comparisons: the statistics, the table, and what a second start adds."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from cggm_ray.commands.cli import main
from cggm_ray.engine.configuration import Config
from cggm_ray.strategies.registry import STRATEGIES, values_of
from cggm_ray.studies.comparison import Results, comparison_table, markdown
from cggm_ray.studies.statistics import FEWEST_PAIRS, holm, paired_difference
from conftest import SMALL, small_set, write_pickle


def test_paired_difference_against_the_formulas() -> None:
    random = np.random.default_rng(0)
    baseline = random.normal(0.8, 0.05, 8)
    strategy = baseline - 0.02 + random.normal(0, 0.01, 8)
    found = paired_difference(strategy.tolist(), baseline.tolist())
    changes = strategy - baseline
    t = changes.mean() / (changes.std(ddof=1) / np.sqrt(8))
    assert found.pairs == 8
    assert found.mean == pytest.approx(changes.mean())
    assert found.p == pytest.approx(2 * stats.t.sf(abs(t), 7))
    # The bootstrap by hand, from other random numbers: means of resampled differences.
    means = random.choice(changes, (20000, 8)).mean(1)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=4e-4)


def test_differences_that_say_nothing() -> None:
    one = paired_difference([0.5], [0.7])
    assert (one.pairs, one.mean, one.low, one.p) == (1, pytest.approx(-0.2), None, None)
    equal = paired_difference([0.5, 0.6], [0.4, 0.5])
    assert (equal.mean, equal.p) == (pytest.approx(0.1), None)
    # Differences that vary by rounding alone are no evidence.
    rounded = paired_difference([0.1 * k + 0.3 for k in range(7)], [0.1 * k for k in range(7)])
    assert (rounded.pairs, rounded.low, rounded.p) == (7, None, None)
    strange = paired_difference([0.5, float("nan"), 0.4, 0.3, 0.2], [0.1] * 5)
    assert (strange.low, strange.p) == (None, None)


@pytest.mark.parametrize("pairs", range(2, 8))
def test_no_interval_from_fewer_than_five_pairs(pairs: int) -> None:
    random = np.random.default_rng(pairs)
    strategy, baseline = random.normal(0.7, 0.05, pairs), random.normal(0.8, 0.05, pairs)
    found = paired_difference(strategy.tolist(), baseline.tolist())
    assert found.p == pytest.approx(float(stats.ttest_rel(strategy, baseline).pvalue))
    assert FEWEST_PAIRS == 5
    if pairs < 5:
        assert (found.low, found.high) == (None, None)
        return
    # scipy's own percentile bootstrap from other random numbers.
    other = stats.bootstrap((strategy - baseline,), np.mean, n_resamples=50_000, method="percentile", rng=1)
    assert (found.low, found.high) == pytest.approx(tuple(other.confidence_interval), abs=8e-3)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # By hand: 4 * 0.005, 3 * 0.01, 2 * 0.03, and 0.04, which is raised to the one before.
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        # `p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")` of R: 5, 4, 3, 2 and 1 times, never falling.
        ([0.01, 0.02, 0.03, 0.04, 0.05], [0.05, 0.08, 0.09, 0.09, 0.09]),
        ([0.6, 0.5], [1.0, 1.0]),
        ([0.04], [0.04]),
        # What was not tested does not count.
        ([0.02, None, 0.04], [0.04, None, 0.04]),
        ([None], [None]),
        ([], []),
    ],
)
def test_holm_against_values_by_hand(given: list[float | None], expected: list[float | None]) -> None:
    found = holm({str(place): p for place, p in enumerate(given)})
    assert list(found) == [str(place) for place in range(len(given))]
    assert list(found.values()) == pytest.approx(expected)


def test_holm_rejects_what_the_sequential_test_rejects() -> None:
    """Holm's procedure as he wrote it: compare the smallest p with a / m, the next with a / (m - 1), until one fails."""
    random = np.random.default_rng(4)
    for _ in range(200):
        values = random.uniform(0, 0.1, 6)
        rejected = set()
        for rank, place in enumerate(np.argsort(values)):
            if values[place] > 0.05 / (6 - rank):
                break
            rejected.add(str(place))
        found = holm({str(place): float(p) for place, p in enumerate(values)})
        assert {name for name, p in found.items() if p is not None and p <= 0.05} == rejected


def test_the_table_says_what_it_did() -> None:
    random = np.random.default_rng(0)
    runs = {
        name: {f"seed-{seed}": {"mae": float(random.normal(mean, 0.03))} for seed in range(number)}
        for name, mean, number in (("none", 0.8, 6), ("a", 0.77, 6), ("b", 0.75, 6), ("c", 0.7, 4))
    }
    results = Results(values=runs, metric="mae", better="min")
    changes = results.differences("mae")
    for name, change in changes.items():
        pairs = [pair for pair in runs[name] if pair in runs["none"]]
        both = [[runs[one][pair]["mae"] for pair in pairs] for one in (name, "none")]
        assert change.p == pytest.approx(float(stats.ttest_rel(*both).pvalue))
    ordered = sorted(changes.values(), key=lambda change: change.p or 0)
    assert ordered[0].p_holm == pytest.approx(min(1, 3 * (ordered[0].p or 0)))
    head, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in comparison_table(results)]
    assert head[3:] == ["difference to none", "pairs", "95% interval", "p", "p (Holm)"]
    by_name = {line[0]: line for line in lines}
    assert by_name["none"][3:] == [""] * 5
    assert by_name["a"][4] == "6"
    assert by_name["a"][5].startswith("[")
    assert by_name["c"][4:6] == ["4", "n < 5"]
    text = markdown(results, Config())
    assert "over 4 to 6 pairs" in text
    assert "none from fewer than 5 pairs" in text
    assert "two-sided paired t-test" in text
    assert "corrected by Holm's method for the 3 tests of this table" in text


def test_pairs_are_matched_by_name_and_a_missing_run_drops_its_pair() -> None:
    values = {
        "none": {"seed-1": {"mae": 1.0}, "seed-2": {"mae": 2.0}, "seed-3": {"mae": 9.0}},
        "cggm": {"seed-2": {"mae": 1.5}, "seed-1": {"mae": 0.75}},
    }
    results = Results(values=values, metric="mae", better="min")
    change = results.differences("mae")["cggm"]
    assert (change.pairs, change.mean) == (2, pytest.approx(-0.375))
    text = markdown(results, Config())
    assert "| cggm | 2 | 1.1250 ± 0.5303 | -0.3750" in " ".join(text.split())
    assert "lower is better" in text


def compare(pickle: Path, storage: Path, *flags: str) -> int:
    argv = [*SMALL, "--data_path", str(pickle), "--storage_path", str(storage), "--name", "table", "--local", *flags]
    return main(Config(), argv)


def rows(path: Path) -> list[dict[str, Any]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_every_run_is_the_run_that_it_would_be_alone_and_none_runs_twice(
    small_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(small_pickle, tmp_path, "--compare", "none,cggm", "--seeds", "1,2", "--report", "true") == 0
    folder = tmp_path / "table"
    first = rows(folder / "runs.csv")
    assert [(row["strategy"], row["run"]) for row in first] == [
        *(("none", "seed-1"), ("none", "seed-2")),
        *(("cggm", "seed-1"), ("cggm", "seed-2")),
    ]
    alone = ["--local", "--data_path", str(small_pickle), "--storage_path", str(tmp_path), "--name", "alone"]
    assert main(Config(), [*SMALL, *alone, "--modulation", "cggm", "--seed", "2"]) == 0
    summary = json.loads((tmp_path / "alone" / "summary.json").read_text())
    assert {name: float(first[3][name]) for name in summary["test"]} == summary["test"]

    table = rows(folder / "comparison.csv")
    (mae,) = (row for row in table if (row["strategy"], row["metric"]) == ("cggm", "mae"))
    changes = [float(first[2]["mae"]) - float(first[0]["mae"]), float(first[3]["mae"]) - float(first[1]["mae"])]
    assert float(mae["difference_mean"]) == pytest.approx(np.mean(changes))
    assert "difference to none" in capsys.readouterr().out
    page = (folder / "report" / "report.html").read_text()
    assert f"{np.mean(changes):+.4f}" in page
    assert "none, seed-2" in page

    # A further seed and a further strategy: only their runs are made.
    assert compare(small_pickle, tmp_path, "--compare", "none,cggm,cggm-paper", "--seeds", "1,2,3") == 0
    assert "9 runs, 5 of them to do" in capsys.readouterr().out
    again = {(row["strategy"], row["run"]): row for row in rows(folder / "runs.csv")}
    assert len(again) == 9
    assert all(again[row["strategy"], row["run"]] == row for row in first)
    starts = [json.loads(path.read_text())["starts"] for path in folder.glob("trials/*/trial.json")]
    assert [len(entry) for entry in starts] == [1] * 9


def test_seeds_alone_give_mean_and_deviation(
    small_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(small_pickle, tmp_path, "--seeds", "3,5", "--modulation", "none") == 0
    text = (tmp_path / "table" / "comparison.md").read_text()
    values = [float(row["mae"]) for row in rows(tmp_path / "table" / "runs.csv")]
    assert f"| none | 2 | {np.mean(values):.4f} ± {np.std(values, ddof=1):.4f} |" in " ".join(text.split())
    assert "difference" not in text
    assert "torch" in text


def test_a_run_that_fails_is_named_and_the_others_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = small_set()
    pickle = write_pickle(tmp_path / "small.pkl", content)
    # Weights that overflow with one strategy only: its guides learn at an absurd rate and poison the loss.
    flags = ["--cls_lr", "1e30", "--num_epochs", "3", "--compare", "none,cggm", "--seeds", "1"]
    assert compare(pickle, tmp_path, *flags) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith("error: 1 of 2 runs failed; cggm-seed-1: step ")
    assert "| none | 1" in " ".join(captured.out.split())
    assert "Failed: cggm-seed-1: step" in captured.out


def test_folds_are_pairs_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cggm_ray.data.datasets.iemocap import IemocapOptions
    from cggm_ray.data.settings import DataConfig

    recipe = Config(data=DataConfig(dataset="iemocap"), options=IemocapOptions())
    argv = [*SMALL, "--storage_path", str(tmp_path), "--name", "table", "--local", "--num_epochs", "1", "--cv", "all"]
    assert main(recipe, [*argv, "--seeds", "1"]) == 0
    runs = [row["run"] for row in rows(tmp_path / "table" / "runs.csv")]
    assert len(runs) > 1
    assert all(run.startswith("seed-1-") for run in runs)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--seeds 1,x", "flag: seeds: found '1,x'; expected whole numbers, such as 1,2,3"),
        ("--seeds 2,2", "flag: seeds: found '2,2'; expected different numbers"),
        ("--compare none", "flag: compare: found 'none'; expected at least two different strategies"),
        ("--compare none,cgm", "unknown strategy 'cgm' (did you mean cggm?)"),
        ("--compare none,cggm --coefficients paper", "the strategy 'none' has no such part"),
        ("--seeds 1 --tune x.yaml", "tune: given together with --seeds or --compare"),
    ],
)
def test_bad_flags(
    small_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str, expected: str
) -> None:
    assert compare(small_pickle, tmp_path / "storage", *flags.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert not (tmp_path / "storage").exists()


def test_a_strategy_with_the_recipe_of_its_official_code(small_pickle: Path, tmp_path: Path) -> None:
    entries = "none,ogm-ge,ogm-ge@released"
    assert compare(small_pickle, tmp_path, "--compare", entries, "--seeds", "1", "--num_epochs", "1") == 0
    table = rows(tmp_path / "table" / "comparison.csv")
    assert {row["strategy"] for row in table} == {*entries.split(",")}
    summary = json.loads((tmp_path / "table" / "trials" / "ogm-ge@released-seed-1" / "trial.json").read_text())
    assert summary["values"] == {
        **{"modulation": "ogm-ge", "seed": 1, "optim": "SGD", "lr": 0.001, "weight_decay": 0.0001, "clip": 0.0},
        **{"ogm_alpha": 0.8, "ogm_epochs": 51, "ogm_bias": "shared"},
    }


@pytest.mark.parametrize("name", [n for n in STRATEGIES.names() if STRATEGIES.get(n).recipe])
def test_every_recipe_is_valid(name: str) -> None:
    values = values_of(f"{name}@released")
    assert Config().replace(values).modulation.modulation == name
    assert {"optim", "lr", "clip", "batch_size"} <= values.keys()
    assert "lr" not in values_of(f"{name}@released", {"lr"})


@pytest.mark.parametrize("entry", ["none@released", "ogm@paper", "nobody@released"])
def test_a_recipe_that_there_is_not(
    entry: str, small_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(small_pickle, tmp_path, "--compare", f"none,{entry}") == 2
    assert (
        f"flag: compare: found {entry!r}; expected a strategy, or @released after one of agm, "
        in capsys.readouterr().err
    )
