"""Large CSV files and JSON lines are read by blocks, to the table of a file that is read whole; words are counted in parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from tables import products

from cggm_ray.core.errors import DataError
from cggm_ray.data.datasets.table import csv_blocks, json_records, kinds, readers, texts
from cggm_ray.data.datasets.table.cells import joined
from cggm_ray.data.datasets.table.columns import kinds_of
from cggm_ray.data.datasets.table.options import TableOptions
from cggm_ray.data.datasets.table.readers import read_table

OPTIONS = TableOptions(target="category")
FORMS = {
    "plain": lambda frame: frame.to_csv(index=False).encode(),
    "semicolons": lambda frame: b"\xef\xbb\xbf" + frame.to_csv(index=False, sep=";").encode(),
    "windows": lambda frame: frame.assign(maker="Caf\xe9").to_csv(index=False).encode("cp1252"),
    "lines": lambda frame: frame.assign(title="two\nlines, quoted").to_csv(index=False).encode(),
    "utf16": lambda frame: frame.to_csv(index=False).encode("utf-16"),
}


@pytest.mark.parametrize("form", FORMS)
def test_blocks_make_the_same_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(FORMS[form](products(300)))
    whole = read_table(path, OPTIONS)
    for module in (readers, kinds):
        monkeypatch.setattr(module, "LEAST_BYTES", 1)
    monkeypatch.setattr(csv_blocks, "BLOCK_BYTES", 2000)
    parts = read_table(path, OPTIONS)
    assert parts.about == whole.about
    assert parts.table.combine_chunks() == whole.table.combine_chunks()
    assert (parts.table.column(0).num_chunks > 3) == (form != "utf16")
    assert kinds_of(joined([parts]), OPTIONS, ()) == kinds_of(joined([whole]), OPTIONS, ())


def test_a_row_of_another_length_is_named_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.csv"
    lines = products(300).to_csv(index=False).splitlines()
    lines[200] += ",one more"
    path.write_text("\n".join(lines))
    monkeypatch.setattr(readers, "LEAST_BYTES", 1)
    monkeypatch.setattr(csv_blocks, "BLOCK_BYTES", 2000)
    with pytest.raises(DataError, match=r"t.csv, row 200: found 8 columns; expected 7"):
        read_table(path, OPTIONS)


RECORDS: dict[str, Callable[[int], dict[str, Any]]] = {
    "plain": lambda n: {"title": f"Caf\xe9 {n}", "stars": n, "price": n / 7, "sold": n % 2 == 0, "none": None},
    "a column that comes late, and one that ends": lambda n: {"a": n, **({"late": "x"} if n > 70 else {"early": 1.5})},
    "whole numbers, then others": lambda n: {"a": n if n < 50 else n + 0.5, "b": [n, n] if n < 50 else [0.5]},
    "nothing, then lists": lambda n: {"a": None if n < 50 else ["x"], "b": [] if n < 50 else [n]},
    "objects": lambda n: {"image": {"path": f"{n}.png", "bytes": None}, "a": n},
    "half of a pair each": lambda n: {"a": "\N{GRINNING FACE}", "n": n},
}
WHOLE: dict[str, Callable[[int], dict[str, Any]]] = {
    "numbers, then texts": lambda n: {"a": n if n < 50 else f"t{n}"},
    "numbers, then true": lambda n: {"a": n if n < 50 else True},
    "numbers that no float holds": lambda n: {"a": 2**60 + n if n < 50 else 0.5},
    "objects of other fields": lambda n: {"a": {"x": 1} if n < 50 else {"y": "2"}},
}


@pytest.mark.parametrize("form", [*RECORDS, *WHOLE])
def test_blocks_of_json_lines_make_the_same_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    path = tmp_path / "t.jsonl"
    lines = [json.dumps((RECORDS | WHOLE)[form](n)) for n in range(100)]
    path.write_text("\ufeff" + "\n\n".join(lines) + "\n")
    whole = read_table(path, OPTIONS)
    monkeypatch.setattr(readers, "LEAST_BYTES", 1)
    monkeypatch.setattr(json_records, "BLOCK_CHARACTERS", 300)
    parts = read_table(path, OPTIONS)
    assert parts.about == whole.about
    assert parts.table.schema == whole.table.schema
    assert parts.table.to_pylist() == whole.table.to_pylist()
    assert (json_records.read_lines(path, "utf-8", lambda table: table) is not None) == (form in RECORDS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "line 80: not a readable JSON file"),
        ('{"a": 1, "a": 2}', "line 80: not a readable JSON file: the key 'a' is there twice"),
        ("7", "row 80: found a int; expected an object with columns"),
        (r'{"a": "\ud800"}', "row 80: found .*half a character; expected Unicode"),
        ('{"a": [1]}', r"row 80, column a: found \[1\]; expected a int as in the rows before"),
    ],
)
def test_a_wrong_record_is_named_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(line if n == 79 else f'{{"a": {n}}}' for n in range(100)))
    monkeypatch.setattr(readers, "LEAST_BYTES", 1)
    monkeypatch.setattr(json_records, "BLOCK_CHARACTERS", 100)
    with pytest.raises(DataError, match=message):
        read_table(path, OPTIONS)


@pytest.mark.parametrize("most", [5, 40, 4096])
def test_words_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Many words are equally frequent, so that ties decide."""
    monkeypatch.setattr(texts, "ROWS", 7)
    random = np.random.default_rng(0)
    cells = [" ".join(f"w{n}" for n in random.integers(0, 60, 6)) for _ in range(100)]
    wanted = TfidfVectorizer(token_pattern=texts.TOKENS, sublinear_tf=True, max_features=most).fit(cells)
    words, idf = texts.word_weights(pa.array([*cells, None]), most)
    assert words == wanted.get_feature_names_out().tolist()
    assert idf == wanted.idf_.tolist()
    assert texts.word_weights(pa.array(["!", None]), most) == ([], [])


def test_distinct_texts_of_a_large_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "LEAST_BYTES", 1)
    monkeypatch.setattr(kinds, "ROWS", 16)
    values = [f"t{n % 37}" for n in range(200)]
    rows = joined([readers.FileRows(path=Path("t"), table=pa.table({"a": values}), about="")])
    assert kinds.Facts(rows.cells("a"), OPTIONS).distinct == pd.Series(values).nunique()
