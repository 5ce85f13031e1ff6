"""Diagnosing and Re-learning against its formulas and scikit-learn's clusters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from strategy_cases import Concatenation, lines
from strategy_runs import assert_resumes, assert_workers_follow_one
from torch import nn

from cggm_ray import Classification
from cggm_ray.core.batch import Batch
from cggm_ray.models.net import MultimodalNet
from cggm_ray.strategies.clusters import purity
from cggm_ray.strategies.relearning import ReLearning

FLAGS = ["--modulation", "relearning", "--relearning_every", "1"]


def blobs(seed: int, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    target = torch.randint(4, (80,), generator=draw)
    centres = torch.tensor([[0.0, 0, 9], [6, 1, 0], [0, 8, 3], [7, 7, 7]]).double()
    return centres[target] + spread * torch.randn(80, 3, generator=draw).double(), target


@pytest.mark.parametrize("spread", [0.5, 2.5, 3.0])
def test_purity_is_that_of_the_clusters_of_scikit_learn(spread: float) -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    scale = pytest.importorskip("sklearn.preprocessing").MinMaxScaler((-1, 1))
    features, target = blobs(1, spread)
    found = cluster.KMeans(4, n_init=10, random_state=0).fit_predict(scale.fit_transform(features.numpy()))
    want = sum(np.bincount(target.numpy()[found == k]).max() for k in range(4)) / 80
    assert purity(features, target, 4) == pytest.approx(want, abs=0.02)
    assert want < 1 or spread < 1


def test_purity_of_what_cannot_be_clustered() -> None:
    target = torch.tensor([0, 1, 1])
    assert purity(torch.zeros(3, 2), target, 4) == pytest.approx(2 / 3)
    assert np.isnan(purity(torch.full((3, 2), torch.nan), target, 4))
    assert np.isnan(purity(torch.zeros(0, 2), target[:0], 4))


class Shift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.by


def test_encoders_go_back_by_the_gap() -> None:
    net = MultimodalNet({"a": Shift(), "b": Shift()}, Concatenation(), nn.Linear(6, 4))
    balance = ReLearning(dict(net.encoders.items()), task=Classification(4), every=2, times=2)
    sharp, blurred = blobs(1, 0.3), blobs(2, 6.0)
    for encoder in net.encoders.values():
        encoder.by.data.fill_(3.0)
    measured = {}
    for split, (features_a, target) in {"train": sharp, "valid": (blobs(1, 6.0)[0], sharp[1])}.items():
        inputs = {"a": features_a, "b": sharp[0]}
        present = {"a": torch.ones(80, dtype=torch.bool), "b": torch.arange(80) > 3}
        batch = Batch(inputs=inputs, target=target, index=torch.arange(80), present=present)
        measured[split] = balance.measure(net.encode(batch), batch)
    assert [epoch for epoch in range(12) if balance.measures(epoch)] == [3, 5]
    balance.begin_epoch(3, measured)
    gap = purity(*sharp, 4) - purity(blobs(1, 6.0)[0], sharp[1], 4)
    strength = np.tanh(3 * gap)
    assert strength > 0.3
    assert net.encoders["a"].by.tolist() == pytest.approx([strength * 1 + (1 - strength) * 3] * 3)
    # The features of the other modality are the same in both splits.
    assert net.encoders["b"].by.tolist() == [3.0] * 3
    assert balance.reset_M.tolist() == pytest.approx([strength, 0])
    before = net.encoders["a"].by.clone()
    balance.begin_epoch(4, {})
    assert torch.equal(net.encoders["a"].by, before)
    # What cannot be measured resets nothing.
    balance.begin_epoch(5, {name: torch.full_like(values, torch.nan) for name, values in measured.items()})
    assert torch.equal(net.encoders["a"].by, before)
    assert len(blurred[1]) == 80


@pytest.mark.slow
def test_two_workers_follow_one(tmp_path: Path) -> None:
    one = assert_workers_follow_one(tmp_path, {"modulation": "relearning"})
    assert float(one["parameters"]["strategy.reset_M"].max()) > 0


def test_resume(tmp_path: Path) -> None:
    whole = assert_resumes(tmp_path, *FLAGS)
    assert any(line["reset/words"] for line in lines(whole))
