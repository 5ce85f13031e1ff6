"""Bad features: one clear line that names file, column and row."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feature_sets import arrays, config

from cggm_ray.core.errors import DataError, UsageError
from cggm_ray.data.datasets.features import FeatureOptions
from cggm_ray.data.shards.shards import write_shards_here
from cggm_ray.engine.assembly import prepare_data


def edit(**changes: object) -> dict[str, np.ndarray]:
    content = {**arrays(), **changes}
    return {name: np.asarray(values) for name, values in content.items() if values is not None}


def at(name: str, row: int, value: float) -> np.ndarray:
    values = arrays()[name].astype(np.float64)
    values[row] = value
    return values


BAD: dict[str, tuple[dict[str, np.ndarray], str | None, dict[str, object]]] = {
    "target missing": (edit(label=None), None, {}),
    "modality missing": (edit(), "words,fase", {}),
    "no array of numbers": (edit(words=None, face=None, age=None), None, {}),
    "label outside": (edit(), None, {"classes": ("0", "1")}),
    "class only in valid": (
        edit(label=np.where(arrays()["part"] == "val", 7, np.arange(30) % 2)),
        None,
        {"split": "part"},
    ),
    "one class": (edit(label=np.zeros(30, int)), None, {}),
    "half a class": (edit(label=at("label", 4, 0.5)), None, {}),
    "target that is not a number": (edit(mark=at("mark", 3, np.nan)), None, {"task": "regression", "target": "mark"}),
    "target of texts": (edit(), None, {"task": "regression", "target": "id"}),
    "infinite feature": (edit(age=at("age", 2, np.inf)), None, {}),
    "too few rows": (edit(age=arrays()["age"][:20]), None, {}),
    "texts as modality": (edit(), "id,part", {"target": "label"}),
    "texts as features": (edit(), "part,age", {}),
    "five axes": (edit(words=np.zeros((30, 2, 2, 2, 2))), None, {}),
    "wrong kind": (edit(), None, {"kinds": ("age:image",)}),
    "kind of nothing": (edit(), None, {"kinds": ("aeg:vector",)}),
    "unknown split": (edit(part=np.array(["train", "rest"] * 15)), None, {"split": "part"}),
    "no test": (edit(part=np.array(["train", "val"] * 15)), None, {"split": "part"}),
    "more steps than there are": (edit(n=np.full(30, 9)), None, {"lengths": ("words:n",)}),
    "presence of another length": (edit(age_present=np.ones(4, bool)), None, {}),
    "sample without any modality": (
        edit(age_present=np.arange(30) != 5, words_present=np.arange(30) != 5),
        "age,words",
        {},
    ),
}


def test_bad_files_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "o.npz", allow_pickle=True, x=np.array([Path, None], dtype=object), label=np.arange(2))
    (tmp_path / "cut.npz").write_bytes(b"PK")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1]))
    (tmp_path / "x.csv").write_text("a")
    (tmp_path / "empty").mkdir()
    pq.write_table(pa.table({"age": [[1.0], [1.0, 2.0]], "label": [0, 1]}), tmp_path / "ragged.parquet")
    pq.write_table(pa.table({"age": [[1.0, 3.0], [2.0, 4.0]], "label": [0, None]}), tmp_path / "null.parquet")
    expected = {
        "o.npz": "refused to load pathlib.* a data file may hold numpy arrays",
        "cut.npz": "not a readable .npz",
        "cut.parquet": "not a readable parquet file",
        "list.pkl": "found a list; expected a dict",
        "x.csv": "unknown suffix '.csv'",
        "empty": "found 0 feature files",
        "ragged.parquet": r"column age, row 1: shape \(2,\); row 0 has \(1,\)",
        "null.parquet": "target label, row 1: is missing",
    }
    for file, message in expected.items():
        with pytest.raises(DataError, match=message):
            prepare_data(config(tmp_path, tmp_path / file), write_shards_here)


@pytest.mark.parametrize(
    "options", [{"task": "ranking"}, {"kinds": ("a:b",)}, {"kinds": ("a",)}, {"valid_share": 0.9}, {"split_seed": -1}]
)
def test_bad_options_are_named(options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(UsageError, match=f"^{name}: "):
        FeatureOptions(**options)  # type: ignore[arg-type]
