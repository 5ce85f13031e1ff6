"""The set of titles and photos as a table, and what TF-IDF with logistic regression reaches on its titles.

    python benchmarks/science/titles_and_photos.py ../shared/data/fashion_title_image --out products
    cggm train table --data_path products/products.csv --media_path ../shared/data/fashion_title_image --target category
    cggm train table --data_path products/masked.csv --media_path ../shared/data/fashion_title_image --target category

`products.csv` has the columns id, title, photo, category and split. In `masked.csv` the titles lack every word that occurs in
the name of a class, in the singular or the plural, so that no column is enough alone.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

SPLITS = {"train": "train", "dev": "valid", "test": "test"}
STRENGTHS = (1.0, 10.0, 100.0)
HEADER = ("id", "title", "photo", "category", "split")


def records(folder: Path) -> list[dict[str, str]]:
    """Returns the rows of the table, from the lists of the set."""
    found = []
    for name, split in SPLITS.items():
        for one in json.loads((folder / f"{name}.json").read_text()):
            text = " ".join(one["text_tokens"])
            found.append(dict(zip(HEADER, (one["id"], text, one["img_path"], one["label"], split), strict=True)))
    return found


def class_words(rows: list[dict[str, str]]) -> set[str]:
    """Returns the words in the names of the classes, in the singular and the plural."""
    words = {word for row in rows for word in re.split(r"[^a-z]+", row["category"].lower()) if word}
    stems = words | {word.removesuffix("s") for word in words} | {word.removesuffix("es") for word in words}
    return stems | {stem + end for stem in stems for end in ("s", "es")}


def masked(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Returns the rows with titles that do not name a class."""
    words = class_words(rows)
    return [
        row | {"title": " ".join(w for w in row["title"].split() if not {w.lower()} & words and not _holds(w, words))}
        for row in rows
    ]


def _holds(word: str, words: set[str]) -> bool:
    """Returns whether a word is a class with something in front of it, such as 'sweatshirt' for 'shirt'."""
    return any(len(one) > 3 and word.lower().endswith(one) for one in words)


def write(path: Path, rows: list[dict[str, str]]) -> None:
    """Writes rows as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, HEADER)
        writer.writeheader()
        writer.writerows(rows)


def baseline(rows: list[dict[str, str]]) -> tuple[float, float, float]:
    """Returns the regularisation that validation chooses, and the accuracies on validation and test."""
    parts = {split: [row for row in rows if row["split"] == split] for split in SPLITS.values()}
    target = {split: np.array([row["category"] for row in part]) for split, part in parts.items()}
    vectorizer = TfidfVectorizer().fit([row["title"] for row in parts["train"]])
    values = {split: vectorizer.transform([row["title"] for row in part]) for split, part in parts.items()}
    fits = [LogisticRegression(C=c, max_iter=2000).fit(values["train"], target["train"]) for c in STRENGTHS]
    scores = [(fit.score(values["valid"], target["valid"]), fit.score(values["test"], target["test"])) for fit in fits]
    best = max(range(len(fits)), key=lambda number: scores[number][0])
    return STRENGTHS[best], *scores[best]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the set: train.json, dev.json, test.json, images/")
    parser.add_argument("--out", type=Path, default=Path("products"), help="folder of the tables")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    whole = records(given.folder)
    for name, rows in (("products", whole), ("masked", masked(whole))):
        write(given.out / f"{name}.csv", rows)
        strength, valid, test = baseline(rows)
        print(
            f"{name}.csv  titles alone, TF-IDF and logistic regression, C={strength:g}: valid {valid:.4f}, test {test:.4f}"
        )
