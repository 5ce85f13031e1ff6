"""Notebooks of the docs: their cells run one after the other, and what is shown under them was printed by a run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from programs import ROOT, python

from cggm_ray.runs.result import read_summary


def cells(name: str) -> list[str]:
    """The code of a notebook; every cell that prints has an output."""
    notebook = json.loads((ROOT / "docs" / "examples" / name).read_text())
    found = [
        ("".join(cell["source"]) + "\n", cell["outputs"]) for cell in notebook["cells"] if cell["cell_type"] == "code"
    ]
    assert not [code for code, outputs in found if re.search(r"^(print|report)\(", code, re.MULTILINE) and not outputs]
    return [code for code, _ in found]


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    (tmp_path / "notebook.py").write_text("\n".join(cells("python.ipynb")))
    said = python(tmp_path, "notebook.py").stdout
    result = read_summary(tmp_path / "runs" / "first")
    assert f"{result.test['accuracy']} {result.best_epoch}" in said.splitlines()
    predicted = pd.read_parquet(next((tmp_path / "runs" / "first").glob("predictions-*.parquet")))
    assert predicted["index"].tolist() == [0, 1, 2, 3, 4]
    pair = read_summary(tmp_path / "runs" / "pair" / "trials" / "cggm-seed-1")
    assert str(pair.test["accuracy"]) in said.splitlines()


def test_the_notebook_with_a_loop_runs(tmp_path: Path) -> None:
    (tmp_path / "notebook.py").write_text("\n".join(cells("own_loop.ipynb")))
    joint, balanced, last = python(tmp_path, "notebook.py").stdout.splitlines()
    for line, name in ((joint, "joint"), (balanced, "cggm")):
        assert re.fullmatch(rf"{name} +fused 0\.9\d\d, picture 0\.9\d\d, sound 0\.[67]\d\d", line), line
    assert "coefficient" in last
