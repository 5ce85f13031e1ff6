"""Every registered strategy: a whole run on two tasks, a resumed run, a batch in parts, several workers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from feature_sets import arrays, as_npz, config
from strategy_cases import (
    ACTIVE,
    assert_same,
    drawn_teachers,
    in_processes,
    lines,
    mslr_flags,
    own_rates,
    run,
    steps,
    umt_flags,
)

from cggm_ray.commands.cli import main
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.runtime import LocalRuntime
from cggm_ray.strategies.registry import STRATEGIES
from cggm_ray.tasks import Classification, Regression
from conftest import small_set, write_pickle

NAMES = STRATEGIES.names()
NEEDED = {"umt": umt_flags, "mslr": mslr_flags}
"""Flags that a strategy cannot do without, made from (data, storage, recipe, modalities)."""
DRAWS = {"modality-dropout": "draws what it drops on every worker, and for every part of a batch, as other dropouts do"}
ROUNDED_KEYS = ("inforeg",)
"""Strategies whose gradients are differences of others, with more rounding where a gradient is zero; see `assert_same`."""
PREPARED = {"umt": drawn_teachers, "mslr": own_rates}
"""The same for steps without a run, made from a folder."""


def serving(task: type[Any], names: list[str] = NAMES) -> list[str]:
    return [name for name in names if STRATEGIES.get(name).serves(task(3) if task is Classification else task())]


def flags(name: str, *more: Any) -> list[str]:
    active = [text for field, value in ACTIVE.get(name, {}).items() for text in (f"--{field}", str(value))]
    return ["--modulation", name, *active, *(NEEDED[name](*more) if name in NEEDED else [])]


@pytest.mark.parametrize("name", serving(Regression))
def test_two_and_two_epochs_are_four(tmp_path: Path, name: str) -> None:
    pickle = write_pickle(tmp_path / "small.pkl", small_set())
    chosen = flags(name, pickle, tmp_path)
    whole = run(pickle, tmp_path, "whole", *chosen, "--num_epochs", "4")
    run(pickle, tmp_path, "parts", *chosen, "--num_epochs", "2")
    parts = run(pickle, tmp_path, "parts", *chosen, "--num_epochs", "4")
    assert lines(whole) == lines(parts)
    assert (whole / "predictions.parquet").read_bytes() == (parts / "predictions.parquet").read_bytes()
    records = lines(whole)
    assert all(math.isfinite(float(str(value))) for line in records for value in line.values())
    assert len({line["train/loss"] for line in records}) == 4


@pytest.mark.parametrize(
    "name", [n if n == "cggm" else pytest.param(n, marks=pytest.mark.slow) for n in serving(Classification)]
)
def test_classification_of_features(tmp_path: Path, name: str) -> None:
    data = as_npz(tmp_path, arrays(60))
    recipe = config(tmp_path, data, "words,face,age", split="part")
    chosen = flags(name, data, recipe.run.storage, recipe, "words,face,age")
    assert main(recipe, [*chosen, "--num_epochs", "2", "--storage_path", str(recipe.run.storage)]) == 0
    assert all(math.isfinite(float(str(v))) for line in lines(recipe.run.storage / "r") for v in line.values())


@pytest.mark.parametrize("name", [n for n in NAMES if not STRATEGIES.get(n).whole_batch])
def test_a_batch_in_parts(tmp_path: Path, name: str) -> None:
    if name in DRAWS:
        pytest.skip(DRAWS[name])
    values = {"modulation": name, **(PREPARED[name](tmp_path) if name in PREPARED else {})}
    for kind in kinds(name):
        runtime = LocalRuntime(tmp_path, Config().run)
        parts = steps(kind, {**values, "accumulate": 2}, runtime)
        assert_same(steps(kind, values, runtime), parts, keys=name not in ROUNDED_KEYS)


@pytest.mark.parametrize("name", [n for n in NAMES if STRATEGIES.get(n).whole_batch])
def test_who_needs_the_whole_batch_says_so(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    pickle = write_pickle(tmp_path / "small.pkl", small_set())
    places = ["--local", "--data_path", str(pickle), "--storage_path", str(tmp_path)]
    assert main(Config(), [*places, "--modulation", name, "--accumulate", "2"]) == 2
    assert f"accumulate: found 2; the strategy '{name}' needs the whole batch" in capsys.readouterr().err
    assert not (tmp_path / "shards").exists() or not any(p.is_dir() for p in (tmp_path / "shards").iterdir())


def kinds(name: str) -> list[str]:
    tasks = {"regression": Regression(), "classification": Classification(3)}
    return [kind for kind, task in tasks.items() if STRATEGIES.get(name).serves(task)]


VARIANTS: list[dict[str, Any]] = [
    {"modulation": "multiloss", "multiloss_project": True, "multiloss_weights": ["1", "3", "0.5"]}
]
"""Options by which a strategy takes another way through a step."""
CASES = [
    (kind, values)
    for values in [*({"modulation": name} for name in NAMES if name not in DRAWS), *VARIANTS]
    for kind in kinds(values["modulation"])
]


@pytest.fixture(scope="module")
def by_workers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[list[dict[str, Any]]]]:
    folder = tmp_path_factory.mktemp("workers")
    more = {name: prepare(folder) for name, prepare in PREPARED.items()}
    cases = [(kind, {**values, **more.get(values["modulation"], {})}) for kind, values in CASES]
    return {workers: in_processes(folder, cases, workers) for workers in (1, 2)}


@pytest.mark.parametrize("case", range(len(CASES)), ids=["-".join([kind, *map(str, c.values())]) for kind, c in CASES])
def test_two_workers_follow_one(by_workers: dict[int, list[list[dict[str, Any]]]], case: int) -> None:
    one, (first, second) = by_workers[1][0][case], (rank[case] for rank in by_workers[2])
    assert_same(one, first, keys=CASES[case][1]["modulation"] not in ROUNDED_KEYS)
    for name, value in first["parameters"].items():
        assert torch.equal(second["parameters"][name].nan_to_num(), value.nan_to_num()), f"{name} differs between ranks"


@pytest.mark.parametrize(
    "name", [n if n in ("none", "cggm") else pytest.param(n, marks=pytest.mark.slow) for n in serving(Regression)]
)
def test_half_precision(tmp_path: Path, name: str) -> None:
    pickle = write_pickle(tmp_path / "small.pkl", small_set())
    folder = run(pickle, tmp_path, "half", *flags(name, pickle, tmp_path), "--precision", "bf16")
    assert all(math.isfinite(float(str(value))) for line in lines(folder) for value in line.values())


REPLACED = ("cggm", "cggm-multiloss")
"""Defaults, of the recipes and of quick, in whose place a single modality gets joint training."""


@pytest.mark.parametrize(
    "name", serving(Regression, [n for n in NAMES if STRATEGIES.get(n).balances and n not in REPLACED])
)
def test_one_modality_cannot_be_balanced(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    pickle = write_pickle(tmp_path / "small.pkl", small_set())
    places = ["--local", "--data_path", str(pickle), "--storage_path", str(tmp_path), "--modalities", "text"]
    assert main(Config(), [*places, "--modulation", name]) == 2
    assert f"{name!r} balances at least two modalities" in capsys.readouterr().err or name in NEEDED


def test_the_page_describes_all_of_them() -> None:
    page = (Path(__file__).parents[2] / "docs" / "strategies.md").read_text()
    assert [name for name in NAMES if f"`{name}`" not in page] == []
    for name in NAMES:
        for field in vars(STRATEGIES.get(name).options()):
            assert f"--{field}" in page, field
