"""A table and its photos in a bucket give what those of a folder give."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tables import converted, products, table_config, with_photos

from cggm_ray.storage import cache
from cggm_ray.storage.urls import UrlPath


@pytest.mark.parametrize("form", ["csv", "parquet", "arrow"])
def test_a_table_in_a_bucket(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "cache"))
    frame = products(30)
    folder = with_photos(tmp_path / "set", frame)
    path = folder / f"t.{form}"
    {"csv": lambda: frame.to_csv(path, index=False), "parquet": lambda: frame.to_parquet(path)}.get(
        form, lambda: frame.to_feather(path)
    )()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        UrlPath(f"{bucket}/set/{file.relative_to(folder)}").upload(file)
    there = UrlPath(f"{bucket}/set/{path.name}")
    _, ours = converted(table_config(tmp_path, path, image_size=8))
    manifest, theirs = converted(table_config(tmp_path / "other", there, image_size=8))
    assert manifest.notes["taken"][0].startswith(f"data: {bucket}/set/t.{form}")
    for name in ours:
        for modality, values in ours[name].inputs.items():
            torch.testing.assert_close(theirs[name].inputs[modality], values)
