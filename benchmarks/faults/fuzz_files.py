"""Whole files for `fuzz.py`, in every format that a pipeline reads: small generated ones, and parts of real ones."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import struct
import sys
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from fuzz_listings import listing_seeds
from fuzz_media import media_seeds
from fuzz_readers import READERS
from fuzz_recipes import whole_recipes
from fuzz_seeds import Seed, into
from fuzz_sentiment import sentiment_seeds
from fuzz_tables import table_seeds
from PIL import Image

from cggm_ray.data.datasets.mosi import planted_imbalance
from cggm_ray.data.settings import DataConfig
from cggm_ray.data.shards.shards import FORMAT, tensor_column, write_shards_here
from cggm_ray.engine.assembly import prepare_data
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.runtime import RunConfig

TESTS = Path(__file__).parents[2] / "tests" / "support"
sys.path.insert(0, str(TESTS))

from brats_files import volume, write_h5
from feature_sets import arrays
from iemocap_layout import small_layout


def whole_folder(folder: Path) -> Path:
    """Returns, for every role whose file lies among others, a folder in which all files are whole."""
    for role in ("text", "audio", "statistics", "labels", "names"):
        small_layout(folder / role)
    for number, split in enumerate(("train", "valid", "test")):
        write_h5(folder / "volume" / split / f"case{number}.h5", *volume(number, (8, 8, 4)))
    records = [
        {"id": str(n), "text_tokens": ["a", "b"], "img_path": f"images/{n}.jpg", "label": "xy"[n % 2]} for n in range(6)
    ]
    for role, config in {
        "bert": {"model_type": "bert", "hidden_size": 8, "max_position_embeddings": 8, "vocab_size": 9},
        "vit": {"model_type": "vit", "image_size": 16, "patch_size": 8, "hidden_size": 8, "num_channels": 3},
    }.items():
        (folder / role).mkdir()
        (folder / role / "config.json").write_text(json.dumps(config))
        (folder / role / "vocab.txt").write_text("[PAD]\n")
        # An empty safetensors file: an empty header.
        (folder / role / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    (folder / "records").mkdir()
    for name in ("train", "test"):
        (folder / "records" / f"{name}.json").write_text(json.dumps(records))
    content = planted_imbalance(1, samples={"train": 6, "valid": 3, "test": 3}, steps=3)
    (folder / "mosi.pkl").write_bytes(pickle.dumps(content))
    config = Config(data=DataConfig(data_path=str(folder / "mosi.pkl")), run=RunConfig(storage_path=str(folder)))
    made = prepare_data(config, write_shards_here)
    for role in ("set", "shard"):
        shutil.copytree(made, folder / role)
    (folder / "manifest").mkdir()
    shard = {"file": "train-00000.parquet", "rows": 1, "bytes": 1, "sha256": "0"}
    spec = {"shape": [2], "dtype": "float32"}
    manifest = {
        "dataset": "mosi",
        "converter": 1,
        "options": {},
        "sources": [],
        "modalities": {"text": spec},
        "target": spec,
    }
    manifest |= {"splits": {"train": [shard], "valid": [], "test": []}, "notes": {}, "format": FORMAT}
    (folder / "manifest" / "manifest.json").write_text(json.dumps(manifest))
    (folder / "manifest" / "train-00000.parquet").write_bytes(b"x")
    whole_recipes(folder)
    return folder


def generated(whole: Path) -> list[Seed]:
    """Small whole files of every format."""
    content = planted_imbalance(1, samples={"train": 6, "valid": 3, "test": 3}, steps=3)
    names = {
        split: fields | {"id": np.array([f"n{n}" for n in range(len(fields["text"]))], object)}
        for split, fields in content.items()
    }
    table = arrays(12)
    seeds = [Seed("pickle", "mosi", ".pkl", pickle.dumps(names, protocol=p)) for p in range(6)]
    seeds += [Seed("pickle", "mosi", ".pkl", pickle.dumps(table, protocol=p)) for p in (2, 5)]
    for save in (np.savez, np.savez_compressed):
        seeds.append(Seed("npz", "features", ".npz", into(lambda file, save=save: save(file, **table))))
    rows = {**table, "age": np.array([*table["age"][:-1], None], object)}
    seeds.append(Seed("npz", "features", ".npz", into(lambda file: np.savez(file, **rows))))
    tensors = {name: torch.as_tensor(values) for name, values in table.items() if values.dtype.kind in "biuf"}
    for content in (tensors, {"train": tensors, "test": tensors}):
        seeds.append(Seed("torch", "features", ".pt", into(lambda file, content=content: torch.save(content, file))))
    lists = {
        "label": pa.array([0, 1] * 6),
        "text": pa.array([["a"]] * 12),
        "age": pa.array([[1.0, 2.0], None] * 6),
        "id": list("abcdefghijkl"),
    }
    tensors = {n: pa.array(v) if v.dtype.kind == "U" else tensor_column(v) for n, v in table.items()}
    for columns, codec in ((lists, "none"), (tensors, "snappy"), (tensors, "zstd")):
        written = into(lambda file, c=columns, k=codec: pq.write_table(pa.table(c), file, compression=k))
        seeds.append(Seed("parquet", "features", ".parquet", written))
    for group, roles in {
        "shards": ("set", "shard"),
        "h5": ("text", "audio", "statistics", "volume"),
        "npy": ("labels", "names"),
        "json": ("records", "bert", "vit", "manifest"),
    }.items():
        seeds += [Seed(group, role, "", (whole / role / READERS[role][1]).read_bytes()) for role in roles]
    seeds.append(
        Seed(
            "npy", "names", "", into(lambda file: np.save(file, np.array([[b"a"], [b"b"]], object), allow_pickle=True))
        )
    )
    packed = io.BytesIO()
    with h5py.File(packed, "w") as file:
        file.create_dataset("image", data=np.ones((4, 8, 8, 4), np.float16), compression="gzip", chunks=(1, 8, 8, 4))
        file.create_dataset("label", data=np.eye(8, dtype=np.uint8)[..., None].repeat(4, -1), compression="gzip")
    seeds.append(Seed("h5", "volume", "", packed.getvalue()))
    seeds.append(Seed("yaml", "config", ".yaml", yaml.safe_dump(Config().to_dict()).encode()))
    seeds += [
        Seed("yaml", "search", ".yaml", path.read_bytes())
        for path in sorted((TESTS.parent / "tune_configs").glob("*.yaml"))
    ]
    for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        picture = kind(np.random.default_rng(0).integers(1, 4, (6, 6, 3)).astype(np.int16), np.eye(4))
        seeds.append(Seed("nifti", "nifti", ".nii", picture.to_bytes()))
    for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8))
        seeds.append(Seed("image", "image", ".jpg", into(lambda file, p=pixels, f=form: p.save(file, f))))
    return [*seeds, *table_seeds(), *sentiment_seeds(), *media_seeds(), *listing_seeds()]


def real(data: Path) -> list[Seed]:
    """Parts of real files, in the format that they have; nothing where the folder is not there.

    They are small, so that what is damaged is structure and not the thousandth pixel.
    """
    if not data.is_dir():
        return []
    seeds = []
    with (data / "mosi" / "mosi_data_noalign.pkl").open("rb") as file:
        content = pickle.load(file)
    part = {split: {name: values[:4] for name, values in fields.items()} for split, fields in content.items()}
    seeds.append(Seed("pickle", "mosi", ".pkl", pickle.dumps(part)))
    with np.load(data / "avdigits" / "avdigits.npz") as arrays:
        digits = {name: arrays[name][:20] if arrays[name].ndim else arrays[name] for name in arrays.files}
    seeds.append(Seed("npz", "features", ".npz", into(lambda file: np.savez_compressed(file, **digits))))
    for path in sorted((data / "brats" / "small").rglob("*.h5"))[:1]:
        small = io.BytesIO()
        with h5py.File(path) as whole, h5py.File(small, "w") as file:
            for key in ("image", "label"):
                file.create_dataset(key, data=whole[key][..., 30:50, 40:60, 60:66], compression="gzip")
            file.attrs.update(whole.attrs)
        seeds.append(Seed("h5", "volume", "", small.getvalue()))
    records = json.loads((data / "fashion_title_image" / "train.json").read_text())[:20]
    seeds.append(Seed("json", "records", "", json.dumps(records).encode()))
    seeds.append(Seed("json", "bert", "", (data / "minilm" / "config.json").read_bytes()))
    seeds += [
        Seed("image", "image", ".jpg", p.read_bytes())
        for p in sorted((data / "fashion_title_image" / "images").glob("*"))[:3]
    ]
    return seeds
