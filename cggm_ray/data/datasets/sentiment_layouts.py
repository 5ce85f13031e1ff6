"""Generated sets of sentiment in the layouts in which sets such as MOSEI and SIMS are spread."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cggm_ray.storage.files import write_bytes

Content = Mapping[str, Mapping[str, np.ndarray]]
PADDING = 3
"""Steps of zeros after the sequences of the layout `mmsa`."""


def released(content: Content) -> dict[str, Any]:
    """Returns the layout of the released code: arrays, and labels [N, 1, 1]."""
    return {split: dict(part) for split, part in content.items()}


def mult(content: Content) -> dict[str, Any]:
    """Returns that of MulT: beside them ids [N, 3] of the video, and start and end of the segment, as bytes."""
    found: dict[str, Any] = {}
    for split, part in content.items():
        rows = range(len(part["labels"]))
        ids = np.array([[f"{split}{row // 4}", f"{row % 4}.0", f"{row % 4 + 1}.0"] for row in rows], "S")
        found[split] = dict(part) | {"id": ids}
    return found


def mmsa(content: Content) -> dict[str, Any]:
    """Returns that of MMSA: labels by several names, lengths of padded sequences, words, and ids `video$_$clip`."""
    found: dict[str, Any] = {}
    for split, part in content.items():
        labels, count = part["labels"].reshape(-1), len(part["labels"])
        whole: dict[str, Any] = {"text": part["text"]}
        for name in ("audio", "vision"):
            whole[name] = np.pad(part[name], ((0, 0), (0, PADDING), (0, 0)))
            whole[f"{name}_lengths"] = [part[name].shape[1]] * count
        found[split] = whole | {
            "raw_text": np.array(["words"] * count, object),
            "id": np.array([f"{split}{row // 4}$_${row % 4}" for row in range(count)], object),
            "regression_labels": labels,
            **{f"regression_labels_{letter}": labels for letter in "TAV"},
            "classification_labels": np.sign(labels) + 1,
            "annotations": np.array(["Negative", "Neutral", "Positive"], object)[np.sign(labels).astype(int) + 1],
        }
    return found


LAYOUTS: dict[str, Callable[[Content], dict[str, Any]]] = {"released": released, "mmsa": mmsa, "mult": mult}


def write_layout(path: Path, content: Content, layout: str) -> Path:
    """Writes a set as a pickle of a layout, unless it is there, and returns its path."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, pickle.dumps(LAYOUTS[layout](content)))
    return path
