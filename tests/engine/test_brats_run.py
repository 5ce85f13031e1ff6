"""BraTS runs from raw files to the test table, here and on Ray."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from brats_files import write_challenge
from PIL import Image

from cggm_ray.commands.cli import main
from cggm_ray.commands.train import run
from cggm_ray.core.errors import DataError, UsageError
from cggm_ray.data.datasets.brats.brats import DEMONSTRATION_CASES, DEMONSTRATION_SHAPE, BratsOptions
from cggm_ray.data.datasets.brats.volumes import SEQUENCES
from cggm_ray.data.settings import DataConfig
from cggm_ray.data.shards.shards import Manifest, open_set, write_shards_here
from cggm_ray.engine.assembly import build_dataset, build_network, prepare_data
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.evaluation import evaluate
from cggm_ray.engine.optim import OptimConfig
from cggm_ray.engine.runtime import LocalRuntime, RunConfig
from cggm_ray.engine.schedules import cosine_with_warmup
from cggm_ray.engine.settings import TrainConfig
from cggm_ray.models.deeplab import DeepLabOptions
from cggm_ray.models.resnet import BACKBONES, ResNetConfig
from cggm_ray.models.settings import ModelConfig
from cggm_ray.report.pictures.brats import COLOURS, coloured
from cggm_ray.tasks.metrics import TUMOUR_REGIONS
from conftest import sets

CPU = torch.device("cpu")


@pytest.fixture
def small_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is the real one, with fewer channels under the name resnet18."""
    monkeypatch.setitem(BACKBONES, "resnet18", ResNetConfig(blocks=(1, 1, 1, 1), bottleneck=False, width=4))


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    """Four training, one validation and two test cases of 16 x 20 pixels and 3 slices."""
    folder, random = tmp_path / "h5", np.random.default_rng(0)
    for number, split in enumerate([*["train"] * 4, "valid", "test", "test"]):
        label = np.zeros((16, 20, 3), np.uint8)
        label[4:10, 5:12, 1:] = random.choice([1, 2, 4], (6, 7, 2))
        image = random.normal(1, 0.1, (4, 16, 20, 3)) + label * np.array([0.5, 0.4, 0.3, 0.2])[:, None, None, None]
        (folder / split).mkdir(parents=True, exist_ok=True)
        with h5py.File(folder / split / f"case{number}.h5", "w") as file:
            file["image"], file["label"] = image.astype(np.float32), label
    return folder


def configured(tmp_path: Path, data: Path, **changes: object) -> Config:
    config = Config(
        data=DataConfig(dataset="brats", data_path=str(data), modalities=("flair", "t1ce")),
        optim=OptimConfig(optim="SGD", schedule="cosine", lr=0.05, final_lr=0.01, warmup_epochs=1, warmup_lr=0.001),
        train=TrainConfig(batch_size=3, num_epochs=3),
        run=RunConfig(storage_path=str(tmp_path / "runs"), name="run", local=True),
        options=BratsOptions(crop=16),
        networks={"deeplab": DeepLabOptions(backbone="resnet18")},
    )
    return config.replace(changes)


def epochs(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_from_h5_to_pictures(
    tmp_path: Path, cases: Path, small_backbone: None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(tmp_path, cases)
    result = run(config)
    assert result is not None
    assert {"dice_et", "dice_tc", "dice_wt", "dice_mean", "loss"} == set(result.test)
    assert all(np.isfinite(value) for value in result.test.values())
    # Two steps an epoch; the rate of an epoch's last step is that of the cosine.
    want = [cosine_with_warmup(step, 6, 2, peak=0.05, final=0.01, start=0.001) for step in (1, 3, 5)]
    assert [epoch["lr"] for epoch in epochs(result.folder)] == pytest.approx(want)
    for number in (5, 6):
        with Image.open(result.folder / "pictures" / f"case{number}.png") as picture:
            assert picture.size == (3 * 32, 16)
            truth = np.asarray(picture)[:, 32:64]
            assert (truth.std(-1) > 0).sum() == 6 * 7
    said = capsys.readouterr().out
    assert "pictures:" in said
    assert "test predictions:" not in said


def test_from_challenge_folders_to_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command of the pipeline, with its own recipe and a network of full width."""
    data = write_challenge(tmp_path / "challenge")
    # A crop of 32 and all four training cases: batch norm over a few values only would be unstable.
    flags = f"--data_path {data} --storage_path {tmp_path / 'runs'} --name run --local --cpus_per_worker 1 "
    flags += "--backbone resnet18 --crop 32 --batch_size 4 --num_epochs 2 --warmup_epochs 1"
    assert main(pipeline_recipe(), flags.split()) == 0
    said = capsys.readouterr().out
    folder = tmp_path / "runs" / "run"
    found = json.loads((folder / "summary.json").read_text())
    for split in ("valid", "test"):
        assert {"dice_et", "dice_tc", "dice_wt", "dice_mean", "loss"} == set(found[split])
        assert np.isfinite(list(found[split].values())).all()
    (row,) = (line for line in said.splitlines() if line.startswith("dice_mean"))
    assert row.split()[1:] == ["↑", *(f"{found[split]['dice_mean']:.4f}" for split in ("valid", "test"))]
    assert len(epochs(folder)) == 2
    assert ["pictures:", str(folder / "pictures")] in [line.split() for line in said.splitlines()]
    # A picture of 12 x 20 pixels, padded to multiples of 16, for the one test case of six.
    (picture,) = (folder / "pictures").glob("*.png")
    notes = json.loads((folder / "pictures" / "cases.json").read_text())
    assert set(notes["dice"][picture.stem]) == {"dice_et", "dice_tc", "dice_wt"}
    assert [name for name, _ in notes["legend"]] == ["necrotic core", "oedema", "enhancing tumour"]
    assert picture.stem in {path.name for path in data.iterdir()}
    with Image.open(picture) as image:
        assert image.size == (3 * 32, 16)


def test_a_run_that_broke_off_goes_on_as_if_it_had_not(
    tmp_path: Path, cases: Path, small_backbone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(configured(tmp_path, cases, name="whole"))
    report = LocalRuntime.report

    def break_off(self: LocalRuntime, record: dict[str, float], write: object) -> None:
        report(self, record, write)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    broken = configured(tmp_path, cases, name="broken")
    with monkeypatch.context() as patch:
        patch.setattr(LocalRuntime, "report", break_off)
        with pytest.raises(KeyboardInterrupt):
            run(broken)
    resumed = run(broken)
    assert whole is not None
    assert resumed is not None
    assert resumed.test == whole.test
    keys = ("lr", "train/loss", "valid/loss", "coefficient/flair")
    for key in keys:
        assert [e[key] for e in epochs(resumed.folder)] == [e[key] for e in epochs(whole.folder)]


def test_scores_of_volumes_do_not_depend_on_batches(tmp_path: Path, cases: Path, small_backbone: None) -> None:
    """The metrics of `evaluate`, by hand on whole volumes."""
    config = configured(tmp_path, cases)
    shards = prepare_data(config, write_shards_here)
    manifest = open_set(shards)
    assert isinstance(manifest, Manifest)
    dataset, names = build_dataset(config), ("flair", "t1ce")
    torch.manual_seed(6)
    net, _ = build_network(config, dataset, manifest, names)
    split, task = dataset.open_split(shards, manifest, "test", names, CPU), dataset.task(manifest)
    runtime = LocalRuntime(tmp_path, config.run)
    found = [evaluate(TrainConfig(batch_size=size), net, task, split, runtime) for size in (1, 4, 6)]
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-5)
    scores = []
    for number in (5, 6):
        with h5py.File(cases / "test" / f"case{number}.h5") as file:
            label = file["label"][:]
            image = np.pad(file["image"][:], [(0, 0), (0, 0), (6, 6), (0, 0)]).astype(np.float16).astype(np.float32)
        label = np.pad(np.where(label == 4, 3, label), [(0, 0), (6, 6), (0, 0)])
        inputs = {
            name: torch.from_numpy(np.moveaxis(image[SEQUENCES.index(name)], 2, 0))[:, None].contiguous()
            for name in names
        }
        with torch.no_grad():
            said = np.moveaxis(net(inputs).argmax(1).numpy(), 0, 2)
        for classes in TUMOUR_REGIONS.values():
            a, b = np.isin(said, classes), np.isin(label, classes)
            scores.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    want = np.array(scores).reshape(2, 3).mean(0)
    assert [found[0][f"dice_{name}"] for name in TUMOUR_REGIONS] == pytest.approx(want.tolist())
    assert 0 < want.max() < 1


def test_sizes_of_a_transformer_are_refused(tmp_path: Path, cases: Path) -> None:
    config = dataclasses.replace(configured(tmp_path, cases), model=ModelConfig(nlevels=4))
    with pytest.raises(UsageError, match="nlevels: the network 'deeplab' has no such size"):
        run(config)


def test_demonstration_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    dataset = build_dataset(configured(tmp_path, tmp_path))
    first, again = (dataset.demonstration(tmp_path / name, 7) for name in ("a", "b"))
    for split, number in DEMONSTRATION_CASES.items():
        files = sorted((first / split).glob("*.h5"))
        assert len(files) == number
        for path in files:
            with h5py.File(path) as one, h5py.File(again / split / path.name) as other:
                assert one["image"].shape == (4, *DEMONSTRATION_SHAPE)
                np.testing.assert_array_equal(one["image"][:], other["image"][:])
                assert set(np.unique(one["label"][:])) == {0, 1, 2, 4}
    assert dataset.demonstration(tmp_path / "a", 7) == first


def test_colours() -> None:
    grey, labels = np.array([[0.0, 1.0]]), np.array([[0, 2]])
    (plain, marked), (flat, _) = coloured(grey, labels)[0], coloured(np.ones((1, 2)), labels * 0)[0]
    assert plain.tolist() == [0, 0, 0]
    assert marked.tolist() == ((COLOURS[2] + 255) / 2).round().tolist()
    assert len(set(flat.tolist())) == 1


def pipeline_recipe() -> Config:
    path = Path(__file__).parents[2] / "pipelines" / "brats.py"
    spec = importlib.util.spec_from_file_location("brats_pipeline", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    recipe: Config = module.RECIPE
    return recipe


def test_recipe_is_that_of_the_released_code() -> None:
    recipe, steps = pipeline_recipe(), 5
    peak, final, start = recipe.optim.lr, recipe.optim.final_lr, recipe.optim.warmup_lr
    total, warmup = recipe.train.num_epochs * steps, recipe.optim.warmup_epochs * steps
    rates = [cosine_with_warmup(step, total, warmup, peak=peak, final=final, start=start) for step in range(total)]
    assert rates[0] == 4e-4
    assert rates[warmup - 1] == max(rates[:warmup]) == pytest.approx(1e-2)
    assert warmup == 10 * steps
    assert min(rates[warmup:]) == pytest.approx(1e-3, rel=0.01)
    assert (recipe.modulation.rho, recipe.modulation.lam, recipe.train.batch_size) == (1.0, 0.1, 64)
    assert (recipe.optim.cls_lr, recipe.optim.weight_decay, recipe.optim.clip) == (6e-3, 3e-4, 0)


@pytest.mark.slow
@pytest.mark.ray
def test_on_two_ray_workers(tmp_path: Path, cases: Path) -> None:
    config = configured(tmp_path, cases, num_epochs=1, workers="2", cpus_per_worker=1, batch_size=3, local=False)
    result = run(config)
    assert result is not None
    assert (result.folder / "pictures" / "case6.png").exists()
    assert np.isfinite(list(result.test.values())).all()
    assert epochs(result.folder)[0]["step"] == 2


@pytest.mark.ray
def test_bad_label_found_by_a_ray_task(tmp_path: Path, cases: Path) -> None:
    with h5py.File(cases / "train" / "case2.h5", "r+") as file:
        file["label"][0, 0, 0] = 9
    config = configured(tmp_path, cases, local=False)
    with pytest.raises(
        DataError, match=r"^\S*case2.h5: key label: label 9 is outside the classes; expected 0, 1, 2, 4 or"
    ):
        run(config)
    assert not sets(config.shard_root)
