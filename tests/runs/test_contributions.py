"""Scores of subsets of modalities, and their Shapley values against the definition by orders."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cggm_ray.commands.cli import main
from cggm_ray.core.errors import TrainingError, UsageError
from cggm_ray.core.shapley import shapley_values
from cggm_ray.data.datasets.mosi import planted_imbalance
from cggm_ray.data.loading.split import TensorSplit
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.runtime import LocalRuntime, RunConfig
from cggm_ray.engine.settings import TrainConfig
from cggm_ray.engine.stopping import Agreement, Notice, StopRequest
from cggm_ray.engine.tracking import read_metrics
from cggm_ray.models.deeplab import DeepLab, DeepLabConfig
from cggm_ray.models.resnet import ResNetConfig
from cggm_ray.models.sequence import sequence_net
from cggm_ray.models.settings import ModelConfig
from cggm_ray.runs import contributions as balance
from cggm_ray.runs.contributions import (
    BALANCE,
    MOST_MODALITIES,
    Contributions,
    Subset,
    contributions,
    imbalance_degree,
    subsets,
)
from cggm_ray.runs.verdict import verdict
from cggm_ray.strategies.coefficients import COEFFICIENT_RULES
from cggm_ray.tasks import Classification, Segmentation
from conftest import SMALL, small_set, write_pickle

NAMES = ("a", "b", "c", "d")


def by_orders(scores: dict[Subset, float], modalities: tuple[str, ...]) -> dict[str, float]:
    """The definition: what a modality adds when it comes, averaged over all orders."""
    total = dict.fromkeys(modalities, 0.0)
    orders = list(itertools.permutations(modalities))
    for order in orders:
        for place, name in enumerate(order):
            before = frozenset(order[:place])
            total[name] += scores[before | {name}] - scores[before]
    return {name: value / len(orders) for name, value in total.items()}


@st.composite
def games(draw: st.DrawFn) -> tuple[dict[Subset, float], tuple[str, ...]]:
    names = NAMES[: draw(st.integers(1, 4))]
    return {subset: draw(st.floats(-100, 100)) for subset in subsets(names)}, names


@given(games())
def test_shapley_values_are_the_mean_over_all_orders(game: tuple[dict[Subset, float], tuple[str, ...]]) -> None:
    scores, names = game
    found = shapley_values(scores, names)
    for name, value in by_orders(scores, names).items():
        assert math.isclose(found[name], value, abs_tol=1e-9)
    assert math.isclose(sum(found.values()), scores[frozenset(names)] - scores[frozenset()], abs_tol=1e-9)


def test_equal_modalities_get_equal_values_and_a_useless_one_nothing() -> None:
    scores = {subset: float(len(subset & {"a", "b"}) ** 2) for subset in subsets(NAMES)}
    found = shapley_values(scores, NAMES)
    assert found["a"] == pytest.approx(found["b"]) == pytest.approx(2)
    assert found["c"] == found["d"] == 0


def test_the_imbalance_degree() -> None:
    assert imbalance_degree([1.0, 1.0, 1.0]) == imbalance_degree([0.0, 0.0]) == 0
    assert imbalance_degree([0.0, 2.0, 0.0]) == 1
    assert imbalance_degree([3.0, 1.0]) == pytest.approx(0.5)
    assert imbalance_degree([2.0, -2.0]) == 1


@pytest.mark.parametrize(
    ("alone", "said"),
    [
        (
            {"a": 0.9, "b": 0.05},
            "A does nearly all: validation accuracy goes from 0.0000 without any modality to 0.9500 with all",
        ),
        ({"a": 0.6, "b": 0.3}, "A does most: "),
        ({"a": 0.5, "b": 0.4}, "All modalities contribute: "),
        ({"a": 0.5, "b": -0.1}, "of which a 125%, b -25% (Shapley values). With b it is worse than without."),
        ({"a": -0.1, "b": 0.0}, "The network has learned nothing from its modalities: "),
    ],
)
def test_the_verdict_says_who_does_the_work(alone: dict[str, float], said: str) -> None:
    """Scores of modalities that add up, so that each Shapley value is the score alone."""
    sums = {subset: sum(alone[name] for name in subset) for subset in subsets(tuple(alone))}
    found = Contributions(metric="accuracy", better="max", split="valid", epoch=1, modalities=tuple(alone), scores=sums)
    assert said in verdict(found)
    lost = Contributions(
        metric="accuracy", better="max", split="valid", epoch=1, modalities=tuple(alone), scores={frozenset(): 0.0}
    )
    assert verdict(lost) == ""


def test_too_many_modalities() -> None:
    with pytest.raises(UsageError, match=r"modalities: found 11, which have 2048 subsets; expected at most 10"):
        subsets([str(number) for number in range(MOST_MODALITIES + 1)])


def test_what_is_saved_is_what_is_read(tmp_path: Path) -> None:
    scores = {subset: float(len(subset)) for subset in subsets(("b", "a"))} | {frozenset("a"): math.nan}
    saved = Contributions(
        metric="mae",
        better="min",
        split="valid",
        epoch=3,
        modalities=("b", "a"),
        scores={**scores, frozenset("a"): 7.0},
    )
    saved.save(tmp_path / BALANCE)
    assert Contributions.load(tmp_path / BALANCE) == saved
    assert json.loads((tmp_path / BALANCE).read_text())["shapley"] == pytest.approx({"a": -3 - 1 + 0.0, "b": 2.0})
    dataclasses.replace(saved, scores=scores).save(tmp_path / BALANCE)
    assert math.isnan(Contributions.load(tmp_path / BALANCE).scores[frozenset("a")])
    (tmp_path / BALANCE).write_text('{"metric": "mae"}')
    with pytest.raises(UsageError, match=r"balance\.json cannot be read"):
        Contributions.load(tmp_path / BALANCE)


def tiny(features: dict[str, int], outputs: int) -> tuple[Config, torch.nn.Module]:
    torch.manual_seed(1)
    model = ModelConfig(nlevels=3, cls_layers=1, num_heads=2, proj_dim=8)
    config = Config(model=model, train=TrainConfig(batch_size=4), run=RunConfig(local=True, cpus_per_worker=1))
    return config, sequence_net(model, features, outputs)


@pytest.mark.parametrize("masked", [False, True])
def test_scores_are_those_of_a_network_that_sees_zeros(tmp_path: Path, masked: bool) -> None:
    """Against hooks that zero the output of an encoder, one sample at a time; with masks, against a sample without it."""
    config, net = tiny({"a": 3, "b": 5}, 4)
    inputs = {"a": torch.randn(11, 6, 3), "b": torch.randn(11, 2, 5)}
    masks = {"a": torch.arange(6) < torch.randint(1, 7, (11, 1)), "b": torch.ones(11, 1, dtype=torch.bool)}
    target = torch.randint(4, (11,))
    split = TensorSplit(inputs, target, masks=masks if masked else None)
    task, runtime = Classification(4), LocalRuntime(tmp_path, config.run)
    found = contributions(config.train, net, task, split, runtime, metric="accuracy", epoch=1)
    assert [sorted(subset) for subset in found.scores] == [[], ["a"], ["b"], ["a", "b"]]
    net.eval()
    for subset, score in found.scores.items():
        hooks = [
            net.encoders[name].register_forward_hook(lambda module, arguments, output: torch.zeros_like(output))
            for name in net.encoders
            if name not in subset
        ]
        hits = 0
        with torch.no_grad():
            for row in range(11):
                one = {name: values[row : row + 1] for name, values in inputs.items()}
                seen = {name: mask[row : row + 1] & (name in subset) for name, mask in masks.items()}
                hits += int(net(one, seen if masked else None).argmax() == target[row])
        for hook in hooks:
            hook.remove()
        assert score == pytest.approx(hits / 11), subset
    assert sum(found.shapley.values()) == pytest.approx(
        found.scores[frozenset("ab")] - found.scores[frozenset()], abs=1e-12
    )


def test_the_sums_of_two_workers_add_up(tmp_path: Path) -> None:
    config, net = tiny({"a": 3, "b": 5}, 4)
    split = TensorSplit({"a": torch.randn(9, 6, 3), "b": torch.randn(9, 2, 5)}, torch.randint(4, (9,)))
    task = Classification(4)
    alone = contributions(config.train, net, task, split, LocalRuntime(tmp_path, config.run), metric="loss", epoch=1)
    found = in_two_threads(
        tmp_path, config, lambda runtime: contributions(config.train, net, task, split, runtime, **ABOUT)
    )
    assert all(together.scores == pytest.approx(alone.scores, rel=1e-6) for together in found)
    assert not any(together.missing for together in found)


ABOUT: dict[str, Any] = {"metric": "loss", "epoch": 1}


class Pair(LocalRuntime):
    """One of two workers that are threads: a sum waits for both."""

    def __init__(self, folder: Path, config: RunConfig, rank: int, sums: list[torch.Tensor], both: Barrier) -> None:
        self._sums, self._both = sums, both
        super().__init__(folder, config, StopRequest())
        self.rank, self.world_size = rank, 2
        self._agreement = Agreement(self.stop_request.notice, 2, self.reduce(), self.device, 0.0)

    def reduce(self) -> Callable[[torch.Tensor], torch.Tensor]:
        def add(part: torch.Tensor) -> torch.Tensor:
            self._sums[self.rank] = part.clone()
            self._both.wait()
            total = self._sums[0] + self._sums[1]
            self._both.wait()
            return total

        return add


def in_two_threads(folder: Path, config: Config, call: Callable[[Pair], Contributions]) -> list[Contributions]:
    sums, both = [torch.zeros(0), torch.zeros(0)], Barrier(2)

    def either(rank: int) -> Contributions:
        try:
            return call(Pair(folder, config.run, rank, sums, both))
        except BaseException:
            # The other one would wait for ever.
            both.abort()
            raise

    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(either, rank) for rank in (0, 1)]
        return [run.result() for run in runs]


def stopping_after(polls: int, runtime: LocalRuntime) -> LocalRuntime:
    """The runtime, to which a signal comes before so many polls are made."""
    left = iter(range(polls))
    notice = runtime.stop_request.notice
    runtime.stop_request.notice = lambda: notice() if next(left, None) is not None else Notice.STOP  # type: ignore[method-assign]
    runtime._agreement._ask = runtime.stop_request.notice
    return runtime


def test_workers_stop_at_the_same_subset(tmp_path: Path) -> None:
    """A signal comes to one of two at some subset of some batch: both keep the same scores, those of an undisturbed call."""
    config, net = tiny({"a": 3, "b": 5, "c": 2}, 4)
    shapes = {"a": (9, 6, 3), "b": (9, 2, 5), "c": (9, 2, 2)}
    split = TensorSplit({name: torch.randn(shape) for name, shape in shapes.items()}, torch.randint(4, (9,)))
    task, batches = Classification(4), 3
    whole = contributions(config.train, net, task, split, LocalRuntime(tmp_path, config.run), **ABOUT)
    assert not whole.missing
    kept = set()
    for polls in range(0, 8 * batches + 1):

        def call(runtime: Pair, polls: int = polls) -> Contributions:
            one = stopping_after(polls, runtime) if runtime.rank == 1 else runtime
            return contributions(config.train, net, task, split, one, **ABOUT)

        first, second = in_two_threads(tmp_path, config, call)
        assert first.scores == second.scores
        assert list(first.scores) == [subset for subset in whole.scores if subset in first.scores]
        assert first.scores == pytest.approx({subset: whole.scores[subset] for subset in first.scores}, rel=1e-6)
        kept.add(len(first.scores))
    assert {0, 2, 8} <= kept


def test_what_was_scored_in_time_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that moves a second a poll: scores are those without a limit, to the bit, or not there."""
    config, net = tiny({"a": 3, "b": 5, "c": 2}, 4)
    shapes = {"a": (9, 6, 3), "b": (9, 2, 5), "c": (9, 2, 2)}
    split = TensorSplit({name: torch.randn(shape) for name, shape in shapes.items()}, torch.randint(4, (9,)))
    task = Classification(4)
    whole = contributions(config.train, net, task, split, LocalRuntime(tmp_path, config.run), **ABOUT)
    clock = itertools.count()
    monkeypatch.setattr(balance.time, "monotonic", lambda: float(next(clock)))
    kept = set()
    for seconds in (0, 5, 30, 60, 100, 200, 1000):
        found = contributions(
            config.train, net, task, split, LocalRuntime(tmp_path, config.run), seconds=seconds, **ABOUT
        )
        assert all(found.scores[subset] == whole.scores[subset] for subset in found.scores)
        assert set(found.missing) == set(whole.scores) - set(found.scores)
        assert (found.shapley == {}) == bool(found.missing)
        if found.scores:
            assert {frozenset(), frozenset("abc")} <= set(found.scores)
            found.save(tmp_path / BALANCE)
            assert Contributions.load(tmp_path / BALANCE) == found
        kept.add(len(found.scores))
    assert {0, 8} < kept


def test_a_worker_that_fails_fails_all(tmp_path: Path) -> None:
    config, net = tiny({"a": 3, "b": 5}, 4)
    split = TensorSplit({"a": torch.randn(9, 6, 3), "b": torch.randn(9, 2, 6)}, torch.randint(4, (9,)))
    with pytest.raises(TrainingError, match="the subsets of modalities were not scored: mat1 and mat2"):
        contributions(
            config.train, net, Classification(4), split, LocalRuntime(tmp_path, config.run), metric="loss", epoch=1
        )


def test_features_of_several_maps(tmp_path: Path) -> None:
    """Segmentation: an encoder gives two maps, and scores are by volume."""
    torch.manual_seed(0)
    names = ("flair", "t1")
    net = DeepLab(DeepLabConfig(backbone=ResNetConfig(blocks=(1, 1, 1, 1)), channels=16, low_channels=8), names, 4)
    split = TensorSplit({name: torch.randn(3, 1, 32, 32) for name in names}, torch.randint(4, (3, 32, 32)))
    config = Config(train=TrainConfig(batch_size=2), run=RunConfig(local=True, cpus_per_worker=1))
    task = Segmentation(by_slice=True)
    found = contributions(config.train, net, task, split, LocalRuntime(tmp_path, config.run), metric="loss", epoch=1)
    assert len(found.scores) == 4
    assert all(math.isfinite(score) for score in found.scores.values())
    assert len(set(found.scores.values())) == 4


def test_a_planted_modality_gets_the_largest_value(tmp_path: Path) -> None:
    sizes = {"train": 400, "valid": 150, "test": 40}
    pickle = write_pickle(tmp_path / "planted.pkl", planted_imbalance(5, samples=sizes, steps=4))
    flags = ["--batch_size", "20", "--num_epochs", "6", "--report", "true", "--name", "run"]
    places = ["--data_path", str(pickle), "--storage_path", str(tmp_path)]
    assert main(Config(), ["--local", *SMALL, *places, *flags]) == 0
    found = Contributions.load(tmp_path / "run" / BALANCE)
    assert (found.metric, found.better, found.split) == ("mae", "min", "valid")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert found.epoch == summary["best_epoch"]
    assert found.scores[frozenset(found.modalities)] == pytest.approx(summary["valid"]["mae"], rel=1e-6)
    assert max(found.shapley, key=lambda name: found.shapley[name]) == "text"
    assert found.shapley["text"] > 0
    assert found.imbalance > 0.3


def test_the_share_of_clipped_steps_is_recorded(tmp_path: Path) -> None:
    pickle = write_pickle(tmp_path / "small.pkl", small_set())
    places = ["--data_path", str(pickle), "--storage_path", str(tmp_path), "--name"]
    assert main(Config(), ["--local", *SMALL, *places, "stable"]) == 0
    shares = [line["clipped/text"] for line in read_metrics(tmp_path / "stable")]
    assert all(share is not None and 0 <= share <= 1 for share in shares)
    assert main(Config(), ["--local", *SMALL, *places, "paper", "--modulation", "cggm-paper"]) == 0
    assert "clipped/text" not in read_metrics(tmp_path / "paper")[0]


def test_which_steps_are_clipped() -> None:
    rule = COEFFICIENT_RULES["stable"](2, rho=1.0, smoothing=0.0, floor=0.01)
    seen = torch.ones(2, dtype=torch.bool)
    for step, clipped in (([0.5, 0.5], [False, False]), ([0.6, 0.4], [False, True]), ([0.6, 0.5], [False, False])):
        rule(torch.tensor(step, dtype=torch.float64), seen)
        assert rule.clipped_M is not None
        assert rule.clipped_M.tolist() == clipped
    paper = COEFFICIENT_RULES["paper"](2, rho=1.0)
    paper(torch.ones(2, dtype=torch.float64), seen)
    assert paper.clipped_M is None
