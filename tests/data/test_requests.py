"""Samples that come by JSON: the same predictions as those of files, and one line for each that is wrong."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest
from feature_sets import arrays, as_npz, config
from PIL import Image

from cggm_ray.commands.cli import main
from cggm_ray.commands.predict import predict
from cggm_ray.core.errors import DataError
from cggm_ray.data.datasets.table.options import TableOptions
from cggm_ray.data.settings import DataConfig
from cggm_ray.data.shards.shards import column_values
from cggm_ray.distributed.serve.predictor import Answer, Predictor
from cggm_ray.engine.configuration import Config
from conftest import SMALL, small_set, write_pickle

QUICK = ["--local", "--report", "false", "--num_epochs", "1", "--batch_size", "16"]


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on bytes, sequences and vectors."""
    folder = tmp_path_factory.mktemp("features")
    made = config(folder, as_npz(folder, arrays()), "words,face,age", target="label", split="part")
    assert main(made, ["--report", "false"]) == 0
    return folder / "runs" / "r"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on rows with a text, a number and a photo."""
    folder = tmp_path_factory.mktemp("table")
    draw = np.random.default_rng(0)
    with (folder / "t.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["title", "price", "photo", "kind"])
        for number in range(40):
            kind = number % 2
            pixels = draw.integers(0, 120, (8, 8, 3)) + 120 * kind
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
            words = f"{'red' if kind else 'blue'} {'small' if number % 3 else 'wide'} thing {number % 5}"
            rows.writerow([words, "" if number == 7 else draw.normal() + kind, f"{number}.png", "ab"[kind]])
    recipe = Config(data=DataConfig(dataset="table"), options=TableOptions(target="kind"))
    places = ["--data_path", str(folder / "t.csv"), "--storage_path", str(folder), "--name", "r"]
    assert main(recipe, [*QUICK, *places]) == 0
    return folder / "r"


def predicted(run: Path, data: Path) -> tuple[np.ndarray, list[str]]:
    found = pq.read_table(predict(run, data, out=run / "out.parquet").path)
    return column_values(found.column("prediction")), found.column("class").to_pylist()


def assert_same(answers: Sequence[Answer], run: Path, data: Path) -> None:
    wanted, classes = predicted(run, data)
    np.testing.assert_allclose([each["prediction"] for each in answers], wanted, rtol=1e-5, atol=1e-6)
    assert [each["class"] for each in answers] == classes
    for each in answers:
        assert sum(each["probability"].values()) == pytest.approx(1)


def refused(predictor: Predictor, samples: Any) -> str:
    with pytest.raises(DataError) as error:
        predictor.answers(predictor.form.check(samples))
    assert "/tmp" not in str(error.value)
    return str(error.value)


def test_features_are_those_of_the_file(features: Path) -> None:
    content, predictor = arrays(), Predictor(features)
    samples = [{name: content[name][row].tolist() for name in ("words", "face", "age")} for row in range(30)]
    jsonschema.validate({"samples": samples}, predictor.form.schema(30))
    data = features.parent.parent / "f.npz"
    assert_same(predictor.answers(json.loads(json.dumps(samples))), features, data)
    # A modality that some, or all, samples of a request lack.
    content["face_present"] = np.arange(30) > 3
    np.savez(data.with_name("lacking.npz"), **content)
    for sample in samples[:4]:
        sample["face"] = None
    wanted, _ = predicted(features, data.with_name("lacking.npz"))
    for part in (samples, samples[:4]):
        found = [each["prediction"] for each in predictor.answers(part)]
        np.testing.assert_allclose(found, wanted[: len(part)], rtol=1e-5, atol=1e-6)


def test_wrong_features(features: Path) -> None:
    predictor = Predictor(features)
    good: dict[str, Any] = {"words": [[1.0] * 3] * 5, "face": [[0] * 8] * 8, "age": [0.5] * 4}
    assert "whole numbers from 0 to 255" in refused(predictor, [good, good | {"face": [[0.5] * 8] * 8}])
    assert "samples of shape (3,); the run was trained on samples of shape (4,)" in refused(
        predictor, [{"age": [1] * 3}]
    )
    for wrong in ("x", True, [[1], [1, 2]], [], {"a": 1}):
        assert "sample 1, age: expected numbers in lists" in refused(predictor, [good, good | {"age": wrong}])
    for number in (1e300, float("nan"), None):
        assert "not finite" in refused(predictor, [{"age": [number] * 4}])
    assert "unknown size; expected words, face, age" in refused(predictor, [{"size": 1}])
    assert "sample 1: everything is missing" in refused(predictor, [good, {"age": None}])
    for wrong in ([], None, {}, "x"):
        assert "expected a list with at least one sample" in refused(predictor, wrong)
    assert "sample 0: found a text; expected an object" in refused(predictor, ["x"])


def test_rows_are_those_of_the_file(table: Path) -> None:
    predictor, folder = Predictor(table), table.parent
    rows: list[dict[str, Any]] = []
    for row in csv.DictReader(io.StringIO((folder / "t.csv").read_text())):
        content = base64.b64encode((folder / row["photo"]).read_bytes()).decode()
        price = float(row["price"]) if row["price"] else None
        rows.append({"title": row["title"], "price": price, "photo": {"base64": content}})
    jsonschema.validate({"samples": rows}, predictor.form.schema(40))
    assert_same(predictor.answers(rows), table, folder / "t.csv")
    # Cells that are left out, together and alone.
    alone = predictor.answers([{"title": rows[0]["title"]}])
    together = predictor.answers([{"title": rows[0]["title"]}, rows[1]])
    np.testing.assert_allclose(alone[0]["prediction"], together[0]["prediction"], rtol=1e-5, atol=1e-6)


def test_wrong_rows(table: Path) -> None:
    predictor = Predictor(table)
    # Nobody learns from a request which files there are.
    for path in ("0.png", "../r/config.yaml", "/etc/passwd", {"path": "0.png"}, {"base64": "0.png"}, {"base64": 5}):
        assert "a service opens no file" in refused(predictor, [{"title": "red", "photo": path}])
    damaged = base64.b64encode(b"\x89PNG damaged").decode()
    assert "photo" in refused(predictor, [{"title": "red", "photo": {"base64": damaged}}])
    assert "row 1, column price: found 'abc'; expected a number" in refused(predictor, [{"price": "abc"}])
    assert "found a list; expected a cell of a categorical column" in refused(predictor, [{"title": ["a"]}])
    assert "expected values of one kind" in refused(predictor, [{"price": 1}, {"price": "a"}])


def test_requests_are_answered_apart_where_one_is_wrong(table: Path) -> None:
    predictor = Predictor(table)
    good, wrong = [{"title": "red thing", "price": 1.0}], [{"title": "x", "price": "abc"}]
    first, bad, last = predictor.each([good, wrong, good * 2])
    assert isinstance(bad, DataError)
    assert not isinstance(first, DataError)
    assert not isinstance(last, DataError)
    assert (len(first), len(last)) == (1, 2)
    np.testing.assert_allclose(first[0]["prediction"], last[1]["prediction"], rtol=1e-5, atol=1e-6)


def test_other_datasets_take_arrays_as_shards_have_them(tmp_path: Path) -> None:
    pickled = write_pickle(tmp_path / "small.pkl", small_set())
    places = ["--data_path", str(pickled), "--storage_path", str(tmp_path), "--name", "run"]
    assert main(Config(), ["--local", *SMALL, *places, "--report", "false"]) == 0
    predictor, content = Predictor(tmp_path / "run"), small_set()["test"]
    samples = [
        {name: content[name][row].tolist() for name in ("text", "audio", "vision")}
        for row in range(len(content["text"]))
    ]
    wanted = pq.read_table(tmp_path / "run" / "predictions.parquet").column("prediction").to_numpy()
    found = [each["prediction"] for each in predictor.answers(samples)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    # Sequences of other lengths, and missing ones, come back in the order of the request.
    samples[0], samples[2] = samples[0] | {"audio": samples[0]["audio"][:2]}, samples[2] | {"text": None}
    mixed = [each["prediction"] for each in predictor.answers(samples)]
    np.testing.assert_allclose(mixed[3:], wanted[3:], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mixed[2], predictor.answers(samples[2:3])[0]["prediction"], rtol=1e-5, atol=1e-6)
    assert "found the shape [1]; expected" in refused(predictor, [{"text": [1.0]}])
