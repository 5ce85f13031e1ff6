"""Computes the confusion matrix of a finished run from its test predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import torch

from cggm_ray.data.shards.shards import TARGET, column_values
from cggm_ray.engine.state import PREDICTIONS
from cggm_ray.storage.files import write_text
from cggm_ray.tasks.metrics import confusion_counts

CONFUSION = "confusion.csv"


def save_confusion(folder: Path, names: Sequence[str]) -> Path:
    """Writes `confusion.csv`: a row per true class, a column per predicted class, counts of test samples.

    Args:
        folder: of the run, with its test predictions.
        names: of the classes.

    Returns:
        The file.
    """
    table = pq.read_table(folder / PREDICTIONS, columns=[TARGET, "prediction"])
    truth = torch.from_numpy(column_values(table.column(TARGET)))
    logits = torch.from_numpy(column_values(table.column("prediction")))
    counts = confusion_counts(truth, logits.argmax(1), len(names), None).reshape(len(names), -1).long().tolist()
    quoted = ['"' + name.replace('"', '""') + '"' for name in names]
    lines = [",".join(["truth", *quoted])]
    lines += [",".join([name, *map(str, row)]) for name, row in zip(quoted, counts, strict=True)]
    write_text(folder / CONFUSION, "\n".join(lines) + "\n")
    return folder / CONFUSION
