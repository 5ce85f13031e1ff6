"""Runs with standardised inputs: where the statistics come from, and that whatever follows training uses the stored ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from brats_files import write_challenge
from feature_sets import arrays, as_npz
from safetensors.torch import load_file
from sklearn.preprocessing import StandardScaler
from strategy_runs import last, lines, pipeline, with_gaps
from test_brats_run import small_backbone as small_backbone

from cggm_ray.commands.cli import main
from cggm_ray.commands.compare import compare
from cggm_ray.commands.export import export
from cggm_ray.commands.predict import predict
from cggm_ray.data.datasets.brats.brats import BratsOptions
from cggm_ray.data.datasets.features import FeatureOptions
from cggm_ray.data.settings import DataConfig
from cggm_ray.engine import inputs
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.inputs import STATISTICS, unequal_gradients
from cggm_ray.engine.settings import TrainConfig
from cggm_ray.engine.state import WEIGHTS
from cggm_ray.engine.tracking import LOG
from cggm_ray.models.standardise import InputConfig
from conftest import SMALL, tamper

ON = ("--standardise", "on", "--contributions_seconds", "0")
ROOT = Path(__file__).parents[2]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "best" / WEIGHTS)


def buffers(run: Path) -> dict[str, torch.Tensor]:
    return {name: value for name, value in weights(run).items() if name.startswith("inputs.")}


def table(path: Path) -> np.ndarray:
    import pyarrow.parquet as pq

    return np.array(pq.read_table(path).column("prediction").to_pylist())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline(tmp_path_factory.mktemp("standardised"), "run", *ON, epochs=2)


def test_a_run_keeps_the_moments_of_its_training_split(finished: Path) -> None:
    content = with_gaps()
    train, stored = content["part"] == "train", weights(finished)
    age = content["age"][train & content["age_present"]].astype(np.float32)
    np.testing.assert_allclose(stored["inputs.age.mean"], age.mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(1 / stored["inputs.age.scale"], age.std(0), rtol=1e-6)
    words = content["words"][train & content["words_present"]].reshape(-1, 3)
    np.testing.assert_allclose(stored["inputs.words.mean"][0], words.mean(0), rtol=1e-5, atol=1e-6)
    face = content["face"][train] / 255
    np.testing.assert_allclose(stored["inputs.face.mean"], [[face.mean()]], rtol=1e-6)
    np.testing.assert_allclose(1 / stored["inputs.face.scale"], [[face.std()]], rtol=1e-6)


def test_units_of_the_input_do_not_matter(finished: Path, tmp_path: Path) -> None:
    content = with_gaps()
    as_npz(tmp_path, content | {name: content[name] * 1000 + 1000 for name in ("words", "age")})
    other = pipeline(tmp_path, "run", *ON, epochs=2)
    expected = table(finished / "predictions.parquet")
    np.testing.assert_allclose(table(other / "predictions.parquet"), expected, atol=1e-3)
    raw = pipeline(tmp_path, "raw", "--contributions_seconds", "0", epochs=2)
    assert np.abs(table(raw / "predictions.parquet") - expected).max() > 1e-2


def test_a_resumed_run_uses_the_stored_ones(finished: Path, tmp_path: Path) -> None:
    part = pipeline(tmp_path, "run", *ON, epochs=1)
    (part / STATISTICS).unlink()
    whole = pipeline(tmp_path, "run", *ON, epochs=2)
    assert lines(whole) == lines(finished)
    other = pipeline(tmp_path, "other", *ON, epochs=1)
    tamper(last(other), WEIGHTS, lambda tensors: tensors["inputs.age.mean"].fill_(7))
    pipeline(tmp_path, "other", *ON, epochs=2)
    assert (load_file(last(other) / WEIGHTS)["inputs.age.mean"] == 7).all()


def test_new_data_is_standardised_as_the_training_split_was(finished: Path, tmp_path: Path) -> None:
    """A sample gets the same prediction alone as among others, so the new data has no say."""
    content = {name: values[:6] for name, values in with_gaps().items() if name not in ("label", "mark", "part")}
    as_npz(tmp_path, content)
    whole = table(predict(finished, tmp_path / "f.npz", None, tmp_path / "whole.parquet").path)
    as_npz(tmp_path, {name: values[2:3] for name, values in content.items()})
    alone = table(predict(finished, tmp_path / "f.npz", None, tmp_path / "alone.parquet").path)
    np.testing.assert_allclose(alone[0], whole[2], atol=1e-6)
    as_npz(tmp_path, content | {"age": content["age"] + 5})
    moved = table(predict(finished, tmp_path / "f.npz", None, tmp_path / "moved.parquet").path)
    assert np.abs(moved - whole).max() > 1e-3


def test_an_exported_program_holds_them(finished: Path, tmp_path: Path) -> None:
    program = torch.export.load(export(finished, tmp_path / "m.pt2").path)
    stored = weights(finished)
    for name, value in buffers(finished).items():
        assert torch.equal(program.state_dict[f"net.{name}"], stored[name]), name
        assert torch.equal(program.state_dict[f"net.{name}"], value)


def test_a_streamed_run_is_the_run_in_memory(tmp_path: Path) -> None:
    """600 samples of 16 x 16 pixels in single precision are more than one MiB, the smallest budget."""
    rng = np.random.default_rng(0)
    content = {
        "photo": rng.normal(3, 5, (1200, 16, 16)).astype(np.float32),
        "age": rng.normal(size=(1200, 4)),
        "label": np.arange(1200) % 3,
    }
    as_npz(tmp_path, content)
    config = Config(data=DataConfig(dataset="features"), options=FeatureOptions())
    found = []
    for budget in ("64", "1"):
        places = ["--local", "--data_path", str(tmp_path / "f.npz"), "--storage_path", str(tmp_path), "--name", budget]
        sizes = ["--num_epochs", "1", "--batch_size", "300", "--memory_budget", budget]
        assert main(config, [*SMALL, *places, *ON, *sizes]) == 0
        found.append(weights(tmp_path / budget))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_two_processes_have_the_values_of_one(finished: Path, tmp_path: Path) -> None:
    as_npz(tmp_path, with_gaps())
    flags = [
        "--data_path",
        str(tmp_path / "f.npz"),
        "--storage_path",
        str(tmp_path),
        "--name",
        "two",
        "--split",
        "part",
    ]
    flags += ["--modalities", "words,age,face", *SMALL, *ON, "--batch_size", "6", "--num_epochs", "1"]
    flags += ["--preset", "released"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    program = str(ROOT / "pipelines" / "features.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, program, *flags], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = buffers(tmp_path / "two")
    assert found.keys() == buffers(finished).keys()
    assert all(torch.equal(value, found[name]) for name, value in buffers(finished).items())


def test_outliers_are_clipped(tmp_path: Path) -> None:
    run = pipeline(tmp_path, "clipped", *ON, "--clip_inputs", "5", epochs=1)
    assert {name: float(weights(run)[f"inputs.{name}.limit"]) for name in ("words", "age", "face")} == {
        "words": 5,
        "age": 5,
        "face": 5,
    }


def test_a_run_without_it_is_as_it_was(tmp_path: Path) -> None:
    run = pipeline(tmp_path, "raw", "--contributions_seconds", "0", epochs=1)
    assert not buffers(run)
    assert not (run / STATISTICS).exists()
    assert not (tmp_path / "shards" / inputs.SHARED).exists()


def test_runs_of_a_comparison_read_the_split_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, real = [], inputs.training_statistics

    def counting(*arguments: object) -> object:
        calls.append(arguments)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(inputs, "training_statistics", counting)
    as_npz(tmp_path, with_gaps())
    config = Config(data=DataConfig(dataset="features"), options=FeatureOptions(split="part"))
    values = {"data_path": str(tmp_path / "f.npz"), "storage_path": str(tmp_path), "name": "seeds", "num_epochs": 1}
    small = {"nlevels": 3, "cls_layers": 1, "num_heads": 2, "proj_dim": 8, "batch_size": 10, "modulation": "none"}
    names = {"modalities": ["words", "age"], "local": True, "standardise": "on"}
    compare(config.replace({**values, **small, **names}), (), (1, 2))
    assert len(calls) == 1
    both = [buffers(tmp_path / "seeds" / "trials" / f"none-seed-{seed}") for seed in (1, 2)]
    assert all(torch.equal(value, both[1][name]) for name, value in both[0].items())


@pytest.mark.parametrize("damage", [b"", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_damaged_file_is_made_anew(tmp_path: Path, damage: bytes) -> None:
    run = pipeline(tmp_path, "run", *ON, epochs=1)
    good = (run / STATISTICS).read_bytes()
    (shared,) = (tmp_path / "shards" / inputs.SHARED).iterdir()
    for path in (shared, run / STATISTICS):
        path.write_bytes(damage)
    pipeline(tmp_path, "run", *ON, epochs=2)
    assert (run / STATISTICS).read_bytes() == shared.read_bytes() == good


def test_sets_that_only_their_maker_writes(finished: Path, tmp_path: Path) -> None:
    """A run keeps its own values where none can be kept beside the sets; a file stands in the way of the folder here."""
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / inputs.SHARED).touch()
    run = pipeline(tmp_path, "run", *ON, epochs=1)
    assert (run / STATISTICS).read_bytes() == (finished / STATISTICS).read_bytes()


@pytest.mark.usefixtures("small_backbone")
def test_scans_are_standardised_by_their_sequence(tmp_path: Path) -> None:
    config = Config(options=BratsOptions(crop=16)).replace({"dataset": "brats", "backbone": "resnet18"})
    places = ["--data_path", str(write_challenge(tmp_path / "raw")), "--storage_path", str(tmp_path), "--name", "scans"]
    flags = ["--local", "--num_epochs", "1", "--batch_size", "2", "--report", "false", "--modulation", "none"]
    assert main(config, [*places, *flags, "--standardise", "on"]) == 0
    found = buffers(tmp_path / "scans")
    assert {tuple(value.shape) for name, value in found.items() if name.endswith("mean")} == {(1, 1)}


def test_teachers_keep_their_own(tmp_path: Path) -> None:
    as_npz(tmp_path, arrays())
    one = ("--modulation", "none", "--modalities")
    pipeline(tmp_path, "teacher-age", *ON, *one, "age", epochs=1)
    pipeline(tmp_path, "teacher-words", "--contributions_seconds", "0", *one, "words", epochs=1)
    flags = ["--modulation", "umt", "--umt_teachers", "teacher-age,teacher-words", "--modalities", "words,age"]
    student = pipeline(tmp_path, "student", *flags, "--contributions_seconds", "0", epochs=1)
    assert not buffers(student)
    kept = load_file(last(student) / "training.safetensors")
    taught = {name: value for name, value in kept.items() if name.startswith("/strategy/teachers.inputs.")}
    assert {name.rsplit("/", 1)[1] for name in taught} == {
        f"teachers.inputs.age.{part}" for part in ("mean", "scale", "limit")
    }
    mean = kept["/strategy/teachers.inputs.age.mean"]
    assert torch.equal(mean, weights(tmp_path / "teacher-age")["inputs.age.mean"])


def test_gradients_of_very_different_size_are_said_once(tmp_path: Path) -> None:
    content = with_gaps()
    as_npz(tmp_path, content | {"age": content["age"] * 1e5})
    raw = pipeline(tmp_path, "raw", "--contributions_seconds", "0", "--modulation", "none", epochs=2)
    said = [line for line in (raw / LOG).read_text().splitlines() if "first gradient norms" in line]
    assert len(said) == 1
    assert "--standardise on" in said[0]
    assert all(name in said[0] for name in ("words ", "age ", "face "))


def test_when_gradients_are_of_very_different_size() -> None:
    off, on, names = InputConfig(), InputConfig(standardise="on"), ("a", "b", "c")
    assert unequal_gradients(off, names, torch.tensor([1.0, 0.1, 0.0])) is None
    assert unequal_gradients(off, names, torch.tensor([0.0, 0.0, 0.0])) is None
    assert unequal_gradients(on, names, torch.tensor([2.7, 0.016, 0.012])) == (
        "the first gradient norms of the encoders differ by more than 10 times: a 2.7, b 0.016, c 0.012"
    )
    line = unequal_gradients(off, names, torch.tensor([2.7, 0.016, 0.012]))
    assert line is not None
    assert line.endswith("; inputs in other units are a frequent cause, which --standardise on removes")


def test_every_step_of_a_sequence_is_standardised_inside_its_encoder(tmp_path: Path) -> None:
    """Statistics inside an encoder are those of scikit-learn on the flattened samples that have the modality."""
    random = np.random.default_rng(3)
    walk = random.normal(size=(60, 5, 3)).cumsum(1).astype(np.float32)
    there = random.random(60) < 0.7
    there[:3] = True
    label = random.integers(2, size=60)
    split = np.array(["train"] * 40 + ["valid"] * 10 + ["test"] * 10)
    raw = tmp_path / "walks.npz"
    np.savez(raw, walk=walk, walk_present=there, point=random.normal(size=(60, 4)), label=label, split=split)
    recipe = Config(data=DataConfig(dataset="features"), options=FeatureOptions(), train=TrainConfig(preset="quick"))
    flags = ["--local", "--data_path", str(raw), "--storage_path", str(tmp_path), "--name", "r", "--report", "false"]
    assert main(recipe, [*flags, "--num_epochs", "1", "--standardise", "on", "--encoders", "walk:mlp"]) == 0
    weights = load_file(tmp_path / "r" / "best" / "model.safetensors")
    kept = (split == "train") & there
    steps = StandardScaler().fit(walk[kept].reshape(-1, 3))
    flat = StandardScaler().fit(steps.transform(walk[kept].reshape(-1, 3)).clip(-5, 5).reshape(-1, 15))
    (mean,) = (value for name, value in weights.items() if name.startswith("encoders.walk") and name.endswith(".mean"))
    (scale,) = (
        value for name, value in weights.items() if name.startswith("encoders.walk") and name.endswith(".scale")
    )
    np.testing.assert_allclose(mean, flat.mean_, atol=1e-5)
    np.testing.assert_allclose(scale, 1 / flat.scale_, rtol=1e-4)
