"""Contents of media in a large parquet file stay there: the driver holds places, and the numbers are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tables import converted, products, table_config, with_photos

from cggm_ray.core.errors import DataError
from cggm_ray.data.datasets.table import places
from cggm_ray.data.datasets.table.places import MARK, content_of
from cggm_ray.engine.assembly import build_dataset


def written(folder: Path, form: str) -> Path:
    """Products whose photos are bytes, or bytes with paths as the library datasets keeps them, in row groups of 17."""
    frame = products(120)
    with_photos(folder, frame)
    contents = [(folder / name).read_bytes() for name in frame["photo"]]
    contents[3] = contents[40] = None  # type: ignore[call-overload]
    photo = pa.array(contents, pa.binary())
    if form == "struct":
        photo = pa.array([None if one is None else {"bytes": one, "path": "x.png"} for one in contents])
    table = pa.Table.from_pandas(frame.drop(columns="photo"), preserve_index=False).append_column("photo", photo)
    pq.write_table(table, folder / "t.parquet", row_group_size=17)
    return folder / "t.parquet"


@pytest.mark.parametrize("form", ["bytes", "struct"])
def test_the_numbers_are_those_of_a_table_that_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    path = written(tmp_path, form)
    manifest, whole = converted(table_config(tmp_path / "a", path, image_size=12))
    monkeypatch.setattr(places, "LEAST_BYTES", 1)
    settings = table_config(tmp_path / "b", path, image_size=12)
    dataset = build_dataset(settings)
    sources = dataset.locate(path)
    dataset.describe(sources)
    raw = list(dataset.read(sources))
    cells = [cell for shard in raw for cell in shard.table.column("cell/photo").to_pylist()]
    assert sum(cell is None for cell in cells) == 2
    assert all(cell.startswith(MARK) for cell in cells if cell is not None)
    again, parts = converted(settings)
    assert again.notes["columns"] == manifest.notes["columns"]
    for split, values in whole.items():
        assert all(torch.equal(values.inputs[name], parts[split].inputs[name]) for name in values.inputs)
        assert torch.equal(values.masks["photo"], parts[split].masks["photo"])


def test_cells_are_read_in_any_order_and_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "bytes")
    contents = pq.read_table(path).column("photo").to_pylist()
    found = places.places(path, "photo").storage.to_pylist()
    assert [place is None for place in found] == [one is None for one in contents]
    for row in np.random.default_rng(0).permutation(len(contents)):
        if found[row] is not None:
            assert content_of(found[row]) == contents[row]
    other = tmp_path / "other.parquet"
    path.rename(other)
    places._reader.cache_clear()
    with pytest.raises(DataError, match=r"t.parquet, row 2, column photo: can no longer be read"):
        content_of(found[1])


def test_a_wrong_picture_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "LEAST_BYTES", 1)
    table = pq.read_table(written(tmp_path, "bytes"))
    contents = table.column("photo").to_pylist()
    contents[30] = contents[30][:40]
    pq.write_table(table.set_column(table.num_columns - 1, "photo", pa.array(contents)), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"row 31, column photo: found 'bytes'; expected a readable image: .*skip_bad"):
        converted(table_config(tmp_path, tmp_path / "t.parquet"))
