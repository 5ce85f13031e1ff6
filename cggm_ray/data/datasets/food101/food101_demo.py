"""A small generated set in the layout of UPMC-Food-101, with small encoders in the format of transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from cggm_ray.core.optional import require
from cggm_ray.core.seeding import derive_seed
from cggm_ray.storage.files import whole_folder

DISHES = ("apple_pie", "caesar_salad", "donuts", "lasagna", "miso_soup", "tacos")
SAMPLES = {"train": 360, "test": 120}
SIZE = 32
FILLER = (
    "a",
    "the",
    "best",
    "recipe",
    "for",
    "easy",
    "quick",
    "with",
    "fresh",
    "home",
    "made",
    "serve",
    "bake",
    "minutes",
)
TEXT_TELLS, IMAGE_TELLS = 0.7, 0.85
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_demonstration(folder: Path, seed: int) -> None:
    """Writes the set: JSON files, JPEGs, a ViT and a BERT with its vocabulary; the same for the same seed.

    A dish has its word and its colours. The text names it in most records, another dish in the others; so does the
    colour of the image, independently. Neither is enough alone.

    Raises:
        UsageError: transformers is not installed.
    """
    with whole_folder(folder) as partial:
        _write_records(partial, seed)
        _write_encoders(partial, seed)


def _write_records(folder: Path, seed: int) -> None:
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(derive_seed(seed, "demonstration"))
    colours = rng.uniform(40, 215, size=(len(DISHES), 2, 3))
    number = 0
    for split, samples in SAMPLES.items():
        records = []
        for _ in range(samples):
            dish = int(rng.integers(len(DISHES)))
            said = dish if rng.random() < TEXT_TELLS else int(rng.integers(len(DISHES)))
            shown = dish if rng.random() < IMAGE_TELLS else int(rng.integers(len(DISHES)))
            words = [*rng.choice(FILLER, size=rng.integers(4, 9)).tolist(), *DISHES[said].split("_")]
            path = f"images/{number:05d}.jpg"
            _write_image(folder / path, colours[shown], rng)
            records.append(
                {
                    "id": f"{split}_{number}",
                    "text_tokens": rng.permutation(words).tolist(),
                    "img_path": path,
                    "label": DISHES[dish],
                }
            )
            number += 1
        (folder / f"{split}.json").write_text(json.dumps(records, indent=1))


def _write_image(path: Path, colours: np.ndarray, rng: np.random.Generator) -> None:
    """Draws a dish in its second colour on a ground of its first colour, under noise."""
    Image = require("PIL.Image", extra="food101", purpose="food101")

    rows, columns = np.mgrid[:SIZE, :SIZE]
    centre, radius = rng.uniform(10, 22, size=2), rng.uniform(6, 12)
    plate = np.hypot(rows - centre[0], columns - centre[1]) < radius
    pixels = np.where(plate[..., None], colours[1], colours[0]) + rng.normal(scale=25, size=(SIZE, SIZE, 3))
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, quality=90)


def _write_encoders(folder: Path, seed: int) -> None:
    transformers = require("transformers", extra="food101", purpose="food101")
    transformers.utils.logging.disable_progress_bar()
    words = sorted({word for dish in DISHES for word in dish.split("_")} | set(FILLER))
    small = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 96}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "demonstration"))
        vit = transformers.ViTConfig(image_size=SIZE, patch_size=8, initializer_range=0.1, **small)
        transformers.ViTModel(vit, add_pooling_layer=False).save_pretrained(folder / "vit")
        bert = transformers.BertConfig(vocab_size=len(_SPECIAL) + len(words), max_position_embeddings=64, **small)
        bert.initializer_range = 0.1
        transformers.BertModel(bert, add_pooling_layer=False).save_pretrained(folder / "bert")
    (folder / "bert" / "vocab.txt").write_text("\n".join((*_SPECIAL, *words)) + "\n")
