"""The network of docs/own-network.md."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from programs import blocks, command, train
from safetensors import safe_open

FLAGS = ["--import", "gru.py", "--network", "gru", "--gru_width", "12"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files of the page."""
    for name, code in zip(("late.py", "gru.py", "parts.py"), blocks("own-network.md"), strict=True):
        (tmp_path / name).write_text(code)
    return tmp_path


@pytest.mark.slow
def test_a_module_as_it_is(folder: Path) -> None:
    run = train(folder, "--local", "--net", "late.py:build")
    assert "network: late.py:build" in (run / "config.yaml").read_text()
    with safe_open(run / "best" / "model.safetensors", "pt") as weights:
        assert weights.get_slice("module.encoders.text.weight_hh_l0").get_shape() == [64, 16]
    assert "equal to the last bit" in command(folder, "verify", str(run)).stdout
    with pytest.raises(AssertionError, match="this strategy calls encoders without their network, and LSTM alone"):
        train(folder, "--local", "--net", "late.py:build", "--modulation", "ume", "--fresh")


@pytest.mark.slow
def test_it_trains_and_is_known_in_later_processes(folder: Path, tmp_path: Path) -> None:
    run = train(folder, "--local", *FLAGS)
    with safe_open(run / "best" / "model.safetensors", "pt") as weights:
        assert weights.get_slice("encoders.text.gru.weight_hh_l0").get_shape() == [36, 12]
    assert "gru_width: 12" in (run / "config.yaml").read_text()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = command(elsewhere, "verify", str(run))
    assert "equal to the last bit" in done.stdout
    assert f"imports {folder / 'gru.py'}, which registered the network gru" in done.stderr
    assert "equal to the network" in command(elsewhere, "export", str(run)).stdout
    assert Path(command(elsewhere, "report", str(run)).stdout.strip()).exists()
    command(elsewhere, "predict", str(run), "--out", "again.parquet")
    again, tested = (pq.read_table(path) for path in (elsewhere / "again.parquet", run / "predictions.parquet"))
    assert again["prediction"].equals(tested["prediction"])
    # The file has moved.
    moved = (folder / "gru.py").rename(folder / "moved.py")
    (line,) = command(elsewhere, "verify", str(run), code=2).stderr.splitlines()
    assert re.search("network.*gru.*--import FILE", line)
    command(elsewhere, "verify", str(run), "--import", str(moved))


def test_the_default_of_a_dataset_is_imported_with_it(folder: Path) -> None:
    """Two files: one registers a dataset, whose default network is in the other."""
    (folder / "speech.py").write_text(
        "from cggm_ray.data.dataset import DATASETS\nfrom cggm_ray.data.datasets.mosi import Mosi\n"
        "@DATASETS.register('speech')\nclass Speech(Mosi):\n    name = 'speech'\n    network = 'gru'\n"
    )
    (folder / "speech.yaml").write_text("dataset: speech\n")
    imports = ["--import", "gru.py", "--import", "speech.py"]
    run = train(folder, "--local", *imports, "--config", "speech.yaml")
    done = command(folder, "verify", str(run))
    assert re.findall(r"which registered the (\w+ \w+)", done.stderr) == ["dataset speech", "network gru"]
    assert {"gru", "speech"} == {each["name"] for each in json.loads((run / "data.json").read_text())["registered"]}


def test_sizes_of_other_networks_are_refused(folder: Path) -> None:
    with pytest.raises(AssertionError, match="nlevels: the network 'gru' has no such size"):
        train(folder, "--local", *FLAGS, "--nlevels", "4")


PARTS = ["--network", "composed", "--encoders", "text:convolutions", "--fusion", "largest", "--width", "32"]


@pytest.mark.slow
def test_an_encoder_and_a_fusion_train_and_are_known_in_later_processes(folder: Path, tmp_path: Path) -> None:
    run = train(folder, "--local", "--import", "parts.py", *PARTS)
    with safe_open(run / "best" / "model.safetensors", "pt") as weights:
        assert weights.get_slice("encoders.text.convolution.weight").get_shape()[0] == 32
        assert weights.get_slice("fusion.scale.audio").get_shape() == [32]
    registered = {(each["kind"], each["name"]) for each in json.loads((run / "data.json").read_text())["registered"]}
    assert registered == {("encoder", "convolutions"), ("fusion", "largest")}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = command(elsewhere, "verify", str(run))
    assert "equal to the last bit" in done.stdout
    assert f"imports {folder / 'parts.py'}, which registered the encoder convolutions" in done.stderr
    assert "equal to the network" in command(elsewhere, "export", str(run)).stdout


@pytest.mark.slow
def test_parts_of_a_network_that_is_not_trained_are_not_recorded(folder: Path) -> None:
    run = train(folder, "--local", "--import", "parts.py")
    assert json.loads((run / "data.json").read_text())["registered"] == []


def test_an_encoder_for_another_kind_is_refused(folder: Path) -> None:
    with pytest.raises(AssertionError, match="encoders: 'resnet' takes no sequence, found text"):
        train(folder, "--local", "--network", "composed", "--encoders", "text:resnet")
    with pytest.raises(AssertionError, match=r"encoders: unknown 'resnett' for text .did you mean resnet"):
        train(folder, "--local", "--network", "composed", "--encoders", "text:resnett")


@pytest.mark.ray
@pytest.mark.parametrize("flags", [FLAGS, ["--import", "parts.py", *PARTS]])
@pytest.mark.slow
def test_it_reaches_the_workers(folder: Path, flags: list[str]) -> None:
    run = train(folder, "--workers", "2", "--cpus_per_worker", "1", *flags)
    assert "equal within" in command(folder, "verify", str(run)).stdout
