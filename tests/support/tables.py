"""Small tables for tests: products with numbers, categories, texts and photos."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from cggm_ray.data.datasets.table.options import TableOptions
from cggm_ray.data.loading.split import TensorSplit
from cggm_ray.data.settings import DataConfig
from cggm_ray.data.shards.shards import Manifest, open_set, write_shards_here
from cggm_ray.engine.assembly import build_dataset, prepare_data
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.presets import configured
from cggm_ray.engine.runtime import RunConfig
from cggm_ray.recipes.table import RECIPE

CLASSES = ("bag", "shirt", "shoe")
WORDS = ("blue", "classic", "green", "leather", "long", "red", "small", "sport", "summer", "white")
SIZE = 12


def products(rows: int = 60, seed: int = 0) -> pd.DataFrame:
    """Products in which every third has its own class; some prices, titles and makers are missing."""
    random = np.random.default_rng(seed)
    label = np.arange(rows) % len(CLASSES)
    titles = [f"{' '.join(random.choice(WORDS, 3, replace=False))} {CLASSES[c]}" for c in label]
    frame = pd.DataFrame(
        {
            "id": [f"p{number:03d}" for number in range(rows)],
            "title": titles,
            "maker": random.choice(["Alma", "Berg", "Corvo"], rows),
            "price": np.round(10 + 20 * label + random.normal(size=rows), 2),
            "stock": random.integers(0, 500, rows),
            "photo": [f"photos/{number:03d}.png" for number in range(rows)],
            "category": [CLASSES[c] for c in label],
        }
    )
    frame.loc[4::9, "price"] = np.nan
    frame.loc[5::11, "title"] = None
    frame.loc[7::13, "maker"] = None
    return frame


def with_photos(folder: Path, frame: pd.DataFrame, seed: int = 0) -> Path:
    """Writes the photos of products, whose colour says the class; returns the folder."""
    random = np.random.default_rng(seed)
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    for path, name in zip(frame["photo"], frame["category"], strict=True):
        if isinstance(path, str):
            pixels = random.integers(0, 120, (SIZE, SIZE, 3))
            pixels[..., CLASSES.index(name)] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(folder / path)
    return folder


def table_config(folder: Path, data: Path | None, *, changes: dict[str, Any] | None = None, **options: Any) -> Config:
    """The recipe with a small budget, whose run and shards lie in a folder."""
    base = Config(
        data=DataConfig(dataset="table", data_path=None if data is None else str(data)),
        train=RECIPE.train,
        run=RunConfig(local=True, storage_path=str(folder / "runs"), name="run", report=False, headroom=False),
        options=TableOptions(**({"target": "category"} | options)),
    )
    return configured(base, ({"max_steps": 60, "width": 32, **(changes or {})}, "test"))


def converted(settings: Config) -> tuple[Manifest, dict[str, TensorSplit]]:
    """The manifest of the converted data, and its splits in memory."""
    folder = prepare_data(settings, write_shards_here)
    manifest = open_set(folder)
    assert manifest is not None
    dataset = build_dataset(settings)
    splits = {}
    for name in manifest.splits:
        split = dataset.open_split(folder, manifest, name, tuple(manifest.modalities), torch.device("cpu"))
        assert isinstance(split, TensorSplit)
        splits[name] = split
    return manifest, splits


def write_products(path: Path, change: dict[str, object]) -> None:
    """Writes a CSV of twelve products, with other cells in the third row."""
    rows: list[dict[str, object]] = [
        {
            "title": f"a thing {n}",
            "price": 10 + n,
            "photo": "",
            "part": ("train", "valid", "test")[n % 3],
            "label": "ab"[n % 2],
        }
        for n in range(12)
    ]
    rows[2] |= change
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def small_vit(folder: Path) -> Path:
    """Saves a random ViT with its processor, in the format of transformers; returns the folder."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(0)
    settings = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=24, patch_size=8
    )
    ViTModel(settings, add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor(size={"height": 24, "width": 24}).save_pretrained(folder)
    return folder


def small_bert(folder: Path) -> Path:
    """Saves a random BERT with a tokenizer that knows the words of `products`; returns the folder."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder.mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *CLASSES]
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    settings = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(settings).save_pretrained(folder)
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder
