"""What is done with a finished run: predictions for other data, and an exported program."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import nibabel
import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
import torch
from brats_files import configured, write_challenge, write_released
from safetensors.torch import load_file
from torch import nn

from cggm_ray.__main__ import main as command
from cggm_ray.commands.cli import main
from cggm_ray.commands.export import Inference, exported
from cggm_ray.commands.onnx_model import write_onnx
from cggm_ray.core.batch import Batch
from cggm_ray.core.errors import TrainingError
from cggm_ray.data.datasets.brats.brats import BratsOptions, open_maps
from cggm_ray.data.datasets.features import FeatureOptions
from cggm_ray.data.loading.sampler import slices
from cggm_ray.data.maps import MapPlan
from cggm_ray.data.settings import DataConfig
from cggm_ray.data.shards.opening import open_manifest
from cggm_ray.data.shards.shards import column_values, write_shards_here
from cggm_ray.engine.assembly import build_dataset, prepare_data
from cggm_ray.engine.configuration import Config
from cggm_ray.runs.finished import open_finished
from conftest import SMALL, small_set, tamper, write_pickle


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("storage")
    pickled = write_pickle(folder / "small.pkl", small_set())
    places = ["--data_path", str(pickled), "--storage_path", str(folder), "--name", "run"]
    assert main(Config(), ["--local", *SMALL, *places]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on modalities of three kinds, of which samples lack some."""
    folder = tmp_path_factory.mktemp("classes")
    recipe = Config(data=DataConfig(dataset="features"), options=FeatureOptions())
    argv = ["--local", *SMALL, "--storage_path", str(folder), "--name", "run", "--num_epochs", "1"]
    assert main(recipe, argv) == 0
    return folder / "run"


def columns(path: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(path)
    return {name: column_values(table.column(name)) for name in table.column_names if name != "id"}


def test_the_test_split_is_predicted_as_at_the_end_of_the_run(run: Path, tmp_path: Path) -> None:
    assert command(["predict", str(run), "--out", str(tmp_path / "p.parquet")]) == 0
    ours, theirs = columns(tmp_path / "p.parquet"), columns(run / "predictions.parquet")
    assert all(np.array_equal(ours[name], theirs[name]) for name in ("index", "target", "prediction"))


def test_other_data_is_predicted_by_the_network(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against the network, built and called by hand."""
    content = small_set(seed=8)
    other = write_pickle(tmp_path / "other.pkl", content)
    capsys.readouterr()
    assert command(["predict", str(run), "--data_path", str(other), "--split", "valid"]) == 0
    printed = capsys.readouterr().out.splitlines()
    path = run / "predictions-valid-other.parquet"
    assert printed[-1] == str(path)
    found = columns(path)
    net = open_finished(run).net
    inputs = {name: torch.from_numpy(content["valid"][name]).float() for name in net.encoders}
    with torch.no_grad():
        wanted = net(inputs)[:, 0].numpy()
    assert np.allclose(found["prediction"], wanted, atol=1e-6)
    assert np.allclose(found["target"], content["valid"]["labels"].ravel())
    mae = float(np.abs(wanted - found["target"]).mean())
    assert f"{mae:.4f}" in next(line for line in printed if line.startswith("mae"))


@pytest.mark.ray
def test_ray_predicts_the_same_numbers(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    other = write_pickle(tmp_path / "other.pkl", small_set(seed=9))
    argv = ["predict", str(run), "--data_path", str(other), "--split", "train", "--out"]
    # On Ray first, so that it converts the data too.
    assert command([*argv, str(tmp_path / "ray.parquet"), "--workers", "2"]) == 0
    assert command([*argv, str(tmp_path / "here.parquet")]) == 0
    ours, theirs = columns(tmp_path / "ray.parquet"), columns(tmp_path / "here.parquet")
    assert len(ours["index"]) == 22
    for name in ("index", "target"):
        assert np.array_equal(ours[name], theirs[name])
    assert np.allclose(ours["prediction"], theirs["prediction"], rtol=1e-6, atol=1e-7)


def test_other_features_or_no_data_are_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = small_set()
    for part in content.values():
        part["audio"] = part["audio"][:, :, :-1]
    narrow = write_pickle(tmp_path / "narrow.pkl", content)
    capsys.readouterr()
    assert command(["predict", str(run), "--data_path", str(narrow)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "modality audio: samples of shape (4, 15); the run was trained on samples of shape (4, 16)" in line
    assert command(["predict", str(run), "--data_path", str(tmp_path / "nothing.pkl")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert command(["predict", str(tmp_path)]) == 2
    assert "expected the folder of a finished run" in capsys.readouterr().err
    assert command(["predict", str(run), "--workers", "0"]) == 2
    assert "workers: found 0" in capsys.readouterr().err


def test_classes_are_those_of_the_run(classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = next((classes.parent / "demonstration").glob("features-*.npz"))
    content = dict(np.load(source, allow_pickle=False))
    labels = content["label"]
    first = np.unique(labels)[0]
    kept = labels != first
    few = {name: values[kept] if len(values) == len(labels) else values for name, values in content.items()}
    np.savez(tmp_path / "few.npz", **few)
    assert command(["predict", str(classes), "--data_path", str(tmp_path / "few.npz"), "--split", "train"]) == 0
    found = columns(classes / "predictions-train-few.parquet")
    # Without the first class the others keep their numbers.
    assert found["target"].min() == 1
    assert found["prediction"].shape[1] == len(np.unique(labels))
    few["label"] = np.where(few["label"] == np.unique(labels)[1], "unheard of", few["label"].astype(str))
    np.savez(tmp_path / "others.npz", **few)
    capsys.readouterr()
    assert command(["predict", str(classes), "--data_path", str(tmp_path / "others.npz")]) == 2
    assert "is none of the" in capsys.readouterr().err


def test_the_exported_program_runs_by_itself(run: Path, tmp_path: Path) -> None:
    """In a process that knows nothing of this package, for a number of samples that it has not seen."""
    path = tmp_path / "model.pt2"
    assert command(["export", str(run), "--out", str(path)]) == 0
    net = open_finished(run).net
    content = small_set(seed=4)["train"]
    inputs = {name: torch.from_numpy(content[name]).float() for name in net.encoders}
    torch.save(inputs, tmp_path / "inputs.pt")
    script = (
        "import sys, torch\n"
        f"inputs = torch.load({str(tmp_path / 'inputs.pt')!r})\n"
        f"torch.save(torch.export.load({str(path)!r}).module()(inputs), {str(tmp_path / 'outputs.pt')!r})\n"
        "assert not [name for name in sys.modules if name.startswith('cggm_ray')]\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    with torch.no_grad():
        wanted = net(inputs)
    assert torch.allclose(torch.load(tmp_path / "outputs.pt"), wanted, rtol=1e-5, atol=1e-6)
    program = torch.export.load(path)
    weights = load_file(run / "best" / "model.safetensors")
    assert {name.removeprefix("net.") for name in program.state_dict if "table_TD" not in name} == set(weights)


def test_masks_are_part_of_the_program(classes: Path) -> None:
    assert command(["export", str(classes)]) == 0
    found = open_finished(classes, gpu=False)
    (batch,) = found.split("test").batches([_all(len(found.split("test")))], epoch=0)
    assert batch.masks is not None
    program = torch.export.load(classes / "model.pt2").module()
    with torch.no_grad():
        wanted = found.net(batch.inputs, batch.masks)
        assert torch.allclose(program(batch.inputs, batch.masks), wanted, rtol=1e-5, atol=1e-6)
        absent = {name: torch.zeros_like(mask) for name, mask in batch.masks.items()}
        assert not torch.allclose(program(batch.inputs, absent), wanted)


def test_an_onnx_model_runs_without_torch(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    assert command(["export", str(run), "--out", str(path)]) == 0
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    content = small_set(seed=4)["train"]
    net = open_finished(run, gpu=False).net
    inputs = {name: content[name].astype(np.float32) for name in net.encoders}
    np.savez(tmp_path / "inputs.npz", **inputs)
    script = (
        "import sys, numpy, onnxruntime\n"
        f"model = onnxruntime.InferenceSession({str(path)!r})\n"
        f"(logits,) = model.run(['logits'], dict(numpy.load({str(tmp_path / 'inputs.npz')!r})))\n"
        f"numpy.save({str(tmp_path / 'logits.npy')!r}, logits)\n"
        "assert not [name for name in sys.modules if name.startswith(('cggm_ray', 'torch'))]\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    with torch.no_grad():
        wanted = net({name: torch.from_numpy(values) for name, values in inputs.items()})
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_masks_are_inputs_of_the_onnx_model(classes: Path) -> None:
    assert command(["export", str(classes), "--format", "onnx"]) == 0
    model = onnxruntime.InferenceSession(classes / "model.onnx")
    found = open_finished(classes, gpu=False)
    (batch,) = found.split("test").batches([_all(len(found.split("test")))], epoch=0)
    masks = batch.masks or {}
    assert {each.name for each in model.get_inputs()} == {*batch.inputs, *(f"mask_{name}" for name in masks)}
    for there in (masks, {name: torch.zeros_like(mask) for name, mask in masks.items()}):
        given = batch.inputs | {f"mask_{name}": mask for name, mask in there.items()}
        (logits,) = model.run(["logits"], {name: tensor.numpy() for name, tensor in given.items()})
        with torch.no_grad():
            np.testing.assert_allclose(logits, found.net(batch.inputs, there), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["brats", "food101", "iemocap", "mosi", "table"])
def test_the_network_of_every_recipe_is_an_onnx_model(recipe: str, tmp_path: Path) -> None:
    small = ["--backbone", "resnet18", "--crop", "32", "--batch_size", "8"] if recipe == "brats" else []
    places = ["--storage_path", str(tmp_path), "--name", "run", "--num_epochs", "1", "--report", "false"]
    assert command(["train", recipe, "--local", *places, *small]) == 0
    assert command(["export", str(tmp_path / "run"), "--format", "onnx"]) == 0


class Sorting(nn.Module):
    """Does what ONNX has no operator for."""

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.linalg.eigvals(inputs["a"][:, :, None] * inputs["a"][:, None]).real


def test_a_network_that_onnx_cannot_hold(tmp_path: Path) -> None:
    batch = Batch.of_loop(torch.zeros(2), inputs={"a": torch.randn(2, 3)})
    with pytest.raises(TrainingError, match="the network cannot be exported as ONNX: ") as error:
        write_onnx(Sorting(), batch, tmp_path / "m.onnx")
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_segmentation_is_exported_and_predicts_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Config(data=DataConfig(dataset="brats"), options=BratsOptions(overlays=1)).replace(
        {"backbone": "resnet18"}
    )
    argv = ["--local", "--storage_path", str(tmp_path), "--name", "run", "--num_epochs", "1", "--crop", "32"]
    assert main(recipe, [*argv, "--batch_size", "8", "--cpus_per_worker", "1", "--report", "false"]) == 0
    assert command(["export", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert command(["predict", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert f"{summary['test']['dice_mean']:.4f}" in capsys.readouterr().out
    folder = tmp_path / "run" / "predictions-test-demonstration"
    raw = {path.stem: path for path in (tmp_path / "demonstration").rglob("test/*.h5")}
    assert {path.name for path in folder.glob("*.nii.gz")} == {f"{case}_seg.nii.gz" for case in raw}
    assert command(["predict", str(tmp_path / "run"), "--out", str(tmp_path / "run" / "best")]) == 2
    assert "is a folder that is there already" in capsys.readouterr().err
    assert command(["predict", str(tmp_path / "run"), "--out", str(tmp_path / "run" / "summary.json")]) == 2
    assert "is a file; expected a new folder" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["released", "challenge"])
def test_a_perfect_prediction_is_the_raw_segmentation(layout: str, tmp_path: Path) -> None:
    """The truth as logits goes through slices, frame and file, and comes out as it was, in its place."""
    raw = (write_released if layout == "released" else write_challenge)(tmp_path / "data")
    config = configured(tmp_path, raw)
    shards = prepare_data(config, write_shards_here)
    dataset = build_dataset(config)
    out = tmp_path / "maps"
    out.mkdir()
    whole, maps = open_maps(
        MapPlan(
            dataset=dataset,
            shards=shards,
            manifest=open_manifest(shards),
            split="test",
            modalities=("flair", "t1ce", "t1", "t2"),
            device=torch.device("cpu"),
            out=out,
            sources=dataset.locate(raw),
        )
    )
    for batch in whole.batches(list(slices(torch.arange(len(whole)), 3, 0, 1)), epoch=0):
        maps.take(batch, nn.functional.one_hot(batch.target, 4).movedim(-1, 1).float())
    written = sorted(out.iterdir())
    assert written
    for path in written:
        case, image = path.name.removesuffix("_seg.nii.gz"), nibabel.load(path)
        labels = np.asarray(image.dataobj)
        assert labels.dtype == np.uint8
        if layout == "challenge":
            truth = nibabel.load(next(raw.rglob(f"{case}_seg.nii.gz")))
            assert np.array_equal(labels, np.asarray(truth.dataobj))
            assert np.array_equal(image.affine, truth.affine)
        else:
            with h5py.File(next(raw.rglob(f"test/{case}.h5"))) as file:
                assert np.array_equal(labels, file["label"][()])
        assert set(np.unique(labels)) >= {0, 1, 2}


def test_a_program_with_other_numbers_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(net: Inference, batch: object) -> torch.export.ExportedProgram:
        program = exported(net, batch)  # type: ignore[arg-type]
        with torch.no_grad():
            next(value for name, value in program.state_dict.items() if name.endswith("head.weight")).mul_(1.001)
        # The network shares its weights with the program that was made from it.
        return program

    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    monkeypatch.setattr(
        "cggm_ray.commands.export.exported", lambda net, batch: other(pickle.loads(pickle.dumps(net)), batch)
    )
    assert command(["export", str(copied)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "differs from the network by" in line
    assert not list(copied.glob("*.pt2"))


def test_a_damaged_checkpoint_is_not_exported(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    tamper(copied / "best", "model.safetensors", lambda weights: weights.pop("head.weight"))
    assert command(["export", str(copied)]) == 1
    assert "these weights cannot be used" in capsys.readouterr().err


def _all(samples: int) -> object:
    from cggm_ray.data.loading.sampler import Slice

    return Slice.whole(torch.arange(samples))
