"""Runs on tables: new data with and without target, frozen encoders, what is refused, and calls from Python."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tables import converted, products, small_vit, table_config, with_photos

import cggm_ray
from cggm_ray.commands.predict import predict
from cggm_ray.commands.train import run
from cggm_ray.core.errors import DataError, UsageError

DATA = Path(os.environ.get("CGGM_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """The folder of a finished run, and its table."""
    folder, frame = tmp_path_factory.mktemp("table"), products(90)
    with_photos(folder, frame)
    frame.to_csv(folder / "t.csv", index=False)
    result = run(table_config(folder, folder / "t.csv", image_size=12))
    assert result is not None
    assert result.test["accuracy"] > 0.9
    return result.folder, frame


def predicted(folder: Path, data: Path, out: Path, split: str | None = None) -> pd.DataFrame:
    return pq.read_table(predict(folder, data, split, out).path).to_pandas()


def test_new_rows_are_predicted_as_they_come(trained: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    """A single row, rows without target in another order and of another format, and an unknown maker."""
    folder, frame = trained
    data = with_photos(tmp_path, frame)
    order = [7, 50, 3, 88]
    some = frame.iloc[order].drop(columns="category").assign(further="x")
    some.to_json(data / "new.json", orient="records")
    found = predicted(folder, data / "new.json", tmp_path / "some.parquet")
    assert found["id"].tolist() == frame["id"].iloc[order].tolist()
    assert found["target"].isna().all()
    frame.to_csv(data / "all.csv", index=False)
    every = predicted(folder, data / "all.csv", tmp_path / "every.parquet")
    assert every["target"].tolist() == [["bag", "shirt", "shoe"].index(name) for name in frame["category"]]
    assert (every["class"] == frame["category"]).mean() > 0.9
    for row, place in enumerate(order):
        np.testing.assert_allclose(found["prediction"][row], every["prediction"][place], atol=1e-5)
    flat = pd.read_csv(predict(folder, data / "all.csv", None, tmp_path / "every.csv").path)
    assert flat[["id", "target", "class"]].equals(
        every[["id", "class"]].assign(target=frame["category"])[["id", "target", "class"]]
    )
    chances = flat[[f"probability {name}" for name in ("bag", "shirt", "shoe")]]
    np.testing.assert_allclose(chances, np.stack(every["probability"]), rtol=1e-5)
    one = frame.iloc[[3]].assign(maker="Zorro", category=None)
    one.to_csv(data / "one.csv", index=False)
    assert predicted(folder, data / "one.csv", tmp_path / "one.parquet")["class"].tolist() == ["bag"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda frame: frame.drop(columns="price"), "column 'price' is missing; found the columns id, title"),
        (lambda frame: frame.assign(price="cheap"), "row 1, column price: found 'cheap'; expected a number"),
        (
            lambda frame: frame.assign(photo="photos/none.png"),
            "row 1, column photo: found 'photos/none.png'; expected a",
        ),
        (lambda frame: frame.assign(category="sock"), "found 'sock'; expected one of the 3 classes bag, shirt, shoe"),
        (lambda frame: frame.assign(photo="../../x.png"), "expected a path that is relative to"),
    ],
)
def test_new_rows_that_are_refused(
    trained: tuple[Path, pd.DataFrame], tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], expected: str
) -> None:
    folder, frame = trained
    data = with_photos(tmp_path, frame[:1])
    change(frame[:1].copy()).to_csv(data / "new.csv", index=False)
    with pytest.raises(DataError, match=r"new\.csv") as error:
        predict(folder, data / "new.csv", None, tmp_path / "x.parquet")
    assert expected in str(error.value)


def test_media_of_new_rows_lie_beside_them_where_the_old_folder_is_gone(tmp_path: Path) -> None:
    frame = products(30)
    (tmp_path / "old").mkdir()
    frame.to_csv(tmp_path / "t.csv", index=False)
    with_photos(tmp_path / "old", frame)
    changes = {"max_steps": 4, "standardise": "off"}
    settings = table_config(
        tmp_path, tmp_path / "t.csv", changes=changes, image_size=8, media_path=str(tmp_path / "old")
    )
    result = run(settings)
    assert result is not None
    shutil.move(tmp_path / "old", tmp_path / "new")
    frame.to_csv(tmp_path / "new" / "t.csv", index=False)
    found = predicted(result.folder, tmp_path / "new" / "t.csv", tmp_path / "p.parquet")
    assert len(found) == 30
    # The table may lie elsewhere, where a folder of media is named.
    predict(result.folder, tmp_path / "t.csv", None, tmp_path / "q.parquet", media_path=tmp_path / "new")
    again = pq.read_table(tmp_path / "q.parquet").to_pandas()
    np.testing.assert_array_equal(np.stack(again["prediction"]), np.stack(found["prediction"]))
    with pytest.raises(DataError, match=r"media_path: .*gone is no folder"):
        predict(result.folder, tmp_path / "t.csv", None, tmp_path / "r.parquet", media_path=tmp_path / "gone")


def test_a_table_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame of pandas, and a dict of columns; the numbers are those of the command line."""
    monkeypatch.chdir(tmp_path)
    frame = products(60).drop(columns=["photo"])
    settings = {"local": True, "max_steps": 30, "width": 32, "headroom": False, "report": False}
    first = cggm_ray.train("table", data=frame, target="category", storage_path="runs", name="a", **settings)
    frame.to_csv("t.csv", index=False)
    second = cggm_ray.train("table", data_path="t.csv", target="category", storage_path="runs", name="b", **settings)
    assert first.test == second.test
    found = first.predict(frame.drop(columns="category"))
    assert found["id"].tolist() == frame["id"].tolist()
    columns = {name: frame[name].fillna("").tolist() if name != "price" else frame[name].to_numpy() for name in frame}
    again = first.predict(columns)
    np.testing.assert_allclose(np.stack(again["prediction"]), np.stack(found["prediction"]))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"target": "categry"}, "target 'categry' is missing (did you mean category?); found the columns id, title"),
        ({"column": ("price=nummeric",)}, "unknown kind 'nummeric' of price (did you mean numeric?)"),
        ({"column": ("prize=numeric",)}, "column 'prize' is missing (did you mean price?)"),
        ({"column": ("maker=numeric",)}, "row 1, column maker: found 'Alma'; expected a number"),
        ({"column": ("title=array",)}, "row 1, column title: found"),
        ({"column": ("category=text",)}, "column 'category' is the target; expected an input"),
        ({"modality": ("lab=stock", "tab=stock")}, "column 'stock' is in lab and in tab; expected it once"),
        ({"modality": ("title",)}, "modality: found 'title'; expected name=column,column"),
        ({"modality": ("x=id",)}, "column 'id' is no input: names the samples"),
        ({"modality": ("x=photo", "price")}, "expected columns that give vectors, or one column alone"),
        ({"target": "id", "task": "classification"}, "found 60 classes in 60 rows; expected a class to repeat"),
        ({"target": "title", "task": "regression"}, "column title: found"),
        ({"split_column": "maker"}, "column maker: found 'Alma'; expected train, valid or test"),
        ({"group_column": "team"}, "group_column 'team' is missing"),
        ({"group_column": "maker"}, "row 8, column maker: found 'nothing'; expected a group in every row"),
        ({"media_path": "/nowhere"}, "media_path: /nowhere is no folder"),
        ({"text_model": "./nowhere"}, "text_model: ./nowhere: no such folder"),
        ({"encoding": "utf-9"}, "encoding: unknown 'utf-9'"),
    ],
)
def test_what_is_refused(tmp_path: Path, options: dict[str, object], expected: str) -> None:
    frame = products()
    with_photos(tmp_path, frame).joinpath("t.csv").write_text(frame.to_csv(index=False))
    with pytest.raises(UsageError) as error:
        converted(table_config(tmp_path, tmp_path / "t.csv", **options))
    assert expected in str(error.value)
    assert not list((tmp_path / "runs").glob("shards/table-*"))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("t.csv", b"", "the file is empty; expected a header"),
        ("t.csv", b"a,b\n", "found no row; expected at least one"),
        ("t.csv", b"a,label\n1,x\n2,y,z\n", "t.csv, row 2: found 3 columns; expected 2 as in the first row, '2,y,z'"),
        ("t.csv", b"a,a,label\n1,2,x\n", "found the column 'a' twice in the header"),
        ("t.csv", b"a,label\n1,\n2,\n", "target label: has no value; expected one in every row"),
        ("t.csv", b"a,label\n" + b"1,x\n2,x\n" * 30, "found 1 class, x; expected at least two"),
        ("t.csv", b"label\nx\ny\nx\ny\n", "no column is an input; found label (the target)"),
        ("t.jsonl", b'{"a": 1, "label": "x"}\n{"a": 2', "t.jsonl, line 2: not a readable JSON file"),
        ("t.jsonl", b'{"a": 1, "label": "x"}\n[1]\n', "t.jsonl, row 2: found a list; expected an object with columns"),
        (
            "t.jsonl",
            b'{"a": [1], "label": "x"}\n{"a": "u", "label": "y"}\n',
            "row 2, column a: found 'u'; expected a list",
        ),
        ("t.parquet", b"PAR1", "not a readable parquet file"),
        ("t.xlsx", b"PK", "t.xlsx: "),
        ("t.arrow", b"abc", "not a readable Arrow file"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        converted(table_config(tmp_path, tmp_path / name, target="label"))
    assert expected in str(error.value)


def test_a_number_that_is_none_is_named_by_its_row(tmp_path: Path) -> None:
    frame = products().astype({"price": object, "stock": object})
    frame.loc[20, "price"] = "12,50"
    with_photos(tmp_path, frame).joinpath("t.csv").write_text(frame.to_csv(index=False))
    with pytest.raises(DataError, match=r"t\.csv, row 21, column price: found '12,50'; expected a number"):
        converted(table_config(tmp_path, tmp_path / "t.csv"))
    (tmp_path / "photos" / "003.png").write_bytes(b"no image")
    frame.loc[20, "price"] = 1
    frame.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError, match=r"row 4, column photo: found .*; expected a readable image: .*skip_bad 1"):
        converted(table_config(tmp_path, tmp_path / "t.csv"))
    manifest, splits = converted(table_config(tmp_path, tmp_path / "t.csv", skip_bad=1))
    assert sum(int((~split.masks["photo"]).sum()) for split in splits.values() if "photo" in split.masks) == 1
    assert any("photos/003.png" in line for line in manifest.notes["taken"])


@pytest.mark.skipif(not (DATA / "minilm").is_dir(), reason=f"{DATA / 'minilm'} is not there (set CGGM_DATA)")
def test_frozen_encoders_give_what_transformers_gives(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    frame = products(24)
    with_photos(tmp_path, frame)
    frame.to_csv(tmp_path / "t.csv", index=False)
    models = {"text_model": str(DATA / "minilm"), "image_model": str(small_vit(tmp_path / "vit")), "text_length": 10}
    settings = table_config(tmp_path, tmp_path / "t.csv", changes={"max_steps": 4}, **models)
    manifest, splits = converted(settings)
    assert manifest.notes["kinds"] == {"title": "sequence", "tab": "vector", "photo": "sequence"}
    by_id = frame.set_index("id")
    tokenizer, model = (
        AutoTokenizer.from_pretrained(DATA / "minilm"),
        AutoModel.from_pretrained(DATA / "minilm").float(),
    )
    processor, vit = AutoImageProcessor.from_pretrained(tmp_path / "vit"), AutoModel.from_pretrained(tmp_path / "vit")
    names = list(splits["train"].names or ())
    for row, name in enumerate(names[:6]):
        one = by_id.loc[name]
        pixels = processor(images=Image.open(tmp_path / one["photo"]).convert("RGB"), return_tensors="pt")
        with torch.no_grad():
            seen = vit.eval()(**pixels).last_hidden_state[0]
        torch.testing.assert_close(splits["train"].inputs["photo"][row], seen, atol=1e-4, rtol=1e-3)
        mask = splits["train"].masks["title"][row]
        if not isinstance(one["title"], str):
            assert not mask.any()
            continue
        pieces = tokenizer(one["title"], return_tensors="pt")
        with torch.no_grad():
            states = model.eval()(**pieces).last_hidden_state[0]
        assert int(mask.sum()) == len(states)
        torch.testing.assert_close(splits["train"].inputs["title"][row][mask], states, atol=1e-4, rtol=1e-3)
    result = run(settings)
    assert result is not None
    new = with_photos(tmp_path / "new", frame)
    frame.drop(columns="category").to_csv(new / "t.csv", index=False)
    assert len(predicted(result.folder, new / "t.csv", tmp_path / "p.parquet")) == 24
    shutil.rmtree(tmp_path / "vit")
    frame[:3].to_csv(new / "t.csv", index=False)
    with pytest.raises(DataError, match=r"image_model: .*vit, which the run was trained with, is gone"):
        predict(result.folder, new / "t.csv", None, tmp_path / "q.parquet")


@pytest.mark.parametrize("separator", [None, "|"])
def test_several_labels_of_a_sample(tmp_path: Path, separator: str | None) -> None:
    """Colours and the class of a product; some have none, and one row has no target."""
    frame = products(90).drop(columns="photo")
    colours = ("blue", "green", "red")
    tags = [
        sorted({w for w in str(t).split() if w in colours} | {c})
        for t, c in zip(frame["title"], frame["category"], strict=True)
    ]
    frame["tags"] = tags if separator is None else [separator.join(row) for row in tags]
    frame.loc[9, "tags"] = None
    path = tmp_path / ("t.jsonl" if separator is None else "t.csv")
    frame = frame.drop(columns="category")
    frame.to_json(path, orient="records", lines=True) if separator is None else frame.to_csv(path, index=False)
    options = {"target": "tags", "label_separator": separator}
    changes = {"max_steps": 10 if separator is None else 400, "standardise": "on", "width": 64, "lr": 0.005}
    result = run(table_config(tmp_path, path, changes=changes, **options))
    assert result is not None
    assert separator is None or result.test["f1_micro"] > 0.8
    found = predicted(result.folder, path, tmp_path / "p.parquet")
    assert found["target"][9] is None
    names = ["bag", "blue", "green", "red", "shirt", "shoe"]
    for row in (0, 1, 2):
        assert [names[n] for n in np.flatnonzero(found["target"][row])] == tags[row]
    for row in range(0, 90, 7):
        assert list(found["labels"][row]) == [names[n] for n in np.flatnonzero(found["prediction"][row] > 0)]
    np.testing.assert_allclose(found["probability"][4], 1 / (1 + np.exp(-found["prediction"][4])), rtol=1e-6)
    assert cggm_ray.load(result.folder).verify()
    assert cggm_ray.load(result.folder).report().exists()
