"""Encoders of transformers that are trained with the rest of the network, against transformers itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tables import converted, products, small_bert, small_vit, table_config, with_photos

import cggm_ray
from cggm_ray.commands.train import run
from cggm_ray.core.errors import UsageError
from cggm_ray.engine.assembly import build_dataset, build_network
from cggm_ray.engine.configuration import Config
from cggm_ray.runs.result import read_summary


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table, photos and two small random models."""
    folder, frame = tmp_path_factory.mktemp("finetuned"), products(48)
    with_photos(folder, frame)
    frame.to_csv(folder / "t.csv", index=False)
    small_bert(folder / "bert")
    small_vit(folder / "vit")
    return folder


def settings(data: Path, out: Path, *, name: str = "run", trained: tuple[str, ...] = (), **changes: object) -> Config:
    models = {"text_model": str(data / "bert"), "image_model": str(data / "vit"), "text_length": 10}
    values = {"name": name, "standardise": "on", "max_steps": None, "num_epochs": 2}
    if trained:
        values["encoder_lr"] = 0.01
    # The rate of the quick preset follows the length of the run.
    values |= {"valid_interval": None, "schedule": "plateau", "warmup_share": 0.0} | changes
    return table_config(out, data / "t.csv", changes=values, **models, train_encoders=trained)


def test_they_begin_as_the_frozen_ones(data: Path, tmp_path: Path) -> None:
    """The states of both modules are the features that frozen encoders leave in shards."""
    _, frozen = converted(settings(data, tmp_path))
    both = settings(data, tmp_path, trained=("text", "image"))
    manifest, splits = converted(both)
    dataset, names = build_dataset(both), ("title", "tab", "photo")
    net, _ = build_network(both, dataset, manifest, names, dataset.task(manifest))
    batch = splits["train"]
    assert set(net.inputs) == {"tab"}
    for name, tolerance in (("title", 1e-4), ("photo", 1e-2)):
        encoder, mask = net.encoders[name].eval(), batch.masks.get(name)
        with torch.no_grad():
            values = batch.inputs[name]
            states = encoder.model(values.float() if name == "photo" else values, mask)
        there = torch.ones(states.shape[:2], dtype=torch.bool) if mask is None else mask.expand(states.shape[:2])
        wanted = frozen["train"].inputs[name].float()
        torch.testing.assert_close(states[there], wanted[there], atol=tolerance, rtol=tolerance)
        assert dataset.shapes(manifest, names)[name] == wanted.shape[1:]


def test_they_move_and_a_run_goes_on(data: Path, tmp_path: Path) -> None:
    """Two epochs at once, and one and one, give the same network, in which both models have moved."""
    from transformers import AutoModel

    whole = run(settings(data, tmp_path, name="whole", trained=("text", "image")))
    run(settings(data, tmp_path, name="parts", trained=("text", "image"), num_epochs=1))
    parts = run(settings(data, tmp_path, name="parts", trained=("text", "image"), allow_config_change=True))
    assert whole is not None
    assert parts is not None
    assert whole.test == parts.test
    weights = load_file(whole.folder / "best" / "model.safetensors")
    for name, model in (("title", "bert"), ("photo", "vit")):
        before = AutoModel.from_pretrained(data / model).state_dict()
        found = {key: weights[f"encoders.{name}.model.model.{key}"] for key in before}
        moved = [key for key in before if not torch.equal(found[key], before[key])]
        assert len(moved) > len(before) / 2
        assert all(torch.isfinite(value).all() for value in found.values())


def test_new_rows_and_a_folder_that_is_gone(data: Path, tmp_path: Path) -> None:
    """The network is filled from the checkpoint; new rows still need tokenizer and processor."""
    mine = shutil.copytree(data, tmp_path / "mine")
    result = run(settings(mine, tmp_path, trained=("text",)))
    assert result is not None
    loaded = cggm_ray.load(result.folder)
    whole = loaded.predict(mine / "t.csv")
    assert np.isfinite(np.stack(whole["prediction"])).all()
    assert loaded.verify().equal
    assert read_summary(result.folder).test == result.test


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"trained": ("audio",)}, "train_encoders: found 'audio'; expected text or image"),
        ({"trained": ("text",), "network": "shaped"}, "network: 'shaped' trains no encoders of --train_encoders"),
    ],
)
def test_what_is_refused(data: Path, tmp_path: Path, changes: dict[str, object], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        run(settings(data, tmp_path, **changes))
    with pytest.raises(UsageError, match="text has no encoder; expected --text_model"):
        table_config(tmp_path, data / "t.csv", train_encoders=("text",))
