"""What only the data can tell about a configuration is told before the conversion, and before Ray starts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from brats_files import write_released
from feature_sets import arrays, as_npz
from food101_files import write_set
from iemocap_layout import small_layout

from cggm_ray.commands.cli import main
from cggm_ray.data.dataset import DATASETS
from cggm_ray.data.datasets.brats.brats import BratsOptions
from cggm_ray.data.datasets.features import FeatureOptions
from cggm_ray.data.datasets.food101.food101_options import Food101Options
from cggm_ray.data.datasets.iemocap import IemocapOptions
from cggm_ray.data.prepare import raw_path
from cggm_ray.data.shards.shards import RawShard, Shard, Stage, open_set, write_shards_here
from cggm_ray.engine.assembly import prepare_data
from cggm_ray.engine.configuration import Config
from cggm_ray.models.settings import ModelConfig
from conftest import sets, small_set, write_pickle

TINY = ModelConfig(nlevels=3, cls_layers=1, num_heads=2, proj_dim=8)
RECIPES: dict[str, tuple[Callable[[Path], Path], Config]] = {
    "mosi": (lambda folder: write_pickle(folder / "mosi.pkl", small_set()), Config(model=TINY)),
    "food101": (lambda folder: write_set(folder / "food"), Config(model=TINY, options=Food101Options(text_length=6))),
    "iemocap": (lambda folder: small_layout(folder / "iemocap"), Config(model=TINY, options=IemocapOptions())),
    "features": (lambda folder: as_npz(folder, arrays()), Config(model=TINY, options=FeatureOptions())),
    "brats": (lambda folder: write_released(folder / "brats"), Config(options=BratsOptions(crop=16))),
}
FLAGS = {
    "--select acuracy": "select: no validation metric 'acuracy'",
    "--utility dise": "utility: {task} has no utility 'dise'",
    "--modalities {first},smel": "modalities: {name} has no 'smel'",
    "--encoder_lr 1e-4": "encoder_lr: no pretrained encoder is trained",
    "--modulation ogm --modalities {first}": "modulation: 'ogm' balances at least two modalities, found 1: {first}",
}
TASKS = {"mosi": "Regression", "brats": "Segmentation"}
FIRST = {"food101": "image", "brats": "flair", "features": "words"}
PRECISE = {"features": {"--modalities {first},smel": "modality 'smel' is missing"}}
"""Datasets that look for the modalities in the file say so in their own words."""


def recipe(name: str, folder: Path) -> Config:
    """The configuration of a small raw set."""
    write, config = RECIPES[name]
    return config.replace({"dataset": name, "data_path": write(folder), "storage_path": folder / "out", "name": "run"})


def never(stages: Sequence[Stage], raw: Sequence[RawShard], folder: Path) -> list[Shard]:
    raise AssertionError("the conversion started")


def refused(config: Config, flags: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of error, after checking the code and that there is neither a run nor a cluster."""
    capsys.readouterr()
    assert main(config, flags.split()) == 2
    said = capsys.readouterr()
    # The first lines of a run say where it is, and a dataset may say what it read; a conversion or a run would say more.
    assert all(line.startswith(("run: ", "  ", f"{config.data.dataset}: ")) for line in said.out.splitlines())
    (line,) = said.err.splitlines()
    assert not (config.run.storage / "run").exists()
    ray = sys.modules.get("ray")
    assert ray is None or not ray.is_initialized()
    return line


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("name", RECIPES)
def test_before_the_conversion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, flags: str
) -> None:
    from cggm_ray.distributed.train import launch

    monkeypatch.setattr("cggm_ray.commands.train.write_shards_here", never)
    monkeypatch.setattr(launch, "write_shards_with_ray", never)
    config = recipe(name, tmp_path)
    names = {"name": name, "task": TASKS.get(name, "Classification"), "first": FIRST.get(name, "text")}
    for place in ("", " --local"):
        line = refused(config, flags.format(**names) + place, capsys)
        assert PRECISE.get(name, {}).get(flags, FLAGS[flags].format(**names)) in line
    assert not sets(config.shard_root)


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("name", ["mosi", "food101"])
def test_against_a_set_that_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, flags: str) -> None:
    config = recipe(name, tmp_path)
    prepare_data(config, write_shards_here)
    names = {"name": name, "task": TASKS.get(name, "Classification"), "first": FIRST.get(name, "text")}
    assert FLAGS[flags].format(**names) in refused(config, flags.format(**names), capsys)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in RECIPES),
        ("food101", {"image_features": "online"}),
        ("food101", {"extract_precision": "bf16", "views": 2}),
    ],
)
def test_what_is_said_of_a_set_before_it_is_made_holds(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    config = recipe(name, tmp_path).replace(options)
    dataset = DATASETS.get(name)(config)
    paths = dataset.locate(raw_path(dataset))
    dataset.describe(paths)
    specs = dataset.specs(next(iter(dataset.read(paths))))
    manifest = open_set(prepare_data(config, write_shards_here))
    assert manifest is not None
    assert {column: specs[column] for column in manifest.modalities} == manifest.modalities
    assert [column for column in specs if column in manifest.modalities] == list(manifest.modalities)
    assert specs["target"] == manifest.target
