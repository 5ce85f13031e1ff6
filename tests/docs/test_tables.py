"""docs/tables.md: the kind of column on the page, as a person would save and import it."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from programs import ROOT, blocks, command
from tables import products


@pytest.mark.slow
def test_a_kind_of_column_of_ones_own(tmp_path: Path) -> None:
    (program,) = blocks("tables.md")
    (tmp_path / "dates.py").write_text(program)
    frame = products(60).drop(columns="photo")
    first = pd.Timestamp("2024-01-01")
    frame["sold"] = [str((first + pd.Timedelta(days=9 * n)).date()) for n in range(60)]
    frame.to_csv(tmp_path / "products.csv", index=False)
    flags = ["--max_steps", "4", "--width", "16", "--report", "false", "--headroom", "false", "--standardise", "off"]
    flags += ["--local", "--storage_path", "runs", "--name", "r", "--column", "stock=drop", "--column", "id=id"]
    said = command(
        tmp_path,
        "train",
        "table",
        "--data_path",
        "products.csv",
        "--target",
        "category",
        "--import",
        "dates.py",
        *flags,
    ).stdout
    assert "sold date tab 0 days since the first date, and the day of the week" in " ".join(said.split())
    assert said.index("days since") < said.index("epoch 1")
    columns = json.loads((tmp_path / "runs" / "r" / "data.json").read_text())["manifest"]["notes"]["columns"]
    assert columns["sold"]["state"] == {"first": first.toordinal()}
    assert "stock" not in columns
    frame.drop(columns="category")[:3].to_csv(tmp_path / "new.csv", index=False)
    done = command(tmp_path, "predict", "runs/r", "--data_path", "new.csv")
    assert "imports" in done.stderr
    assert "which registered the column date" in done.stderr
    assert pq.read_table(tmp_path / "runs" / "r" / "predictions-new.parquet")["id"].to_pylist() == [
        "p000",
        "p001",
        "p002",
    ]
    frame.assign(sold="2024-02-31")[:3].to_csv(tmp_path / "new.csv", index=False)
    (line,) = command(tmp_path, "predict", "runs/r", "--data_path", "new.csv", code=2).stderr.splitlines()[1:]
    assert line.endswith("new.csv, row 1, column sold: found '2024-02-31'; expected a date such as 2024-12-31")
    assert (ROOT / "benchmarks" / "science" / "titles_and_photos.py").exists()
