"""Statistics and conversions with Ray Data, against those of one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from feature_sets import as_npz, config
from safetensors.torch import load_file
from stored_sets import stored
from strategy_runs import with_gaps

from cggm_ray.commands.cli import main
from cggm_ray.core.errors import DataError
from cggm_ray.data.datasets.features import FeatureOptions
from cggm_ray.data.formats import columns
from cggm_ray.data.settings import DataConfig
from cggm_ray.data.shards import chunks
from cggm_ray.data.shards.shards import open_set, tensor_column, write_shards_here
from cggm_ray.data.statistics import training_statistics
from cggm_ray.distributed.data.ingest import write_shards_with_ray
from cggm_ray.distributed.data.statistics import map_shards_with_ray
from cggm_ray.engine.assembly import prepare_data
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.inputs import SHARED, STATISTICS
from cggm_ray.engine.state import WEIGHTS
from conftest import SMALL

pytestmark = pytest.mark.ray
KINDS = {"words": "sequence", "age": "vector"}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=2, log_to_driver=False)
    yield
    ray.shutdown()


def content(samples: int = 90) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "words": rng.normal(3, 7, (samples, 12, 30)).astype(np.float32),
        "steps/words": rng.integers(0, 13, samples),
        "age": rng.normal(1e4, [1e-3, 1, 1e3], (samples, 3)),
    }


def test_many_tasks_give_the_bits_of_one_process(tmp_path: Path) -> None:
    manifest = stored(tmp_path / "set", content(), 9)
    here = training_statistics(tmp_path / "set", manifest, KINDS)
    found = training_statistics(tmp_path / "set", manifest, KINDS, map_shards_with_ray)
    for name, moments in here.items():
        for part, values in vars(moments).items():
            assert np.array_equal(values, getattr(found[name], part)), (name, part)


def test_a_conversion_by_rows_gives_the_bits_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "SHARD_BYTES", 2**12)
    values = content()
    table = pa.table(
        {"words": tensor_column(values["words"]), "age": tensor_column(values["age"]), "label": np.arange(90) % 3}
    )
    pq.write_table(table, tmp_path / "f.parquet", row_group_size=40)
    whole = open_set(prepare_data(config(tmp_path / "whole", tmp_path / "f.parquet"), write_shards_here))
    monkeypatch.setattr(columns, "LEAST_BYTES", 0)
    assert open_set(prepare_data(config(tmp_path / "rows", tmp_path / "f.parquet"), write_shards_with_ray)) == whole


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    manifest = stored(tmp_path / "set", content(), 3)
    (tmp_path / "set" / "train-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"train-00001\.parquet: not a readable shard"):
        training_statistics(tmp_path / "set", manifest, KINDS, map_shards_with_ray)


@pytest.mark.slow
def test_a_run_and_a_comparison_share_what_was_found(tmp_path: Path) -> None:
    data = as_npz(tmp_path, with_gaps())
    config = Config(data=DataConfig(dataset="features"), options=FeatureOptions(split="part"))
    places = [*SMALL, "--data_path", str(data), "--storage_path", str(tmp_path), "--modalities", "words,age"]
    flags = [*places, "--modulation", "none", "--num_epochs", "1", "--standardise", "on"]
    assert main(config, [*flags, "--name", "seeds", "--seeds", "1,2"]) == 0
    (shared,) = (tmp_path / "shards" / SHARED).iterdir()
    made = shared.stat().st_mtime_ns
    assert main(config, [*flags, "--name", "ray"]) == 0
    assert main(config, [*flags, "--name", "local", "--local"]) == 0
    assert shared.stat().st_mtime_ns == made
    runs = [tmp_path / "seeds" / "trials" / f"none-seed-{seed}" for seed in (1, 2)]
    runs += [tmp_path / "ray", tmp_path / "local"]
    assert {(run / STATISTICS).read_bytes() for run in runs} == {shared.read_bytes()}
    first = load_file(runs[0] / "best" / WEIGHTS)
    for run in runs[1:]:
        other = load_file(run / "best" / WEIGHTS)
        names = [name for name in other if name.startswith("inputs.")]
        assert len(names) == 6
        assert all(torch.equal(first[name], other[name]) for name in names)
