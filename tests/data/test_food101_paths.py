"""Paths in the lists of Food-101 lead to images of the data folder, and to no other file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from food101_files import configuration, edit, write_set

from cggm_ray.core.errors import DataError
from cggm_ray.data.datasets.food101.food101_records import Listed, read_lists
from cggm_ray.data.datasets.food101.lists import find_lists
from cggm_ray.data.shards.shards import write_shards_here
from cggm_ray.engine.assembly import prepare_data


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_set(tmp_path / "set", dev=3)


def read(root: Path) -> dict[str, Listed]:
    return read_lists(find_lists(root), root)


def test_an_absolute_path_reads_nothing_outside(raw: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    shutil.copy(raw / "images" / "0.jpg", secret)
    edit(raw / "train.json", lambda content: content[2].update(img_path=str(secret)))
    record = read(raw)["train"].records[2]
    assert record.file is None
    with pytest.raises(DataError, match=r"1 images cannot be read, skip_bad allows 0: .*secret\.jpg: no such file"):
        prepare_data(configuration(raw, tmp_path / "out"), write_shards_here)


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "/x/../../secret.jpg", "images\\..\\..\\secret.jpg", "C:\\..\\secret.jpg"]
)
def test_no_path_leads_up_and_out(raw: Path, name: str) -> None:
    edit(raw / "train.json", lambda content: content[2].update(img_path=name))
    with pytest.raises(
        DataError, match=r"train\.json, record 2, field img_path: found .*; expected a path that is relative"
    ):
        read(raw)


def test_labels_that_lead_up_and_out_find_nothing(raw: Path, tmp_path: Path) -> None:
    shutil.copy(raw / "images" / "0.jpg", tmp_path / "secret.jpg")
    edit(raw / "train.json", lambda content: content[2].update(img_path="secret.jpg", label=".."))
    assert read(raw)["train"].records[2].file is None


def test_two_absolute_paths_do_not_become_one_file(raw: Path) -> None:
    edit(raw / "train.json", lambda content: content[0].update(img_path="/a/pie/7.jpg"))
    edit(raw / "train.json", lambda content: content[1].update(img_path="/a/soup/7.jpg"))
    with pytest.raises(
        DataError, match=r"found '/a/soup/7\.jpg', and '/a/pie/7\.jpg' above; .* has images/7\.jpg alone"
    ):
        read(raw)


def test_a_name_that_no_file_can_have(raw: Path) -> None:
    edit(raw / "train.json", lambda content: content[2].update(img_path="x" * 5000 + ".jpg"))
    assert read(raw)["train"].records[2].file is None
