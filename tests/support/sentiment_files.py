"""Pickles of sets of sentiment in the layouts that people have."""

from __future__ import annotations

import pickle
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

SIZES = {"train": 12, "valid": 5, "test": 6}
WIDTHS = {"text": (4, 6), "audio": (7, 3), "vision": (5, 2)}


def base(seed: int = 0) -> dict[str, dict[str, Any]]:
    """The released layout."""
    rng = np.random.default_rng(seed)

    def split(name: str, n: int) -> dict[str, Any]:
        arrays: dict[str, Any] = {key: rng.normal(size=(n, *shape)).astype(np.float32) for key, shape in WIDTHS.items()}
        arrays["labels"] = rng.uniform(-3, 3, size=(n, 1, 1)).astype(np.float32)
        arrays["id"] = np.array([f"{name}{row}" for row in range(n)])
        return arrays

    return {name: split(name, n) for name, n in SIZES.items()}


def mmsa() -> dict[str, dict[str, Any]]:
    """MMSA and Self-MM: lengths, token ids, labels of every kind, -inf in audio; zeros after the lengths."""
    rng = np.random.default_rng(5)
    content = base()
    for part in content.values():
        labels = part.pop("labels")
        n = len(labels)
        for name in ("audio", "vision"):
            steps = rng.integers(1, WIDTHS[name][0] + 1, size=n)
            part[name][np.arange(WIDTHS[name][0]) >= steps[:, None]] = 0
            part[f"{name}_lengths"] = steps.tolist()
        part["audio"][1, 0, 2] = -np.inf
        part |= {
            "regression_labels": labels.reshape(-1),
            "classification_labels": np.sign(labels.reshape(-1)) + 1,
            "regression_labels_T": labels.reshape(-1, 1),
            "annotations": np.where(labels.reshape(-1) > 0, "Positive", "Negative"),
            "raw_text": np.array(["a b"] * n),
            "text_bert": np.stack(
                [rng.integers(0, 30000, (n, 9)), rng.integers(0, 2, (n, 9)), np.zeros((n, 9), int)], 1
            ).astype(np.float32),
            "id": np.array([f"v$_${row}" for row in range(n)], dtype=object),
        }
    return content


def mag() -> tuple[dict[str, list[Any]], dict[str, dict[str, Any]]]:
    """MAG-BERT's lists, and what they hold as arrays by split."""
    rng = np.random.default_rng(7)
    content: dict[str, list[Any]] = {}
    for name, n in (("train", 12), ("dev", 5), ("test", 6)):
        content[name] = []
        for row in range(n):
            steps = int(rng.integers(1, 6))
            words = [np.str_("w")] * steps
            features = rng.normal(size=(steps, 4)), rng.normal(size=(steps, 3))
            content[name].append(((words, *features), np.array([[rng.uniform(-3, 3)]]), f"{name}[{row}]"))
    return content, {"valid" if name == "dev" else name: {"rows": rows} for name, rows in content.items()}


def by_bytes(content: dict[str, dict[str, Any]]) -> dict[bytes, dict[bytes, Any]]:
    return {split.encode(): {name.encode(): v for name, v in part.items()} for split, part in content.items()}


def ordered(content: dict[str, dict[str, Any]]) -> Any:
    inner: Any = OrderedDict((split, OrderedDict(part)) for split, part in content.items())
    return inner


def defaults(content: dict[str, dict[str, Any]]) -> Any:
    return defaultdict(dict, content)


def lists(content: dict[str, dict[str, Any]]) -> Any:
    """Labels as lists of lists, features as lists of arrays, lists of lists, and an array of objects."""
    changed = {}
    for split, part in content.items():
        vision = np.empty(len(part["vision"]), dtype=object)
        vision[:] = list(part["vision"])
        changed[split] = part | {
            "text": part["text"].tolist(),
            "audio": list(part["audio"]),
            "vision": vision,
            "labels": part["labels"].reshape(-1, 1).tolist(),
            "id": [(name.encode(), 0.5) for name in part["id"].tolist()],
        }
    return changed


def samples(content: dict[str, dict[str, Any]]) -> Any:
    """A list of dicts for every split, named in other ways."""
    names = {"train": "Train", "valid": "dev", "test": "TEST"}
    return {
        names[split]: [{key: values[row] for key, values in part.items()} for row in range(SIZES[split])]
        for split, part in content.items()
    }


def wide(content: dict[str, dict[str, Any]]) -> Any:
    """float64 features and labels of whole numbers."""
    return {
        split: {
            name: (np.round(v).astype(np.int64) if name == "labels" else v.astype(np.float64) if v.ndim == 3 else v)
            for name, v in part.items()
        }
        for split, part in content.items()
    }


def write(path: Path, content: Any) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path
