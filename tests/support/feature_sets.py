"""A small set of features, in the formats that people have."""

from __future__ import annotations

import pickle
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from cggm_ray.data.datasets.features import FeatureOptions
from cggm_ray.data.settings import DataConfig
from cggm_ray.data.shards.shards import tensor_column
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.runtime import RunConfig
from cggm_ray.engine.settings import TrainConfig
from cggm_ray.models.settings import ModelConfig
from cggm_ray.strategies.settings import ModulationConfig

TINY = ModelConfig(nlevels=3, cls_layers=1, proj_dim=8, num_heads=2)


def arrays(samples: int = 30) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "words": rng.normal(size=(samples, 5, 3)).astype(np.float32),
        "face": rng.integers(256, size=(samples, 8, 8)).astype(np.uint8),
        "age": rng.normal(size=(samples, 4)),
        "label": np.arange(samples) % 3,
        "mark": rng.normal(size=samples).astype(np.float32),
        "part": np.array((["train"] * 4 + ["val", "test"]) * (samples // 6)),
        "id": np.array([f"s{row:02d}" for row in range(samples)]),
    }


def config(tmp_path: Path, data: Path, modalities: str | None = None, **options: object) -> Config:
    return Config(
        data=DataConfig(
            dataset="features",
            data_path=str(data),
            modalities=None if modalities is None else tuple(modalities.split(",")),
        ),
        model=TINY,
        modulation=ModulationConfig(modulation="none" if modalities and "," not in modalities else "cggm"),
        train=TrainConfig(num_epochs=1, batch_size=16),
        run=RunConfig(local=True, storage_path=str(tmp_path / "runs"), name="r"),
        options=FeatureOptions(**options),  # type: ignore[arg-type]
    )


def as_npz(folder: Path, content: dict[str, np.ndarray]) -> Path:
    np.savez(folder / "f.npz", allow_pickle=False, **content)
    return folder / "f.npz"


def as_pickle(folder: Path, content: dict[str, np.ndarray]) -> Path:
    (folder / "f.pkl").write_bytes(pickle.dumps(content))
    return folder / "f.pkl"


def as_parquet(folder: Path, content: dict[str, np.ndarray]) -> Path:
    columns = {name: pa.array(v) if v.dtype.kind == "U" else tensor_column(v) for name, v in content.items()}
    pq.write_table(pa.table(columns), folder / "f.parquet")
    return folder / "f.parquet"


def as_h5(folder: Path, content: dict[str, np.ndarray]) -> Path:
    """An h5 file with compressed arrays and texts of any length."""
    with h5py.File(folder / "f.h5", "w") as file:
        for name, values in content.items():
            if values.dtype.kind == "U":
                file[name] = values.astype(object)
            else:
                file.create_dataset(name, data=values, compression="gzip" if values.ndim > 1 else None)
    return folder / "f.h5"


def as_npy(folder: Path, content: dict[str, np.ndarray]) -> Path:
    """A folder of .npy files."""
    (folder / "arrays").mkdir()
    for name, values in content.items():
        np.save(folder / "arrays" / f"{name}.npy", values)
    return folder / "arrays"


def as_safetensors(folder: Path, content: dict[str, np.ndarray]) -> Path:
    """A safetensors file; texts, which it cannot hold, are left out."""
    save_file({name: values for name, values in content.items() if values.dtype.kind != "U"}, folder / "f.safetensors")
    return folder / "f.safetensors"
