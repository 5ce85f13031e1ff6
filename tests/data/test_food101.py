"""Food-101 from the raw layout to a tested checkpoint, and every input that must be refused."""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from food101_files import CLASSES, configuration, edit, reference_features, save_vit, with_options, write_set
from safetensors import safe_open

from cggm_ray.commands.train import run
from cggm_ray.core.errors import DataError, UsageError
from cggm_ray.data.loading.sampler import epoch_order, slices
from cggm_ray.data.shards.shards import open_set, write_shards_here
from cggm_ray.engine.assembly import build_dataset, prepare_data
from cggm_ray.engine.state import WEIGHTS
from conftest import sets

DATA = Path(os.environ.get("CGGM_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("source") / "set")


@pytest.fixture
def raw(source: Path, tmp_path: Path) -> Path:
    """A set of the test's own, to spoil."""
    return Path(shutil.copytree(source, tmp_path / "set"))


def test_features_are_those_of_transformers(source: Path, tmp_path: Path) -> None:
    config = configuration(source, tmp_path)
    folder = prepare_data(config, write_shards_here)
    manifest = open_set(folder)
    assert manifest is not None
    assert list(manifest.modalities) == ["image", "text"]
    assert manifest.notes["classes"] == sorted(CLASSES)
    split = build_dataset(config, "food101").open_split(
        folder, manifest, "test", ("image", "text"), torch.device("cpu")
    )
    (batch,) = split.batches(slices(torch.arange(len(split)), 100, 0, 1), 0)
    images, texts = reference_features(source)
    np.testing.assert_allclose(batch.inputs["image"].numpy(), images, atol=1e-5)
    np.testing.assert_allclose(batch.inputs["text"].numpy(), texts, atol=1e-5)
    assert split.names == [record["id"] for record in json.loads((source / "test.json").read_text())]
    assert [sorted(CLASSES)[number] for number in batch.target.tolist()] == [CLASSES[n % 3] for n in range(6)]


def test_padding_of_texts_can_be_zero(source: Path, tmp_path: Path) -> None:
    config = configuration(source, tmp_path, text_padding="zero")
    folder = prepare_data(config, write_shards_here)
    manifest = open_set(folder)
    assert manifest is not None
    split = build_dataset(config, "food101").open_split(folder, manifest, "test", ("text",), torch.device("cpu"))
    (batch,) = split.batches(slices(torch.arange(2), 2, 0, 1), 0)
    _, texts = reference_features(source)
    # [CLS] pie [SEP], and [CLS] hot soup [SEP].
    for sample, pieces in enumerate((3, 4)):
        np.testing.assert_allclose(batch.inputs["text"][sample, :pieces].numpy(), texts[sample, :pieces], atol=1e-5)
        assert not batch.inputs["text"][sample, pieces:].any()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_close_and_half_the_size(source: Path, tmp_path: Path, precision: str) -> None:
    config = configuration(source, tmp_path, extract_precision=precision)
    folder = prepare_data(config, write_shards_here)
    manifest = open_set(folder)
    assert manifest is not None
    assert manifest.modalities["image"].dtype == "float16"
    split = build_dataset(config, "food101").open_split(folder, manifest, "test", ("image",), torch.device("cpu"))
    (batch,) = split.batches(slices(torch.arange(len(split)), 100, 0, 1), 0)
    assert batch.inputs["image"].dtype == torch.float32
    images, _ = reference_features(source)
    difference = np.abs(batch.inputs["image"].numpy() - images).max()
    assert 0 < difference < (0.1 if precision == "bf16" else 0.02)


def test_run_streamed_equals_run_in_memory(source: Path, tmp_path: Path) -> None:
    """Six views of [65, 64] features make a set of more than one MiB, the smallest budget."""
    vit = save_vit(tmp_path / "vit", image_size=64, hidden_size=64)
    results, kinds = [], []
    for budget in (64, 1):
        config = configuration(source, tmp_path / str(budget), memory_budget=budget, vit=str(vit), views=6)
        folder = prepare_data(config, write_shards_here)
        manifest = open_set(folder)
        assert manifest is not None
        split = build_dataset(config, "food101").open_split(folder, manifest, "train", ("image",), torch.device("cpu"))
        kinds.append(type(split).__name__)
        results.append(run(config))
    assert kinds == ["TensorSplit", "StreamSplit"]
    assert results[0].test == results[1].test
    assert results[0].valid == results[1].valid


def test_validation_is_a_stratified_part_of_train_unless_dev_is_there(source: Path, tmp_path: Path) -> None:
    manifest = open_set(prepare_data(configuration(source, tmp_path / "a", valid_share=0.34), write_shards_here))
    assert manifest is not None
    assert [manifest.rows(split) for split in ("train", "valid", "test")] == [12, 6, 6]
    folder = write_set(tmp_path / "with_dev", dev=3)
    manifest = open_set(prepare_data(configuration(folder, tmp_path / "b"), write_shards_here))
    assert manifest is not None
    assert [manifest.rows(split) for split in ("train", "valid", "test")] == [18, 3, 6]


def test_online_augments_anew_in_every_epoch_and_leaves_test_alone(source: Path, tmp_path: Path) -> None:
    config = configuration(source, tmp_path, image_features="online")
    folder = prepare_data(config, write_shards_here)
    manifest = open_set(folder)
    assert manifest is not None
    dataset = build_dataset(config, "food101")
    train, test = (
        dataset.open_split(folder, manifest, name, ("image", "text"), torch.device("cpu")) for name in ("train", "test")
    )

    def images(epoch: int, ranks: int) -> torch.Tensor:
        """By sample, however the batches fall on the workers."""
        result = torch.zeros(len(train), 5, 8)
        for rank in range(ranks):
            plan = list(slices(epoch_order(len(train), 0, epoch), 8, rank, ranks))
            for batch in train.batches(plan, epoch):
                result[batch.index] = batch.inputs["image"]
        return result

    torch.testing.assert_close(images(0, 1), images(0, 2))
    changed = (images(0, 1) - images(1, 1)).abs().amax((1, 2)) > 1e-3
    assert changed.float().mean() > 0.9
    (batch,) = test.batches(slices(torch.arange(len(test)), 100, 0, 1), 7)
    np.testing.assert_allclose(batch.inputs["image"].numpy(), reference_features(source)[0], atol=1e-5)
    assert run(config).test["loss"] > 0


def test_recipe_has_the_hyper_parameters_of_the_released_code() -> None:
    config = runpy.run_path(str(Path(__file__).parents[2] / "pipelines" / "food101.py"))["RECIPE"]
    flat = {key.name: getattr(config.sections()[section], key.name) for section, key in config.fields()}
    released = {
        "optim": "AdamW", "lr": 1e-3, "weight_decay": 6e-3, "cls_lr": 5e-4, "cls_weight_decay": 3e-3,
        "batch_size": 128, "num_epochs": 60, "clip": 0.8, "rho": 1.3, "lam": 0.05, "when": 10,
        "nlevels": 4, "cls_layers": 2, "proj_dim": 40, "num_heads": 5, "text_length": 50,
        "attn_dropout": 0.2, "relu_dropout": 0.15, "embed_dropout": 0.2, "res_dropout": 0.15, "out_dropout": 0.1,
    }  # fmt: skip
    assert {name: flat[name] for name in released} == released


def test_demonstration(tmp_path: Path) -> None:
    from cggm_ray.data.datasets.food101 import food101_demo

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(food101_demo, "SAMPLES", {"train": 60, "test": 12})
        config = configuration(None, tmp_path, text_length=20)
        result = run(config)
    assert set(result.test) >= {"accuracy", "unweighted_accuracy", "f1"}
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert "coefficient/image" in record
    assert "coefficient/text" in record


def test_one_modality_alone(source: Path, tmp_path: Path) -> None:
    config = configuration(source, tmp_path)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, modalities=("text",)),
        modulation=dataclasses.replace(config.modulation, modulation="none"),
    )
    assert run(config).test["loss"] > 0
    names = safe_open(tmp_path / "run" / "best" / WEIGHTS, "pt").keys()
    assert not [name for name in names if "image" in name]


def test_second_run_reuses_and_a_changed_image_rebuilds(raw: Path, tmp_path: Path) -> None:
    config = configuration(raw, tmp_path)
    first = prepare_data(config, write_shards_here)

    def never(*_: Any) -> Any:
        raise AssertionError("converted again")

    assert prepare_data(config, never) == first
    save = raw / "images" / "0.jpg"
    save.write_bytes((raw / "images" / "1.jpg").read_bytes())
    assert prepare_data(config, write_shards_here) != first


def _drop(key: str) -> Callable[[Path], None]:
    return lambda raw: edit(raw / "train.json", lambda content: content[4].pop(key) and None)


def _put(file: str, key: str, value: Any) -> Callable[[Path], None]:
    return lambda raw: edit(raw / file, lambda content: content[2].__setitem__(key, value))


BAD: dict[str, Callable[[Path], object]] = {
    "not a list": lambda raw: edit(raw / "test.json", lambda c: {"items": c}),
    "text in place of JSON": lambda raw: (raw / "train.json").write_text("[{"),
    "empty": lambda raw: (raw / "train.json").write_text("[]"),
    "no test": lambda raw: (raw / "test.json").unlink(),
    "number in place of a record": lambda raw: edit(raw / "train.json", lambda c: [*c, 3]),
    "label missing": _drop("label"),
    "image missing in record": _drop("img_path"),
    "numbers in place of a text": _put("train.json", "text_tokens", [101, 2003]),
    "id twice": _put("train.json", "id", "train0"),
    "unknown label": _put("test.json", "label", "stew"),
    "image missing": lambda raw: (raw / "images" / "3.jpg").unlink(),
    "unreadable image": lambda raw: (raw / "images" / "5.jpg").write_bytes(b"no image"),
    "cut image": lambda raw: (raw / "images" / "5.jpg").write_bytes((raw / "images" / "5.jpg").read_bytes()[:-200]),
    "tokenizer": lambda raw: (raw / "bert" / "vocab.txt").unlink(),
    "foreign tokenizer": lambda raw: (raw / "bert" / "vocab.txt").open("a").write("more\n") and None,
    "no weights": lambda raw: (raw / "vit" / "model.safetensors").unlink(),
    "damaged weights": lambda raw: (raw / "vit" / "model.safetensors").write_bytes(b"\0" * 100),
    "no bert": lambda raw: shutil.rmtree(raw / "bert"),
    "bert for vit": lambda raw: (shutil.rmtree(raw / "vit"), shutil.copytree(raw / "bert", raw / "vit")),
}


def test_weights_of_another_model_are_refused(raw: Path, tmp_path: Path) -> None:
    """The configuration says one layer more than the weights have: transformers would fill it at random."""
    edit(raw / "vit" / "config.json", lambda content: content.__setitem__("num_hidden_layers", 2))
    with pytest.raises(DataError, match=r"vit: the weights in .* lack"):
        prepare_data(configuration(raw, tmp_path / "out"), write_shards_here)


def test_skip_bad_allows_so_many_and_no_more(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (raw / "images" / "5.jpg").write_bytes(b"no image")
    (raw / "images" / "7.jpg").unlink()
    config = configuration(raw, tmp_path / "out", skip_bad=2)
    manifest = open_set(prepare_data(config, write_shards_here))
    assert manifest is not None
    assert manifest.rows("train") + manifest.rows("valid") == 16
    assert set(manifest.notes["skipped"]) == {"images/5.jpg", "images/7.jpg"}
    assert "left out (skip_bad 2): images/7.jpg: no such file" in capsys.readouterr().err
    for allowed in (0, 1):
        with pytest.raises(DataError, match=f"2 images cannot be read, skip_bad allows {allowed}"):
            prepare_data(with_options(config, skip_bad=allowed), write_shards_here)


def test_options_that_cannot_be(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="views: 2 views are for image_features cached"):
        configuration(source, tmp_path, image_features="online", views=2)
    with pytest.raises(UsageError, match="extract_precision: unknown 'fp8'"):
        configuration(source, tmp_path, extract_precision="fp8")
    with pytest.raises(DataError, match=r"text_length: 13 pieces; the BERT in .* takes 12"):
        prepare_data(configuration(source, tmp_path, text_length=13), write_shards_here)
    with pytest.raises(DataError, match=r"vit: \./nowhere: no such folder"):
        prepare_data(configuration(source, tmp_path, vit="./nowhere"), write_shards_here)


def test_full_disk_leaves_nothing(source: Path, tmp_path: Path) -> None:
    """The system refuses to write more than 2,000 bytes into a file: as on a full disk, the write itself fails."""
    resource = pytest.importorskip("resource")
    config = configuration(source, tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(DataError, match=r"train-00000\.parquet: cannot write the shard"):
            prepare_data(config, write_shards_here)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not sets(tmp_path / "shards")


def test_shard_folder_that_cannot_be_made(source: Path, tmp_path: Path) -> None:
    (tmp_path / "shards").write_text("a file")
    with pytest.raises(DataError, match="shards: cannot make the folder for shards"):
        prepare_data(configuration(source, tmp_path), write_shards_here)


@pytest.mark.ray
@pytest.mark.slow
def test_two_ray_workers_extract_and_train_as_one_process(source: Path, tmp_path: Path) -> None:
    here = configuration(source, tmp_path / "here", views=2)
    there = configuration(source, tmp_path / "there", views=2)
    there = dataclasses.replace(there, run=dataclasses.replace(there.run, local=False, workers="2", cpus_per_worker=1))
    expected, got = run(here), run(there)
    sets = [open_set(next(path.glob("shards/food101-*"))) for path in (tmp_path / "here", tmp_path / "there")]
    assert sets[0] is not None
    assert sets[0] == sets[1]
    assert got.best_epoch == expected.best_epoch
    assert got.test == pytest.approx(expected.test, abs=1e-4)


@pytest.mark.ray
def test_error_of_an_actor_reaches_the_driver_as_one_line(raw: Path, tmp_path: Path) -> None:
    from cggm_ray.distributed.data.ingest import write_shards_with_ray

    edit(raw / "vit" / "config.json", lambda content: content.__setitem__("num_hidden_layers", 2))
    with pytest.raises(DataError, match=r"vit: the weights in .* lack 16 parameters") as caught:
        prepare_data(configuration(raw, tmp_path / "out"), write_shards_with_ray)
    assert "\n" not in str(caught.value)
    assert not sets(tmp_path / "out" / "shards")


def test_datasets_are_listed_without_the_optional_packages() -> None:
    code = "import sys; from cggm_ray.data.dataset import DATASETS; names = DATASETS.names()\n"
    code += "print('food101' in names, sorted({'transformers', 'PIL', 'ray'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["True", "[]"]


def test_real_products_with_a_real_bert(tmp_path: Path) -> None:
    folder = DATA / "fashion_title_image"
    if not folder.exists() or not (DATA / "minilm").exists():
        pytest.skip(f"no fashion_title_image and minilm in {DATA} (set CGGM_DATA)")
    raw = tmp_path / "part"
    raw.mkdir()
    (raw / "images").symlink_to(folder / "images")
    for split in ("train", "dev", "test"):
        records = json.loads((folder / f"{split}.json").read_text())
        wanted = [record for record in records if record["label"] in ("watches", "socks", "shirts")]
        (raw / f"{split}.json").write_text(json.dumps(wanted[: 120 if split == "train" else 30]))
    vit = save_vit(tmp_path / "vit", image_size=32)
    config = configuration(raw, tmp_path, vit=str(vit), bert=str(DATA / "minilm"), text_length=12)
    result = run(with_options(config))
    assert result.test["accuracy"] > 0.6, "a title names the article"
