"""Notebooks of the docs: their cells run one after the other, and what is shown under them was printed by a run."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from programs import ROOT, python

from cggm_ray.runs.result import read_summary


def cells() -> list[str]:
    """The code of the notebook; every cell has an output."""
    notebook = json.loads((ROOT / "docs" / "examples" / "python.ipynb").read_text())
    found = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] for cell in found)
    return ["".join(cell["source"]) + "\n" for cell in found]


def test_the_notebook_runs(tmp_path: Path) -> None:
    (tmp_path / "notebook.py").write_text("\n".join(cells()))
    said = python(tmp_path, "notebook.py").stdout
    result = read_summary(tmp_path / "runs" / "first")
    assert f"{result.test['accuracy']} {result.best_epoch}" in said.splitlines()
    predicted = pd.read_parquet(next((tmp_path / "runs" / "first").glob("predictions-*.parquet")))
    assert predicted["index"].tolist() == [0, 1, 2, 3, 4]
    pair = read_summary(tmp_path / "runs" / "pair" / "trials" / "cggm-seed-1")
    assert str(pair.test["accuracy"]) in said.splitlines()
