"""Conversion, training and prediction on Ray with everything in a bucket."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cggm_ray.__main__ import main as command
from cggm_ray.commands.cli import main
from cggm_ray.data.shards.opening import open_manifest
from cggm_ray.engine.configuration import Config
from cggm_ray.storage import cache
from cggm_ray.storage.urls import UrlPath
from conftest import SMALL, small_set, write_pickle

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_from_a_bucket_to_a_bucket(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "cache"))
    raw = write_pickle(tmp_path / "small.pkl", small_set())
    UrlPath(f"{bucket}/raw/small.pkl").upload(raw)
    places = ["--data_path", f"{bucket}/raw/small.pkl", "--storage_path", str(tmp_path / "runs"), "--name", "ray"]
    assert main(Config(), [*SMALL, *places, "--shard_path", f"{bucket}/shards", "--workers", "2"]) == 0
    assert (
        main(Config(), [*SMALL, "--local", "--data_path", str(raw), "--storage_path", str(tmp_path), "--name", "l"])
        == 0
    )
    (there,) = [path for path in UrlPath(f"{bucket}/shards").iterdir() if path.name.startswith("mosi-")]
    (here,) = (tmp_path / "shards").glob("mosi-*")
    assert open_manifest(there).splits == open_manifest(here).splits
    for out, flags in (("one.parquet", []), ("two.parquet", ["--workers", "2"])):
        given = ["--data_path", f"{bucket}/raw/small.pkl", "--out", str(tmp_path / out)]
        assert command(["predict", str(tmp_path / "runs" / "ray"), *given, *flags]) == 0
    assert pq.read_table(tmp_path / "one.parquet").equals(pq.read_table(tmp_path / "two.parquet"))
