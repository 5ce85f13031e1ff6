"""Double precision: the weights are float64, and two workers differ from one in the last digits only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from feature_sets import arrays, as_npz
from groups import in_group
from safetensors.torch import load_file
from strategy_runs import lines, with_gaps

from cggm_ray.commands.cli import main
from cggm_ray.commands.predict import predict
from cggm_ray.commands.verify import verify
from cggm_ray.data.datasets.features import FeatureOptions
from cggm_ray.data.settings import DataConfig
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.state import WEIGHTS
from conftest import SMALL

NETWORKS = {
    "shaped": [
        *SMALL,
        *(text for part in ("attn", "relu", "embed", "res", "out") for text in (f"--{part}_dropout", "0")),
    ],
    "attention": ["--network", "composed", "--fusion", "attention", "--width", "16", "--dropout", "0"],
    "gated": ["--network", "composed", "--fusion", "gated", "--width", "16", "--dropout", "0"],
}


def train(folder: Path, name: str, network: str, *flags: str) -> Path:
    """A run of two epochs in double precision; its folder."""
    config = Config(data=DataConfig(dataset="features"), options=FeatureOptions(split="part"))
    places = ["--local", "--data_path", str(folder / "f.npz"), "--storage_path", str(folder), "--name", name]
    few = ["--batch_size", "6", "--num_epochs", "2", "--contributions_seconds", "0", "--report", "false"]
    named = [] if "--modalities" in flags else ["--modalities", "words,age,face"]
    assert main(config, [*places, *few, "--precision", "fp64", *NETWORKS[network], *named, *flags]) == 0
    return folder / name


def shared(rank: int, workers: int, folder: Path, network: str, flags: tuple[str, ...]) -> None:
    train(folder, "two", network, *flags)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return {name: value for name, value in load_file(run / "best" / WEIGHTS).items() if value.is_floating_point()}


@pytest.mark.parametrize(
    ("network", "more"),
    [("shaped", ()), ("attention", ("--standardise", "on")), ("gated", ("--modulation", "agm"))],
    ids=["shaped", "standardised", "agm"],
)
def test_two_workers_differ_from_one_in_the_last_digits(tmp_path: Path, network: str, more: tuple[str, ...]) -> None:
    as_npz(tmp_path, with_gaps())
    one = train(tmp_path, "one", network, *more)
    in_group(2, shared, tmp_path, network, more)
    two = weights(tmp_path / "two")
    assert set(two) == set(weights(one))
    for name, value in weights(one).items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(two[name], value, rtol=1e-9, atol=1e-11)
    for ours, theirs in zip(lines(one), lines(tmp_path / "two"), strict=True):
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-11)


def test_what_follows_training_computes_in_it(tmp_path: Path) -> None:
    as_npz(tmp_path, arrays())
    named = ("words", "age")
    alone = ("--modulation", "none", "--standardise", "on")
    teachers = [str(train(tmp_path, name, "shaped", *alone, "--modalities", name)) for name in named]
    more = ("--modulation", "umt", "--umt_teachers", ",".join(teachers), "--modalities", ",".join(named))
    run = train(tmp_path, "taught", "shaped", "--standardise", "on", *more)
    assert not verify(run).changed
    assert predict(run, tmp_path / "f.npz", None, tmp_path / "p.parquet").path.exists()
    assert all(value.dtype == torch.float64 for value in weights(run).values())
