"""Orders by windows of shards: every sample once, few shards at a time, the same for any workers, memory and place."""

from __future__ import annotations

import queue
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from faulty_store import faulty_store
from feature_sets import arrays, as_npz
from stored_sets import stored

from cggm_ray.commands.cli import main
from cggm_ray.core.errors import UsageError
from cggm_ray.data.datasets.features import FeatureOptions
from cggm_ray.data.loading import sampler
from cggm_ray.data.loading.held import FetchAhead, Held, check_window
from cggm_ray.data.loading.sampler import WindowOrder, slices
from cggm_ray.data.loading.windows import WindowSplit
from cggm_ray.data.settings import DataConfig
from cggm_ray.data.shards import chunks
from cggm_ray.engine.budget import Budget, with_window
from cggm_ray.engine.configuration import Config
from cggm_ray.storage import cache, urls
from cggm_ray.storage.urls import UrlPath
from conftest import SMALL

ROWS = [5, 3, 7, 1, 4, 6, 2]
SHARD_OF = np.repeat(np.arange(len(ROWS)), ROWS)


def order(seed: int = 1, epoch: int = 0, window: int = 2) -> WindowOrder:
    return WindowOrder(torch.tensor(ROWS), window, seed, epoch)


@pytest.mark.parametrize("window", [1, 2, 3, 7, 20])
def test_every_sample_once_and_few_shards_at_a_time(window: int) -> None:
    found = order(window=window)[: sum(ROWS)].numpy()
    assert sorted(found) == list(range(sum(ROWS)))
    # All samples of a window come before those of the next.
    begun = list(dict.fromkeys(SHARD_OF[found].tolist()))
    start = 0
    for number in range(0, len(ROWS), window):
        piece = begun[number : number + window]
        stop = start + sum(ROWS[shard] for shard in piece)
        assert set(SHARD_OF[found[start:stop]].tolist()) == set(piece)
        start = stop


def test_any_stretch_is_that_of_the_whole() -> None:
    whole = order()[: sum(ROWS)]
    for start in range(sum(ROWS)):
        for stop in range(start + 1, sum(ROWS) + 3):
            assert torch.equal(order()[start:stop], whole[start:stop])


def test_a_function_of_seed_and_epoch() -> None:
    whole = order()[:28]
    assert torch.equal(order()[:28], whole)
    for other in (order(seed=2), order(epoch=1), order(window=3)):
        assert not torch.equal(other[:28], whole)


def test_a_hundred_million_samples_need_little_memory() -> None:
    shards, rows = 10**8 // 2500, 2500
    shard_rows = torch.full((shards,), rows)
    tracemalloc.start()
    found = WindowOrder(shard_rows, 4, 1, 3)
    assert len(found) == 10**8
    for start in (0, 7, 54_321_000, 10**8 - 64):
        part = found[start : start + 64]
        assert len(part) == 64
        assert len(set((part // rows).tolist())) <= 8
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Tensors are outside of what is traced, so they are counted by their shapes: three of the shards, one of the windows.
    assert peak + 8 * (3 * shards + shards // 4 + 2 * 8 * rows) < 50 * 2**20


def test_a_plan_is_that_of_the_whole_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "STRETCH", 11)
    budget = with_window(Budget(samples=28, batch_size=5, passes=2, total=9), 2, ROWS)
    found = budget.order(3, 1, 0)
    whole = found[:]
    assert len(found) == len(whole) == 45
    given = {"double": 2 * whole}
    for start, rank, workers in ((0, 0, 1), (10, 1, 2), (40, 2, 3), (45, 0, 1)):
        plan = sampler.Plan(found, 5, rank, workers, given, start)
        wanted = slices(whole[start:], 5, rank, workers, {"double": 2 * whole[start:]})
        # It can be gone through again.
        for part, again, other in zip(plan, plan, wanted, strict=True):
            assert torch.equal(part.index, other.index)
            assert torch.equal(again.index, other.index)
            assert part.samples == other.samples
            assert part.given is not None
            assert torch.equal(part.given["double"], 2 * other.index)
    assert torch.equal(torch.cat([part.index for part in sampler.Plan(sampler.InOrder(28), 5, 0, 1)]), torch.arange(28))


def test_the_budget_goes_through_the_windows() -> None:
    budget = Budget(samples=28, batch_size=5, passes=2, total=100)
    wanted = torch.cat([order(seed=9, epoch=2)[:28], order(seed=9, epoch=3)[:28]])
    windowed = with_window(budget, 2, ROWS)
    assert torch.equal(windowed.order(9, 1, 0)[:], wanted)
    assert torch.equal(with_window(budget, 0, ROWS).order(9, 1, 0)[:], budget.order(9, 1, 0)[:])
    with pytest.raises(UsageError, match="window: found 2; expected 0, because this dataset draws its samples"):
        with_window(budget, 2, [5, 5])
    # Any number of workers takes the same global batches, from any place on.
    for begun in (0, 10, 35):
        wholes = [part.index for part in slices(wanted[begun:], 5, 0, 1)]
        for workers in (2, 3):
            parts = zip(*(slices(wanted[begun:], 5, rank, workers) for rank in range(workers)), strict=True)
            for whole, several in zip(wholes, parts, strict=True):
                assert torch.equal(torch.cat([part.index for part in several if part.weight is None]), whole)


def test_what_is_held() -> None:
    loaded: list[int] = []

    def load(key: int) -> int:
        loaded.append(key)
        return key * 10

    held: Held[int, int] = Held(load, 2)
    assert [held.get(key) for key in (1, 2, 1, 3, 1, 2)] == [10, 20, 10, 30, 10, 20]
    assert loaded == [1, 2, 3, 2]


def test_files_are_copied_a_few_before_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: queue.Queue[Path] = queue.Queue()
    monkeypatch.setattr("cggm_ray.data.loading.held.local_copy", copied.put)
    paths = [Path(str(number)) for number in range(6)]
    fetch = FetchAhead(paths, 2)
    found: list[Path] = []
    for place, begun in ((0, 3), (0, 3), (1, 4), (4, 6), (5, 6)):
        fetch.needs(paths[place])
        found += [copied.get() for _ in range(begun - len(found))]
        assert copied.empty()
    assert found == paths
    fetch.close()


def test_a_window_that_does_not_fit() -> None:
    check_window(2, 2**22, [2**20] * 9)
    check_window(1, 1, [2**20] * 9)
    with pytest.raises(
        UsageError, match="window: 3 shards, of which two windows stay in memory, are 6 MiB; expected at most"
    ):
        check_window(3, 2**22, [2**20] * 9)


def test_an_epoch_requests_the_bytes_of_the_shards(
    bucket: str, s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    columns = {"a": rng.normal(size=(900, 1500)).astype(np.float32)}
    manifest = stored(tmp_path / "set", columns, 9)
    folder = UrlPath(f"{bucket}/set")
    for file in (tmp_path / "set").iterdir():
        (folder / file.name).upload(file)
    rows = [shard.rows for shard in manifest.splits["train"]]
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "cache"))
    device = torch.device("cpu")
    with faulty_store(s3_endpoint) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
        cold = UrlPath(f"{bucket}/set")
        urls._storage.cache_clear()
        split = WindowSplit(cold, manifest, "train", ("a",), device, 0, 2**30, 2)
        for epoch in (0, 1):
            plan = list(slices(WindowOrder(torch.tensor(rows), 2, 0, epoch)[:900], 50, 0, 1))
            for batch in split.batches(plan, epoch):
                assert np.array_equal(batch.inputs["a"].numpy(), columns["a"][batch.index])
        assert store.sent <= 1.1 * sum(shard.bytes for shard in manifest.splits["train"])
    urls._storage.cache_clear()


def test_a_run_is_the_same_in_memory_and_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "SHARD_BYTES", 2**18)
    content = {**arrays(60), "words": np.random.default_rng(0).normal(size=(60, 500, 20)).astype(np.float32)}
    raw = as_npz(tmp_path, content)
    recipe = Config(data=DataConfig(dataset="features"), options=FeatureOptions(split="part"))
    lines = []
    for name, budget in (("memory", "64"), ("streamed", "1")):
        places = ["--data_path", str(raw), "--storage_path", str(tmp_path), "--name", name, "--modalities", "words,age"]
        assert main(recipe, ["--local", *SMALL, *places, "--window", "2", "--memory_budget", budget]) == 0
        metrics = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        lines.append([line.partition('"seconds"')[0] for line in metrics])
    assert lines[0] == lines[1]
    # The window belongs to the run.
    assert main(recipe, ["--local", *SMALL, *places, "--window", "3"]) == 2
