"""The JSON files of UPMC-Food-101: records read and checked, classes, and a validation part where there is none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cggm_ray.core.errors import DataError, listed, shown
from cggm_ray.core.seeding import derive_seed
from cggm_ray.data.formats.untrusted import inside, is_text, read_json

FILES = {"train": "train.json", "valid": "dev.json", "test": "test.json"}
KEYS = ("id", "text_tokens", "img_path", "label")


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One sample as the JSON names it."""

    id: str
    text: str
    image: str
    label: str


def read_records(path: Path) -> list[Record]:
    """The records of one JSON file.

    Raises:
        DataError: names file, record and field.
    """
    content = read_json(path)
    if not isinstance(content, list):
        raise DataError(f"{path}: found a {type(content).__name__}; expected a list of records with {', '.join(KEYS)}")
    if not content:
        raise DataError(f"{path}: the list is empty; expected at least one record")
    records, seen = [], set()
    for number, entry in enumerate(content):
        where = f"{path}, record {number}"
        if not isinstance(entry, dict):
            raise DataError(f"{where}: found a {type(entry).__name__}; expected an object with {', '.join(KEYS)}")
        for key in KEYS:
            if key not in entry:
                raise DataError(f"{where}: field {key} is missing; found {listed(entry)}; expected {', '.join(KEYS)}")
        tokens = entry["text_tokens"]
        if not isinstance(tokens, list) or not all(is_text(token) for token in tokens):
            raise DataError(f"{where}, field text_tokens: found {shown(tokens)}; expected a list of texts")
        for key in ("img_path", "label"):
            if not is_text(entry[key]) or not entry[key]:
                raise DataError(f"{where}, field {key}: found {shown(entry[key])}; expected a text")
        if not inside(entry["img_path"]):
            raise DataError(
                f"{where}, field img_path: found {shown(entry['img_path'])}; expected a path that is relative to "
                f"{path.parent} and stays below it"
            )
        if isinstance(entry["id"], bool) or not (isinstance(entry["id"], int) or is_text(entry["id"])):
            raise DataError(f"{where}, field id: found {shown(entry['id'])}; expected a text or a number")
        identity = str(entry["id"])
        if identity in seen:
            raise DataError(f"{where}, field id: found {shown(identity)} twice; expected every id once")
        seen.add(identity)
        records.append(Record(id=identity, text=" ".join(tokens), image=entry["img_path"], label=entry["label"]))
    return records


def check_labels(splits: dict[str, list[Record]], root: Path) -> list[str]:
    """The classes: the labels of train, sorted.

    Raises:
        DataError: another split has a label that train lacks.
    """
    classes = {record.label for record in splits["train"]}
    for split, records in splits.items():
        for record in records:
            if record.label not in classes:
                raise DataError(
                    f"{root / FILES[split]}, id {record.id}, field label: {shown(record.label)} is not among the "
                    f"{len(classes)} classes of train.json"
                )
    return sorted(classes)


def stratified(records: list[Record], share: float, seed: int) -> tuple[list[Record], list[Record]]:
    """Train and validation: of every class the share, rounded, is drawn for validation, and one record stays at least.

    Raises:
        DataError: no class is large enough.
    """
    by_label: dict[str, list[int]] = {}
    for row, record in enumerate(records):
        by_label.setdefault(record.label, []).append(row)
    chosen: set[int] = set()
    for number, label in enumerate(sorted(by_label)):
        rows = by_label[label]
        rng = np.random.default_rng(derive_seed(seed, "split", number))
        take = min(len(rows) - 1, max(1, round(share * len(rows))))
        chosen.update(rng.permutation(rows)[:take].tolist())
    if not chosen:
        raise DataError("train.json: every class has a single record; there is none left for validation, add dev.json")
    return (
        [record for row, record in enumerate(records) if row not in chosen],
        [record for row, record in enumerate(records) if row in chosen],
    )
