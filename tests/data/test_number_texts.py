"""Numbers in texts of tables: decimal marks and marks between thousands, against pandas."""

from __future__ import annotations

import datetime
import decimal
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tables import converted, table_config

from cggm_ray.commands.cli import main
from cggm_ray.commands.predict import predict
from cggm_ray.core.errors import DataError
from cggm_ray.data.datasets.table.cells import Cells, Places
from cggm_ray.data.datasets.table.number_texts import as_numbers
from cggm_ray.recipes.base import RECIPES

SIZES = np.random.default_rng(0).normal(0, 400, 40).round(2)
NAMES = ["ja", "nein"] * 20


def german(value: float) -> str:
    return f"{value:,.2f}".translate(str.maketrans(",.", ".,"))


def written(folder: Path, columns: dict[str, list[str]], name: str = "t.csv", **how: str) -> Path:
    pd.DataFrame(columns).to_csv(folder / name, index=False, **how)
    return folder / name


def taken(
    folder: Path, columns: dict[str, list[str]], **options: object
) -> tuple[list[str], dict[str, str], np.ndarray]:
    """The lines about a table, the kinds of its columns, and the numbers of its modality `tab`, sorted."""
    path = written(folder, columns)
    manifest, splits = converted(table_config(folder, path, target="label", **options))
    kinds = {name: one["kind"] for name, one in manifest.notes["columns"].items()}
    values = np.concatenate([split.inputs["tab"] for split in splits.values() if "tab" in split.inputs])
    return manifest.notes["taken"], kinds, np.sort(values[:, 0])


@pytest.mark.parametrize(
    ("mark", "text", "value"),
    [
        (".", "12", 12),
        (".", " +.5e-1 ", 0.05),
        (".", "1,234,567.25", 1234567.25),
        (".", "-1\u00a0234.5", -1234.5),
        (".", "1'000", 1000),
        (",", "0,5", 0.5),
        (",", "-1.234.567,25", -1234567.25),
        (",", "+12 345,", 12345),
        (",", "1.234", 1234),
        (",", "1\u202f234", 1234),
        (".", "$1,234.50", 1234.5),
        (".", "-$ 3", -3),
        (".", "\u00a3-3", -3),
        (".", "4.5 %", 4.5),
        (",", "1.234,50 \u20ac", 1234.5),
        (".", "1e+3", 1000),
    ],
)
def test_a_text_means_a_number(mark: str, text: str, value: float) -> None:
    cells = Cells(name="c", values=pa.array([text, None]), places=Places(files=(Path("f"),), counts=(2,)))
    assert as_numbers(cells, mark).to_pylist() == [value, None]


@pytest.mark.parametrize(
    ("mark", "text"),
    [
        (".", "0,5"),
        (".", "1,23"),
        (".", "0,123"),
        (".", "12,3456"),
        (".", "1.2.3"),
        (",", "0.5"),
        (",", "1,2,3"),
        (",", "5,-"),
    ],
)
def test_a_text_that_means_none_is_named(mark: str, text: str) -> None:
    cells = Cells(name="c", values=pa.array(["1", text]), places=Places(files=(Path("f"),), counts=(2,)))
    with pytest.raises(DataError, match=r"f, row 2, column c: found .*; expected a number"):
        as_numbers(cells, mark)


@pytest.mark.parametrize("how", [{"sep": ";"}, {"sep": ",", "encoding": "utf-16"}, {"sep": "\t", "encoding": "cp1252"}])
def test_a_decimal_comma_is_found(tmp_path: Path, how: dict[str, str]) -> None:
    columns = {"größe": [german(value) for value in SIZES], "label": NAMES}
    path = written(tmp_path, columns, **how)
    expected = pd.read_csv(path, decimal=",", thousands=".", **how)["größe"]
    names = {"utf-16": "UTF-16", "cp1252": "Windows-1252"}
    manifest, splits = converted(table_config(tmp_path, path, target="label"))
    assert f"CSV in {names.get(how.get('encoding', ''), 'UTF-8')}" in manifest.notes["taken"][0]
    assert "decimal comma, because of" in manifest.notes["taken"][1]
    found = np.concatenate([split.inputs["tab"] for split in splits.values()])
    np.testing.assert_allclose(np.sort(found[:, 0]), np.sort(expected), rtol=1e-6)
    assert np.sort(expected) == pytest.approx(np.sort(SIZES))


def test_what_may_be_either_is_read_as_thousands_and_said(tmp_path: Path) -> None:
    price = [f"{n},{500 + n}" for n in range(1, 41)]
    lines, _, values = taken(tmp_path, {"price": price, "label": NAMES})
    assert lines[1] == "'1,501' in column price is read as thousands (--decimal , reads the comma as decimal)"
    np.testing.assert_array_equal(values, np.arange(1501, 41_501, 1001))
    lines, _, _ = taken(tmp_path, {"size": [f"{n}.125" for n in range(1, 41)], "price": price, "label": NAMES})
    assert "'1,501' in column price is read as thousands" in lines[1]
    lines, _, values = taken(tmp_path, {"price": price, "label": NAMES}, decimal=",")
    assert not any("comma" in line for line in lines)
    np.testing.assert_allclose(values, np.arange(1.501, 41.5, 1.001), rtol=1e-6)
    weight = [f"0,{n}" for n in range(10, 50)]
    lines, _, values = taken(tmp_path, {"price": price, "weight": weight, "label": NAMES})
    assert lines[1] == "decimal comma, because of '0,10' in column weight (--decimal . reads it as a text)"
    np.testing.assert_allclose(values, np.arange(1.501, 41.5, 1.001), rtol=1e-6)


def test_of_two_marks_the_point_counts_and_the_comma_is_named(tmp_path: Path) -> None:
    columns = {"pair": [f"{n % 4},{n % 3}" for n in range(40)], "size": [f"{value}" for value in SIZES], "label": NAMES}
    lines, kinds, _ = taken(tmp_path, columns)
    assert lines[1] == (
        f"decimal point, because of '{SIZES[0]}' in column size; so '0,0' in column pair is no number (--decimal , reads it "
        "as one)"
    )
    assert kinds == {"pair": "categorical", "size": "numeric"}


def test_labels_with_commas_are_no_numbers(tmp_path: Path) -> None:
    columns = {"size": [f"{n}" for n in range(40)], "label": [f"{n % 4},{n % 3 + 5}" for n in range(40)]}
    path = written(tmp_path, columns)
    manifest, _ = converted(table_config(tmp_path, path, target="label", label_separator=","))
    assert manifest.notes["classes"] == ["0", "1", "2", "3", "5", "6", "7"]
    assert manifest.notes["decimal"] == "."


def test_new_data_is_read_with_the_mark_of_training(tmp_path: Path) -> None:
    """By itself 1,250 would be thousands."""
    path = written(tmp_path, {"size": [f"{value:.3f}".replace(".", ",") for value in SIZES / 400], "label": NAMES})
    place = ["--storage_path", str(tmp_path), "--name", "run", "--report", "false"]
    flags = ["--local", "--data_path", str(path), "--target", "label", "--max_steps", "4", *place]
    assert main(RECIPES.get("table").config, flags) == 0
    folder = tmp_path / "run"
    found = [
        pq.read_table(predict(folder, data_path=written(tmp_path, {"size": [text]}, f"{number}.csv")).path)
        for number, text in enumerate(("1,250", "1,25"))
    ]
    assert "probability" in " ".join(found[0].column_names)
    assert found[0] == found[1]


def test_new_data_has_the_sign_of_training(tmp_path: Path) -> None:
    path = written(tmp_path, {"size": [f"${value}" for value in SIZES], "label": NAMES})
    place = ["--storage_path", str(tmp_path), "--name", "run", "--report", "false"]
    flags = ["--local", "--data_path", str(path), "--target", "label", "--max_steps", "4", *place]
    assert main(RECIPES.get("table").config, flags) == 0
    for number, text in enumerate(("$5", "5")):
        predict(tmp_path / "run", data_path=written(tmp_path, {"size": [text]}, f"{number}.csv"))
    with pytest.raises(
        DataError, match=r"other\.csv, row 2, column size: found '5 %'; expected a number with \$, as in"
    ):
        predict(tmp_path / "run", data_path=written(tmp_path, {"size": ["$5", "5 %"]}, "other.csv"))
    with pytest.raises(
        DataError, match=r"all\.csv, row 1, column size: found '\u20ac5'; expected a number with \$, as in"
    ):
        predict(tmp_path / "run", data_path=written(tmp_path, {"size": ["\u20ac5"]}, "all.csv"))


def test_files_of_splits_have_one_sign(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for split, sign in (("train", "$"), ("test", "\u00a3")):
        written(tmp_path / "set", {"size": [f"{sign}{value}" for value in SIZES], "label": NAMES}, f"{split}.csv")
    with pytest.raises(DataError, match=r"test\.csv, row 1, column size: found '\u00a3.*; expected a number with \$"):
        converted(table_config(tmp_path, tmp_path / "set", target="label"))


def test_decimals_of_databases_are_numbers(tmp_path: Path) -> None:
    values = [decimal.Decimal(f"{value:.2f}") for value in SIZES]
    table = pa.table({"price": values, "rest": [str(n % 3) for n in range(40)], "label": values})
    pq.write_table(table, tmp_path / "t.parquet")
    manifest, splits = converted(table_config(tmp_path, tmp_path / "t.parquet", target="label"))
    assert manifest.notes["task"] == "regression"
    for split in splits.values():
        np.testing.assert_allclose(split.inputs["tab"][:, 0], split.target[:, 0])


def test_dates_in_other_orders_are_no_inputs(tmp_path: Path) -> None:
    days = [datetime.date(2020, 1, 1) + datetime.timedelta(days=n % 9) for n in range(40)]
    shapes = {"iso": "%Y-%m-%d", "german": "%d.%m.%Y", "american": "%m/%d/%y", "time": "%d/%m/%Y 10:30"}
    columns = {name: [day.strftime(shape) for day in days] for name, shape in shapes.items()}
    lines, kinds, _ = taken(tmp_path, {**columns, "size": [f"{value}" for value in SIZES], "label": NAMES})
    assert list(kinds) == ["size"]
    assert all(f"{name} (dates; --column {name}=categorical" in " ".join(lines) for name in shapes)


def test_signs_that_differ_are_named(tmp_path: Path) -> None:
    price = [f"${n}.25" for n in range(40)]
    _, kinds, values = taken(tmp_path, {"price": price, "label": NAMES})
    assert kinds == {"price": "numeric"}
    np.testing.assert_array_equal(values, np.arange(40) + 0.25)
    price[7] = "\u20ac7.25"
    with pytest.raises(
        DataError, match=r"row 8, column price: found '\u20ac7.25'; expected a number with \$, as in other rows"
    ):
        taken(tmp_path, {"price": price, "label": NAMES})


def test_parts_of_nested_records_are_columns(tmp_path: Path) -> None:
    records = [
        {"of": {"size": float(value), "place": {"city": "AB"[n % 2]}}, "none": {}, "label": NAMES[n]}
        for n, value in enumerate(SIZES)
    ]
    records[3]["of"] = None
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    manifest, splits = converted(table_config(tmp_path, tmp_path / "t.jsonl", target="label"))
    flat = pd.json_normalize([record for n, record in enumerate(records) if n != 3])
    kinds = {name: one["kind"] for name, one in manifest.notes["columns"].items()}
    assert kinds == {"of.size": "numeric", "of.place.city": "categorical"}
    assert set(kinds) < set(flat)
    values = np.concatenate([split.inputs["tab"] for split in splits.values()])
    # The row without them gets the mean of training, and a mark.
    known = values[values[:, 1] == 0][:, 0] if values.shape[1] > 5 else values[:, 0]
    assert set(np.float32(flat["of.size"])) <= set(known)


def test_a_target_that_is_no_number_may_be_a_class(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"row 1, column label: found 'rare'; expected a number \(or --task classification\)"
    ):
        taken(tmp_path, {"size": [f"{value}" for value in SIZES], "label": ["rare", *"01" * 19, "0"]})
