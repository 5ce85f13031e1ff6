"""What a notebook calls, beside the command line on the same data."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import cggm_ray
from cggm_ray.__main__ import main
from cggm_ray.api.start import configuration
from cggm_ray.core.errors import DataError, UsageError
from cggm_ray.runs.result import read_summary

SHORT: dict[str, Any] = {"local": True, "max_steps": 20, "valid_interval": 5, "batch_size": 16, "report": False}


def samples() -> dict[str, np.ndarray]:
    """60 samples of three classes, which both vectors tell apart with some errors."""
    rng = np.random.default_rng(0)
    label = np.arange(60) % 3
    centres = rng.normal(size=(3, 5))
    content = {name: (centres[label] + rng.normal(size=(60, 5))).astype(np.float32) for name in ("left", "right")}
    return {**content, "label": label, "split": np.array((["train"] * 3 + ["valid", "test"]) * 12)}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run(storage: Path) -> cggm_ray.Run:
    return cggm_ray.train("features", data=samples(), storage_path=storage, name="arrays", **SHORT)


def test_a_run_is_that_of_the_command_line(run: cggm_ray.Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "three.npz", **samples())
    flags = [f"--{name}={str(value).lower()}" for name, value in SHORT.items()]
    argv = ["train", "features", "--data_path", str(tmp_path / "three.npz"), "--storage_path", str(tmp_path / "runs")]
    assert main([*argv, "--name", "flags", *flags]) == 0
    theirs = read_summary(tmp_path / "runs" / "flags")
    assert (run.best_epoch, run.valid, run.test) == (theirs.best_epoch, theirs.valid, theirs.test)
    assert list(run.metrics["epoch"]) == [1, 2, 3]
    assert run.metrics["valid/accuracy"].max() == run.valid["accuracy"]


def test_the_same_call_finds_the_finished_run(run: cggm_ray.Run, storage: Path) -> None:
    again = cggm_ray.train("features", data=samples(), storage_path=storage, name="arrays", **SHORT)
    assert (again.folder, again.test) == (run.folder, run.test)
    assert len(list((storage / "inputs").iterdir())) == 1
    assert cggm_ray.load(str(run.folder)).test == run.test


@pytest.mark.parametrize("kind", ["arrays", "tensors", "pandas", "arrow", "file"])
def test_new_data_is_predicted(run: cggm_ray.Run, tmp_path: Path, kind: str) -> None:
    new = {name: values[:7] for name, values in samples().items() if name in ("left", "right")}
    lists = {name: list(values) for name, values in new.items()}
    pq.write_table(pa.table(lists), tmp_path / "new.parquet")
    data = {
        "arrays": new,
        "tensors": {name: torch.from_numpy(values) for name, values in new.items()},
        "pandas": pd.DataFrame(lists),
        "arrow": pa.table(lists),
        "file": tmp_path / "new.parquet",
    }[kind]
    found = run.predict(data, out=tmp_path / "out.parquet")
    own = run.predict(split="train", out=tmp_path / "own.parquet")
    # The first seven samples are four of train and three others.
    mine = [k for k in range(7) if samples()["split"][k] == "train"]
    logits = np.stack(found["prediction"].to_numpy())
    assert logits.shape == (7, 3)
    np.testing.assert_allclose(logits[mine], np.stack(own["prediction"].to_numpy())[: len(mine)], rtol=1e-5, atol=1e-6)
    assert set(found["class"]) <= {"0", "1", "2"}


def test_a_run_is_verified_exported_and_reported(run: cggm_ray.Run, tmp_path: Path) -> None:
    assert run.verify().equal
    assert run.export(tmp_path / "model.pt2").path.exists()
    assert run.report().name == "report.html"


def test_a_notebook_shows_metrics_and_curves(run: cggm_ray.Run) -> None:
    shown = run._repr_html_()
    assert f"{run.test['accuracy']:.4f}" in shown
    tree = ET.fromstring(f"<div>{shown}</div>")
    assert tree.find(".//{http://www.w3.org/2000/svg}svg") is not None
    assert str(run.folder) in repr(run)


def test_what_the_caller_sets_stays_where_a_strategy_brings_its_own_recipe(storage: Path) -> None:
    entry = "ogm-ge@released"
    found = cggm_ray.compare(
        "features", [entry], [1], data=samples(), storage_path=storage, name="set", headroom=False, lr=0.007, **SHORT
    )
    section = found.runs[f"{entry}-seed-1"].config.optim
    assert (section.lr, section.optim) == (0.007, "SGD")


def test_strategies_are_compared(storage: Path) -> None:
    found = cggm_ray.compare(
        "features", ["none", "cggm"], [1, 2], data=samples(), storage_path=storage, name="pair", headroom=False, **SHORT
    )
    assert found.runs.keys() == {f"{name}-seed-{seed}" for name in ("none", "cggm") for seed in (1, 2)}
    mean = np.mean([found.runs[f"none-seed-{seed}"].test["accuracy"] for seed in (1, 2)])
    row = found.table[(found.table["strategy"] == "none") & (found.table["metric"] == "accuracy")]
    assert row["mean"].item() == pytest.approx(mean)


@pytest.mark.parametrize(
    ("recipe", "changes", "expected"),
    [
        ("feature", {}, "unknown recipe 'feature' (did you mean features?)"),
        ("features", {"nlevel": 3}, "train: unknown key 'nlevel' (did you mean nlevels?)"),
        ("features", {"lr": "fast"}, "train: lr: found 'fast'; expected a number"),
        ("features", {"data": {}}, "expected a path, arrays by name, or a table"),
        ("features", {"data": {"a": np.zeros(3), "label": np.zeros(2)}}, "columns of different lengths: a 3, label 2"),
        ("features", {"data": {"a": [np.zeros(3), np.zeros(2)]}}, "a has values of different kinds or lengths"),
        ("features", {"data": {"a": np.zeros(3)}, "data_path": "x.npz"}, "given together with data_path"),
        ("iemocap", {"cv": "all"}, "several folds"),
    ],
)
def test_what_is_refused(recipe: str, changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        cggm_ray.train(recipe, storage_path=tmp_path, local=True, **changes)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_data_of_other_features_is_refused(run: cggm_ray.Run) -> None:
    with pytest.raises(DataError, match="right"):
        run.predict({"left": samples()["left"]})


def test_settings_by_section_are_those_of_fields() -> None:
    nested = configuration("mosi", optim={"lr": 0.5}, modulation={"rho": 2.0})
    assert nested == configuration("mosi", lr=0.5, rho=2.0)


def test_the_import_brings_torch_only() -> None:
    heavy = ["ray", "transformers", "pandas", "pyarrow", "matplotlib"]
    program = "import sys, cggm_ray; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not set(heavy) & set(done.stdout.split())
