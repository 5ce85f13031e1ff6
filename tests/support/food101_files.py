"""Small sets in the layout of Food-101 for tests, with encoders that transformers saved."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cggm_ray.data.datasets.food101.food101_options import Food101Options
from cggm_ray.data.settings import DataConfig
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.runtime import RunConfig
from cggm_ray.engine.settings import TrainConfig
from cggm_ray.models.settings import ModelConfig

pytest.importorskip("transformers")
Image = pytest.importorskip("PIL.Image")

CLASSES = ("pie", "soup", "tacos")
SIZE = 16
SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def write_set(folder: Path, *, train: int = 18, test: int = 6, dev: int = 0) -> Path:
    """JSON files and images of `SIZE` pixels, with the folders vit and bert beside them."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    number = 0
    for split, samples in {"train": train, "test": test, "dev": dev}.items():
        records = []
        for sample in range(samples):
            label = CLASSES[sample % len(CLASSES)]
            path = f"images/{number}.jpg"
            colour = rng.integers(0, 256, size=(1, 1, 3))
            noise = rng.integers(-30, 30, size=(24, 20, 3))
            Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8)).save(folder / path)
            words = ["hot", label] if sample % 2 else [label]
            records.append({"id": f"{split}{sample}", "text_tokens": words, "img_path": path, "label": label})
            number += 1
        if records:
            (folder / f"{split}.json").write_text(json.dumps(records))
    save_vit(folder / "vit")
    save_bert(folder / "bert")
    return folder


def save_vit(folder: Path, **sizes: int) -> Path:
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(1)
    sizes = {"image_size": SIZE, "patch_size": 8, **SMALL, **sizes}
    config = transformers.ViTConfig(initializer_range=0.3, **sizes)
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def save_bert(folder: Path) -> Path:
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(2)
    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hot", *CLASSES)
    config = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=12, initializer_range=0.3, **SMALL)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder


def configuration(data: Path | None, storage: Path, *, memory_budget: int = 64, **options: Any) -> Config:
    """A small run without dropout."""
    dropouts = {f"{name}_dropout": 0.0 for name in ("attn", "relu", "embed", "res", "out")}
    return Config(
        data=DataConfig(dataset="food101", data_path=None if data is None else str(data), memory_budget=memory_budget),
        model=ModelConfig(nlevels=3, cls_layers=1, num_heads=2, proj_dim=8, **dropouts),
        train=TrainConfig(batch_size=8, num_epochs=2),
        run=RunConfig(local=True, storage_path=str(storage), name="run"),
        options=Food101Options(**{"text_length": 6, **options}),
    )


def edit(path: Path, change: Any) -> None:
    """Applies `change` to the content of a JSON file; what it returns, if anything, is the new content."""
    content = json.loads(path.read_text())
    changed = change(content)
    path.write_text(json.dumps(content if changed is None else changed))


def with_options(config: Config, **options: Any) -> Config:
    return dataclasses.replace(config, options=dataclasses.replace(config.options, **options))


@cache
def reference_features(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(image, text) features of test.json by transformers and Pillow alone, one sample at a time."""
    import torch
    import transformers

    vit = transformers.ViTModel.from_pretrained(folder / "vit", add_pooling_layer=False).eval()
    bert = transformers.BertModel.from_pretrained(folder / "bert", add_pooling_layer=False).eval()
    tokenizer = transformers.BertTokenizer.from_pretrained(folder / "bert")
    images, texts = [], []
    with torch.no_grad():
        for record in json.loads((folder / "test.json").read_text()):
            pixels = np.asarray(Image.open(folder / record["img_path"]).resize((SIZE, SIZE), Image.BILINEAR))
            tensor = torch.from_numpy(pixels.transpose(2, 0, 1)[None] / np.float32(255))
            images.append(vit(tensor).last_hidden_state[0].numpy())
            pieces = tokenizer(
                " ".join(record["text_tokens"]),
                padding="max_length",
                max_length=6,
                truncation=True,
                return_tensors="pt",
            )
            texts.append(bert(**pieces).last_hidden_state[0].numpy())
    return np.stack(images), np.stack(texts)
