"""Tables: what columns are taken for, the numbers that become of them, splits and targets, against pandas and scikit-learn."""

from __future__ import annotations

import bz2
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from tables import converted, products, table_config, with_photos

from cggm_ray.core.errors import DataError
from cggm_ray.data.datasets.table.cells import as_texts
from cggm_ray.data.datasets.table.options import TableOptions
from cggm_ray.data.datasets.table.readers import read_table
from cggm_ray.data.datasets.table.splitting import by_groups
from cggm_ray.data.loading.split import TensorSplit


def as_csv(folder: Path, frame: pd.DataFrame) -> Path:
    frame.to_csv(folder / "t.csv", index=False)
    return folder / "t.csv"


def as_semicolons(folder: Path, frame: pd.DataFrame) -> Path:
    (folder / "t.csv").write_bytes(b"\xef\xbb\xbf" + frame.to_csv(index=False, sep=";").encode())
    return folder / "t.csv"


def as_lines(folder: Path, frame: pd.DataFrame) -> Path:
    frame.to_json(folder / "t.jsonl", orient="records", lines=True)
    return folder / "t.jsonl"


def as_json(folder: Path, frame: pd.DataFrame) -> Path:
    frame.to_json(folder / "t.json", orient="records")
    return folder / "t.json"


def as_parquet(folder: Path, frame: pd.DataFrame) -> Path:
    frame.to_parquet(folder / "t.parquet", row_group_size=17)
    return folder / "t.parquet"


def compressed(ending: str) -> Callable[[Path, pd.DataFrame], Path]:
    """A writer of compressed CSV, which pandas packs by the ending."""

    def write(folder: Path, frame: pd.DataFrame) -> Path:
        frame.to_csv(folder / f"t.csv{ending}", index=False)
        return folder / f"t.csv{ending}"

    return write


def as_packed_lines(folder: Path, frame: pd.DataFrame) -> Path:
    (folder / "t.jsonl.bz2").write_bytes(bz2.compress(frame.to_json(orient="records", lines=True).encode()))
    return folder / "t.jsonl.bz2"


def saved_to_disk(folder: Path, frame: pd.DataFrame) -> Path:
    """As `save_to_disk` of datasets writes it: two Arrow streams, a state, and numbers of classes with names in the schema."""
    path = folder / "saved"
    path.mkdir()
    names = sorted(set(frame["category"]))
    frame = frame.assign(category=[names.index(name) for name in frame["category"]])
    features = {name: {"dtype": "string", "_type": "Value"} for name in frame} | {
        "category": {"names": names, "_type": "ClassLabel"}
    }
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(about)
    files = []
    for number, part in enumerate((table.slice(0, 25), table.slice(25))):
        files.append(f"data-{number:05d}-of-00002.arrow")
        with pa.OSFile(str(path / files[-1]), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(part)
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in files]}))
    (path / "dataset_info.json").write_text(json.dumps({"features": features}))
    return path


def rows_of(split: TensorSplit, frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of a frame in the order of a split."""
    return frame.set_index("id").loc[list(split.names or ())].reset_index()


PACKED = [pytest.param(compressed(ending), id=ending[1:]) for ending in (".gz", ".xz")]


@pytest.mark.parametrize(
    "write", [as_csv, as_semicolons, as_lines, as_json, as_parquet, saved_to_disk, as_packed_lines, *PACKED]
)
def test_every_format_gives_what_pandas_and_scikit_learn_give(
    tmp_path: Path, write: Callable[[Path, pd.DataFrame], Path]
) -> None:
    frame = products()
    data = tmp_path / "data"
    data.mkdir()
    path = write(data, frame)
    with_photos(path if path.is_dir() else data, frame)
    manifest, splits = converted(table_config(tmp_path, path, image_size=12))
    assert manifest.notes["classes"] == ["bag", "shirt", "shoe"]
    assert list(manifest.modalities) == ["title", "tab", "photo"]
    assert manifest.notes["kinds"] == {"title": "vector", "tab": "vector", "photo": "image"}
    assert {name: len(split) for name, split in splits.items()} == {"train": 48, "valid": 6, "test": 6}
    train = rows_of(splits["train"], frame)
    imputer = SimpleImputer(add_indicator=True).fit(train[["price"]])
    vectorizer = TfidfVectorizer(sublinear_tf=True).fit(train["title"].dropna())
    for split in splits.values():
        part = rows_of(split, frame)
        one_hot = pd.get_dummies(part["maker"].fillna("?")).reindex(columns=["Alma", "Berg", "Corvo", "unknown", "?"])
        expected = np.column_stack([one_hot.fillna(0), imputer.transform(part[["price"]]), part["stock"]])
        np.testing.assert_allclose(split.inputs["tab"], expected.astype(np.float64), rtol=1e-5)
        texts = vectorizer.transform(part["title"].fillna("")).toarray()
        np.testing.assert_allclose(split.inputs["title"], texts, atol=1e-6)
        assert split.masks["title"].flatten().tolist() == part["title"].notna().tolist()
        assert [manifest.notes["classes"][number] for number in split.target] == part["category"].tolist()
        # Drawn in the order of the file, whose photos show the class as their strongest colour.
        assert split.inputs["photo"].float().mean((1, 2)).argmax(1).tolist() == split.target.tolist()


def test_splits_as_datasets_saves_and_publishes_them(tmp_path: Path) -> None:
    """A dictionary of splits that was saved to disk, and parquet as on the hub; images are bytes, classes numbers."""
    frame = products(60)
    with_photos(tmp_path, frame)
    names = sorted(set(frame["category"]))
    about = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    table = pa.table(
        {
            "image": pa.array([{"bytes": (tmp_path / path).read_bytes(), "path": path} for path in frame["photo"]]),
            "text": pa.array(frame["title"], from_pandas=True),
            "label": pa.array([names.index(name) for name in frame["category"]]),
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": about}})})
    parts = {"train": table.slice(0, 40), "validation": table.slice(40, 10), "test": table.slice(50)}
    saved, hub = tmp_path / "saved", tmp_path / "hub" / "data"
    hub.mkdir(parents=True)
    for name, part in parts.items():
        (saved / name).mkdir(parents=True)
        with pa.OSFile(str(saved / name / "data.arrow"), "wb") as sink, pa.ipc.new_stream(sink, part.schema) as writer:
            writer.write_table(part)
        (saved / name / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
        pq.write_table(part, hub / f"{name}-00000-of-00001.parquet")
    (saved / "dataset_dict.json").write_text(json.dumps({"splits": list(parts)}))
    for path in (saved, hub.parent):
        manifest, splits = converted(table_config(tmp_path, path, target="label", image_size=8))
        assert manifest.notes["classes"] == names
        assert manifest.notes["kinds"] == {"image": "image", "text": "vector"}
        assert {name: len(split) for name, split in splits.items()} == {"train": 40, "valid": 10, "test": 10}
        assert [names[number] for number in splits["test"].target] == frame["category"][50:].tolist()


def small(rows: int = 40) -> pd.DataFrame:
    """Columns of many types, and none that a photo is needed for."""
    random = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "Unnamed: 0": np.arange(rows),
            "customer_id": [f"c{n}" for n in range(rows)],
            "code": [f"x{n}y" for n in range(rows)],
            "age": random.integers(20, 60, rows),
            "site": random.choice(["A", "B"], rows),
            "flag": random.choice([True, False], rows),
            "note": [f"patient number {n} feels {'well' if n % 2 else 'ill'} today" for n in range(rows)],
            "day": [f"2024-01-{n % 28 + 1:02d}" for n in range(rows)],
            "source": "web",
            "empty": None,
            "type": [f"line {n} of text" for n in range(rows)],
            "label": np.arange(rows) % 2,
            "score": random.normal(size=rows),
        }
    )


def inputs(folder: Path, frame: pd.DataFrame, **options: object) -> dict[str, tuple[str, str]]:
    """Column to its kind and modality."""
    settings = table_config(folder, as_csv(folder, frame), **({"target": "label"} | options))
    manifest, _ = converted(settings)
    return {name: (one["kind"], one["modality"]) for name, one in manifest.notes["columns"].items()}


def test_columns_are_inferred_and_said(tmp_path: Path) -> None:
    assert inputs(tmp_path, small()) == {
        "age": ("numeric", "tab"),
        "site": ("categorical", "tab"),
        "flag": ("categorical", "tab"),
        "note": ("text", "note"),
        "type": ("text", "type_"),
        "score": ("numeric", "tab"),
    }
    manifest, _ = converted(table_config(tmp_path, tmp_path / "t.csv", target="label"))
    taken = manifest.notes["taken"]
    assert taken[0].endswith("t.csv, CSV in UTF-8, delimiter ',', 40 rows")
    assert taken[1].startswith("target: label, classification (2 different whole numbers; --task regression")
    (left,) = [line for line in taken if line.startswith("no input: ")]
    for said in (
        "source (the same value in every row)",
        "empty (has no value)",
        "day (dates;",
        "code (another text in every",
    ):
        assert said in left
    assert manifest.notes["identity"] == "Unnamed: 0"


def test_columns_as_the_user_says(tmp_path: Path) -> None:
    found = inputs(
        tmp_path,
        small(),
        column=("age=categorical", "day=text", "score=drop", "customer_id=id", "Unnamed: 0=drop"),
        modality=("lab=flag", "words=note", "type"),
    )
    assert found == {
        "age": ("categorical", "tab"),
        "site": ("categorical", "tab"),
        "flag": ("categorical", "lab"),
        "note": ("text", "words"),
        "day": ("text", "day"),
        "type": ("text", "words"),
    }
    _, splits = converted(
        table_config(tmp_path, tmp_path / "t.csv", target="label", column=("customer_id=id", "Unnamed: 0=drop"))
    )
    assert all(name.startswith("c") for name in splits["test"].names or ())


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        ([0, 1] * 20, None, ["0", "1"]),
        ([10, 9, 2, 1] * 10, None, ["1", "2", "9", "10"]),
        ([f"{n}.5" for n in range(40)], None, None),
        (list(range(40)), None, None),
        ([1, 2] * 20, "regression", None),
        (["yes", "no"] * 20, None, ["no", "yes"]),
        ([True, False] * 20, None, ["False", "True"]),
        ([1.0, 0.0] * 19 + [None, 1.0], None, ["0", "1"]),
    ],
)
def test_targets(tmp_path: Path, values: list[object], task: str | None, classes: list[str] | None) -> None:
    frame = small().assign(label=values)
    options = {"task": task} if task else {}
    settings = table_config(tmp_path, as_csv(tmp_path, frame), target="label", **options)
    manifest, splits = converted(settings)
    assert manifest.notes["classes"] == classes
    known = [value for value in values if value is not None]
    assert sum(map(len, splits.values())) == len(known)
    if classes is None:
        found = np.concatenate([split.target for split in splits.values()]).ravel()
        np.testing.assert_allclose(np.sort(found), np.sort(np.array(known, float)), rtol=1e-6)


def test_splits_by_files_column_and_groups(tmp_path: Path) -> None:
    frame = small(60).assign(part=np.repeat(["train", "dev", "test"], 20), patient=np.arange(60) // 3)
    _, splits = converted(table_config(tmp_path, as_csv(tmp_path, frame), target="label", split_column="part"))
    assert {name: len(split) for name, split in splits.items()} == {"train": 20, "valid": 20, "test": 20}
    manifest, splits = converted(table_config(tmp_path, tmp_path / "t.csv", target="label", group_column="patient"))
    owners = [{int(name) // 3 for name in split.names or ()} for split in splits.values()]
    assert len(set.union(*owners)) == sum(map(len, owners)) == 20
    assert "patient" not in manifest.notes["columns"]
    assert [len(split) for split in splits.values()] == [48, 6, 6]
    folder = tmp_path / "folder"
    folder.mkdir()
    frame[:40].to_csv(folder / "train.csv", index=False)
    frame[40:].to_csv(folder / "test.csv", index=False)
    (folder / "notes.json").write_text("{}")
    manifest, splits = converted(table_config(tmp_path, folder, target="label"))
    assert [len(split) for split in splits.values()] == [36, 4, 20]
    assert f"not read: {folder / 'notes.json'}" in manifest.notes["taken"]
    # A competition's test file has no target.
    frame[40:].drop(columns="label").to_csv(folder / "test.csv", index=False)
    manifest, splits = converted(table_config(tmp_path, folder, target="label"))
    assert [len(split) for split in splits.values()] == [32, 4, 4]
    assert any("has no column label and is not used" in line for line in manifest.notes["taken"])


def test_groups_meet_their_shares() -> None:
    groups = np.repeat(np.arange(50), np.random.default_rng(0).integers(1, 9, 50))
    rows = by_groups(groups.astype(str), (0.2, 0.1), 3)
    assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(len(groups)))
    for split, share in (("valid", 0.2), ("test", 0.1)):
        assert abs(len(rows[split]) / len(groups) - share) < 0.05
    assert by_groups(groups.astype(str), (0.2, 0.1), 4)["test"].tolist() != rows["test"].tolist()


def test_arrays_tensors_and_bytes_of_images(tmp_path: Path) -> None:
    frame = small()[["age", "label"]]
    random = np.random.default_rng(2)
    vectors, maps = random.normal(size=(40, 5)), random.normal(size=(40, 4, 3)).astype(np.float32)
    folder = with_photos(tmp_path, products(40))
    content = [{"bytes": (folder / f"photos/{n:03d}.png").read_bytes(), "path": None} for n in range(40)]
    content[3] = None  # type: ignore[call-overload]
    table = pa.table(
        {
            **{name: pa.array(frame[name]) for name in frame},
            "vector": pa.array([None if n == 2 else row.tolist() for n, row in enumerate(vectors)]),
            "map": pa.FixedShapeTensorArray.from_numpy_ndarray(maps),
            "picture": pa.array(content, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            "tags": pa.array([["red", "shoe"], ["blue"]] * 20),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    manifest, splits = converted(table_config(tmp_path, tmp_path / "t.parquet", target="label", image_size=12))
    kinds = {"tab": "vector", "vector": "vector", "map": "sequence", "picture": "image", "tags": "vector"}
    assert manifest.notes["kinds"] == kinds
    whole = {name: np.concatenate([split.inputs[name] for split in splits.values()]) for name in kinds}
    there = np.concatenate([split.masks["vector"].flatten() for split in splits.values()])
    assert int((~there).sum()) == 1
    # The age orders the rows, because the set has no names.
    assert np.sort(whole["vector"].sum(1)) == pytest.approx(
        np.sort(np.where(np.arange(40) == 2, 0, vectors.sum(1))), rel=1e-4
    )
    assert np.sort(whole["map"].ravel()) == pytest.approx(np.sort(maps.ravel()))
    assert whole["picture"].shape == (40, 12, 12, 3)
    assert int((whole["picture"].max((1, 2, 3)) == 0).sum()) == 1


def test_what_a_csv_may_look_like(tmp_path: Path) -> None:
    """Quoted line breaks and delimiters, Windows-1252, decimal commas, and a header with spaces and an empty name."""
    text = ["; name ;price;label"]
    text += [
        f'{n};"Stück; {"lang" if n % 2 else "kurz"}\nmit Knopf {n}";{n},25;{"ja" if n % 3 else "nein"}'
        for n in range(30)
    ]
    (tmp_path / "t.csv").write_bytes("\r\n".join(text).encode("cp1252"))
    settings = table_config(tmp_path, tmp_path / "t.csv", target="label", decimal=",")
    manifest, splits = converted(settings)
    said = manifest.notes["taken"][0]
    assert said.endswith(
        "CSV in Windows-1252, because it is not UTF-8 (--encoding names another), delimiter ';', 30 rows"
    )
    assert manifest.notes["identity"] == "Unnamed: 0"
    assert "stück" in manifest.notes["columns"]["name"]["state"]["words"]
    prices = np.concatenate([split.inputs["tab"] for split in splits.values()]).ravel()
    np.testing.assert_allclose(np.sort(prices), np.arange(30) + 0.25)


def test_a_csv_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("".join(f"a word or {n + 5},{n},{'xy'[n % 2]}\n" for n in range(30)))
    names = ("title", "size", "kind")
    manifest, splits = converted(table_config(tmp_path, tmp_path / "t.csv", target="kind", column_names=names))
    assert list(manifest.notes["columns"]) == ["title", "size"]
    assert sum(map(len, splits.values())) == 30


def test_rows_without_any_input_are_left_out_and_said(tmp_path: Path) -> None:
    frame = products(60).drop(columns="photo")
    path = as_csv(tmp_path, frame)
    settings = table_config(tmp_path, path, changes={"modalities": "title", "modulation": "none"})
    manifest, splits = converted(settings)
    assert sum(map(len, splits.values())) == int(frame["title"].notna().sum())
    assert any("rows have no value in any input and are left out, " in line for line in manifest.notes["taken"])


def test_options_that_change_numbers_make_other_shards(tmp_path: Path) -> None:
    path = as_csv(tmp_path, small())
    for changes in ({}, {"skip_bad": 3}, {"text_features": 7}, {"split_seed": 5}):
        converted(table_config(tmp_path, path, target="label", **changes))
    assert len(list((tmp_path / "runs" / "shards").glob("table-*"))) == 3


@pytest.mark.parametrize("line", ['{"\\ud800": 1}', '{"a": ["\\uD83D"]}'])
def test_half_a_character_in_json_lines(tmp_path: Path, line: str) -> None:
    """JSON can name it, and no text can hold it; a whole one in two halves is read."""
    path = tmp_path / "t.jsonl"
    path.write_text('{"a": "\\ud83d\\ude00"}\n')
    assert read_table(path, TableOptions()).table.column("a").to_pylist() == ["\U0001f600"]
    path.write_text('{"a": ["x"]}\n' + line + "\n")
    with pytest.raises(DataError, match=r"t\.jsonl, row 2: found '.*', half a character"):
        read_table(path, TableOptions())


def test_a_column_without_a_number_in_training_names_the_file(tmp_path: Path) -> None:
    rows = [
        f"{'' if n < 8 else n},{n % 2},{'train' if n < 8 else 'valid' if n < 10 else 'test'},{n}" for n in range(12)
    ]
    (tmp_path / "t.csv").write_text("\n".join(["size,category,split,other", *rows]))
    with pytest.raises(DataError, match=r"t\.csv, column size: has no number in the training split"):
        converted(table_config(tmp_path, tmp_path / "t.csv"))


@pytest.mark.parametrize("name", ["x" * 5000, "\ud800"])
def test_a_name_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(DataError, match=str(tmp_path)):
        converted(table_config(tmp_path, tmp_path))


@pytest.mark.parametrize("other", [None, [1.0]])
def test_arrays_that_differ_between_splits(tmp_path: Path, other: list[float] | None) -> None:
    """A split may lack them all; arrays of another shape are named with their file."""
    for name in ("train", "valid", "test"):
        rows = [{"a": [1.0, n] if name == "train" else other, "b": n, "category": "pq"[n % 2]} for n in range(8)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    settings = table_config(tmp_path, tmp_path, column=("a=array",))
    if other is None:
        assert not converted(settings)[1]["test"].masks["a"].any()
    else:
        with pytest.raises(DataError, match=r"valid\.parquet, column a: found arrays of shape \[1\]; expected \[2\]"):
            converted(settings)


def test_structures_and_bytes_as_texts() -> None:
    """A column of splits or groups may hold them, and they name no split."""
    assert as_texts(pa.array([{"a": [1]}, None])).to_pylist() == ["{'a': [1]}", None]
    assert as_texts(pa.array([b"x", b"\xff"])).to_pylist() == ["b'x'", "b'\\xff'"]
