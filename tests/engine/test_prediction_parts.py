"""Predictions that are written some at a time, against those that are written at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from cggm_ray.core.batch import Batch
from cggm_ray.core.reduction import SINGLE_WORKER, Reduction
from cggm_ray.data.loading.sampler import slices
from cggm_ray.engine import evaluation
from cggm_ray.engine.evaluation import Parts, Predictions
from cggm_ray.engine.prediction_file import PredictionFile
from cggm_ray.tasks import Classification, MultiLabel, Regression, Task

N, BATCH = 53, 8
CPU = torch.device("cpu")
NAMES = [f"s{row}" for row in range(N)]


def outputs(task: Task) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(N, task.outputs, generator=random)
    target = torch.randint(0, 2, (N,) if isinstance(task, Classification) else (N, task.values), generator=random)
    # The first part has no label at all.
    labelled = torch.arange(N) > 20
    return logits, target if isinstance(task, Classification) else target.float(), labelled


def collect(parts: Parts, task: Task, reduce: Reduction, rank: int = 0) -> None:
    """Does what `evaluate` does with the outputs of a network."""
    logits, target, labelled = outputs(task)
    passed = 0
    for part in slices(torch.arange(N), BATCH, rank, reduce.world_size or 1):
        rows = part.index
        batch = Batch(inputs={}, target=target[rows], index=rows, labelled=labelled[rows], weight=part.weight)
        if not batch.is_filler:
            parts.take(batch, logits[rows])
        passed += part.samples
        parts.passed(passed, reduce, CPU)


@pytest.mark.parametrize("as_csv", [False, True])
@pytest.mark.parametrize("task", [Regression(sentiment=False), Classification(3), MultiLabel(4)])
def test_a_file_in_parts_has_the_rows_of_one_that_is_written_at_once(
    tmp_path: Path, task: Task, as_csv: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = ["a", "b", "c"] if isinstance(task, Classification) else None
    labels = ["k", "l", "m", "n"] if isinstance(task, MultiLabel) else None
    sizes: dict[str, list[int]] = {"whole": [], "parts": []}
    for name in sizes:
        file = PredictionFile(tmp_path / name, N, NAMES, classes, labels, as_csv=as_csv)

        def give(part: Predictions, file: PredictionFile = file, name: str = name) -> None:
            sizes[name].append(len(part.target))
            file.add(part)

        collect(Parts(N, task, BATCH, give), task, SINGLE_WORKER)
        file.close()
        monkeypatch.setattr(evaluation, "PART_BYTES", 2 * BATCH * 8 * (task.outputs + task.values))
    assert sizes == {"whole": [N], "parts": [16, 16, 16, 5]}
    read: Callable[[Path], object] = pyarrow.csv.read_csv if as_csv else pq.read_table
    assert read(tmp_path / "parts") == read(tmp_path / "whole")


def test_two_workers_hand_on_the_same_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Regression(sentiment=False)
    monkeypatch.setattr(evaluation, "PART_BYTES", 2 * BATCH * 8 * (task.outputs + task.values))
    meeting, shares, found = threading.Barrier(2), [torch.zeros(0), torch.zeros(0)], [[], [], []]

    def work(rank: int) -> None:
        def add(values: Tensor) -> Tensor:
            shares[rank] = values.clone()
            meeting.wait()
            total = shares[0] + shares[1]
            meeting.wait()
            return total

        collect(Parts(N, task, BATCH, found[rank].append), task, Reduction(add, 2), rank)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    collect(Parts(N, task, BATCH, found[2].append), task, SINGLE_WORKER)
    assert [part.start for part in found[0]] == [0, 16, 32, 48]
    for ours in found[:2]:
        for mine, alone in zip(ours, found[2], strict=True):
            assert torch.equal(mine.logits, alone.logits)
            assert torch.equal(mine.target, alone.target)
