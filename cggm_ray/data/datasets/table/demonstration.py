"""A small generated CSV of products: a title, numbers with missing cells, a category, and a class that all of them tell of."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from cggm_ray.core.seeding import derive_seed
from cggm_ray.storage.files import write_text

ROWS = 600
CLASSES = ("bag", "jacket", "shirt", "shoe")
COLOURS = ("black", "blue", "green", "red", "white")
MAKERS = ("Alma", "Berg", "Corvo", "Dune")
WORDS = ("classic", "comfort", "light", "new", "original", "sport", "summer", "urban")
TELLS = 0.75
"""Share of the titles that name the class; others name another one."""


def write_demonstration(path: Path, seed: int) -> Path:
    """Writes the file unless it is there; the same bytes for the same seed.

    Neither the title nor the numbers are enough alone. Every eighth price is missing, and every eleventh title.

    Args:
        path: of the file.
        seed: of the generator.

    Returns:
        The path.
    """
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(derive_seed(seed, "demonstration"))
    prices, weights = random.uniform(20, 120, len(CLASSES)), random.uniform(200, 1200, len(CLASSES))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("id", "title", "maker", "price", "weight", "label"))
    for number in range(ROWS):
        label = int(random.integers(len(CLASSES)))
        said = label if random.random() < TELLS else int(random.integers(len(CLASSES)))
        maker = MAKERS[label] if random.random() < 0.5 else str(random.choice(MAKERS))
        words = [*random.choice(WORDS, 2, replace=False).tolist(), str(random.choice(COLOURS)), CLASSES[said]]
        price = "" if number % 8 == 3 else f"{prices[label] * random.lognormal(0, 0.35):.2f}"
        title = "" if number % 11 == 5 else " ".join(words)
        writer.writerow(
            (f"p{number:04d}", title, maker, price, f"{weights[label] * random.lognormal(0, 0.35):.0f}", CLASSES[label])
        )
    write_text(path, text.getvalue())
    return path
