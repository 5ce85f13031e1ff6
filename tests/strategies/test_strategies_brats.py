"""Every strategy on segmentation: features in two levels, batch normalisation, recomputed activations."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from strategy_cases import TIMES, Concatenation
from test_brats_run import cases, configured, epochs, small_backbone

from cggm_ray.commands.train import run
from cggm_ray.core.batch import HeadOutput
from cggm_ray.engine.configuration import Config
from cggm_ray.models.net import MultimodalNet
from cggm_ray.strategies.features import as_in_inference
from cggm_ray.strategies.registry import STRATEGIES
from cggm_ray.tasks import Segmentation

__all__ = ["cases", "small_backbone"]
"""Fixtures of another file."""

NAMES = [name for name in STRATEGIES.names() if STRATEGIES.get(name).serves(Segmentation())]


def with_teachers(config: Config) -> Config:
    for name in ("flair", "t1ce"):
        alone = config.replace({"modalities": [name], "modulation": "none", "name": f"teacher-{name}", "num_epochs": 1})
        run(alone)
    return config.replace({"umt_teachers": ["teacher-flair", "teacher-t1ce"]})


NEEDED = {"umt": with_teachers, "mslr": lambda config: config.replace({"mslr_lrs": ["1e-2", "2e-2"]})}


@pytest.mark.parametrize("name", NAMES)
def test_a_run(tmp_path: Path, cases: Path, small_backbone: None, name: str) -> None:
    config = configured(tmp_path, cases, modulation=name, num_epochs=2)
    config = NEEDED[name](config) if name in NEEDED else config
    result = run(dataclasses.replace(config, run=dataclasses.replace(config.run, name="run")))
    assert result is not None
    assert all(math.isfinite(value) for value in result.test.values())
    records = epochs(result.folder)
    assert len(records) == 2
    assert all(math.isfinite(value) for record in records for value in record.values())


def test_activations_computed_again_change_nothing(tmp_path: Path, cases: Path, small_backbone: None) -> None:
    """Three backward passes through the encoders of a step, each from activations that are computed again."""
    found = []
    for recompute in (False, True):
        config = configured(tmp_path, cases, modulation="mmpareto", num_epochs=2, recompute=recompute)
        config = config.replace({"name": f"recompute-{recompute}", "deterministic": True})
        result = run(config)
        assert result is not None
        found.append(epochs(result.folder))
    for one, other in zip(*found, strict=True):
        assert {k: v for k, v in one.items() if k not in TIMES} == pytest.approx(
            {k: v for k, v in other.items() if k not in TIMES}, rel=1e-4, abs=1e-6
        )


def test_asking_the_fusion_moves_no_statistics_and_no_random_number() -> None:
    net = MultimodalNet({"a": torch.nn.Identity(), "b": torch.nn.Identity()}, Fusion(), torch.nn.Linear(8, 2))
    net.train()
    net.fusion.frozen.eval()
    features = {name: torch.randn(6, 4) for name in "ab"}
    before = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.get_rng_state()
    said: HeadOutput = as_in_inference(net)(features)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.fusion.norm.training
    assert not net.fusion.frozen.training
    assert torch.equal(said.logits, net.eval().fuse(features).logits)


class Fusion(Concatenation):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dropout, self.frozen = torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5), torch.nn.Dropout(0.5)

    def forward(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.frozen(self.dropout(self.norm(super().forward(features))))
