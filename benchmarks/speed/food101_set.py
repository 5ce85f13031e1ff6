"""Generated images and texts in the layout of UPMC-Food-101, and random encoders for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import transformers
from PIL import Image


def write_set(folder: Path, samples: int) -> Path:
    """Returns the layout of UPMC-Food-101: `samples` to train on, an eighth of it each to validate and to test."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    for split, count in {"train": samples, "dev": samples // 8, "test": samples // 8}.items():
        records = []
        for number in range(count):
            path = f"images/{split}{number}.jpg"
            coarse = Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8))
            coarse.resize((512, 384), Image.Resampling.BICUBIC).save(folder / path, quality=90)
            label = "ab"[number % 2]
            records.append({"id": path, "text_tokens": ["word"] * 12, "img_path": path, "label": label})
        (folder / f"{split}.json").write_text(json.dumps(records))
    return folder


def save_encoders(folder: Path, hidden: int, layers: int) -> tuple[Path, Path]:
    """Saves random encoders in the format of transformers."""
    sizes = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "intermediate_size": 4 * hidden,
    }
    transformers.utils.logging.disable_progress_bar()
    transformers.ViTModel(transformers.ViTConfig(**sizes), add_pooling_layer=False).save_pretrained(folder / "vit")
    bert = transformers.BertConfig(**sizes, vocab_size=30522)
    transformers.BertModel(bert, add_pooling_layer=False).save_pretrained(folder / "bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word"]
    (folder / "bert" / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder / "vit", folder / "bert"
