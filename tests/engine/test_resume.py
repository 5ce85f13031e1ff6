"""A run that stops and goes on is the run that never stopped, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cggm_ray.commands.cli import main, parse
from cggm_ray.core.errors import TrainingError
from cggm_ray.data.shards.opening import open_manifest
from cggm_ray.data.shards.shards import write_shards_here
from cggm_ray.engine.assembly import build_dataset, build_network, new_state, prepare_data
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.runtime import LocalRuntime, RunConfig
from cggm_ray.engine.state import TENSORS, VALUES, WEIGHTS
from cggm_ray.engine.tracking import read_metrics
from cggm_ray.runs.folder import named
from conftest import SMALL, tamper

TIMES = {"seconds", "samples_per_second", "peak_memory"}


def train(pickle: Path, storage: Path, name: str, epochs: int, *flags: str) -> Path:
    argv = ["--local", "--data_path", str(pickle), "--storage_path", str(storage), "--name", name, *SMALL, *flags]
    assert main(Config(), [*argv, "--num_epochs", str(epochs)]) == 0
    return storage / name


def last(run: Path) -> Path:
    return max((run / "checkpoints").iterdir())


def lines(run: Path) -> list[dict[str, float | None]]:
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(run)]


def same_state(a: Path, b: Path) -> bool:
    if any((a / name).read_bytes() != (b / name).read_bytes() for name in (WEIGHTS, TENSORS)):
        return False
    left, right = (json.loads((folder / VALUES).read_text()) for folder in (a, b))
    return all(left[key] == right[key] for key in left if key != "config")


@pytest.mark.parametrize("strategy", ["none", "cggm", "cggm-paper", "cggm-released"])
def test_two_and_two_epochs_are_four(small_pickle: Path, tmp_path: Path, strategy: str) -> None:
    whole = train(small_pickle, tmp_path, "whole", 4, "--modulation", strategy)
    train(small_pickle, tmp_path, "parts", 2, "--modulation", strategy)
    parts = train(small_pickle, tmp_path, "parts", 4, "--modulation", strategy)
    assert same_state(last(whole), last(parts))
    assert lines(whole) == lines(parts)
    assert json.loads((whole / "summary.json").read_text()) == json.loads((parts / "summary.json").read_text())
    assert (whole / "predictions.parquet").read_bytes() == (parts / "predictions.parquet").read_bytes()


MEMORY = {
    "cggm": ("coefficients.previous_M", "coefficients.average_M", "coefficients.steps_M"),
    "cggm-paper": ("coefficients.previous_M",),
    "agm": ("average_M", "steps_M"),
    "cggm-released": ("coefficients.previous_M", "direction.pending_value", "direction.pending_gradient"),
}


@pytest.mark.parametrize(("strategy", "tensor"), [(s, t) for s, tensors in MEMORY.items() for t in tensors])
def test_every_tensor_of_the_memory_matters(small_pickle: Path, tmp_path: Path, strategy: str, tensor: str) -> None:
    whole = train(small_pickle, tmp_path, "whole", 3, "--modulation", strategy)
    parts = train(small_pickle, tmp_path, "parts", 2, "--modulation", strategy)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        value = tensors[f"/strategy/{tensor}"]
        value -= torch.arange(1.0, value.numel() + 1).reshape(value.shape)

    tamper(last(parts), TENSORS, change)
    train(small_pickle, tmp_path, "parts", 3, "--modulation", strategy)
    assert lines(whole) != lines(parts)


def test_a_checkpoint_without_one_of_its_tensors_is_refused(small_pickle: Path, tmp_path: Path) -> None:
    checkpoint = last(train(small_pickle, tmp_path, "run", 1))
    config = parse(Config(), [*SMALL, "--data_path", str(small_pickle), "--storage_path", str(tmp_path)]).config
    shards = prepare_data(config, write_shards_here)
    manifest = open_manifest(shards)
    dataset = build_dataset(config, "mosi")
    net, guides = build_network(config, dataset, manifest, tuple(manifest.modalities))
    runtime = LocalRuntime(tmp_path / "run", config.run)
    state = new_state(config, net, guides, dataset.task(manifest), runtime)
    state.load(checkpoint)
    for file in (TENSORS, WEIGHTS):
        whole = load_file(checkpoint / file)
        assert len(whole) > 20
        # Every fifth tensor: all of them take half a minute.
        for name in sorted(whole)[::5]:
            save_file({key: value for key, value in whole.items() if key != name}, checkpoint / file)
            with pytest.raises(TrainingError, match="cannot be used"):
                state.load(checkpoint)
        save_file(whole, checkpoint / file)
        content = (checkpoint / file).read_bytes()
        (checkpoint / file).write_bytes(content[:-100])
        with pytest.raises(TrainingError, match="cannot be used"):
            state.load(checkpoint)
        (checkpoint / file).write_bytes(content)
    state.load(checkpoint)


def test_best_and_the_last_two_are_kept(small_pickle: Path, tmp_path: Path) -> None:
    run = train(small_pickle, tmp_path, "run", 8, "--lr", "0.2")
    best = json.loads((run / "summary.json").read_text())["best_epoch"]
    assert {folder.name for folder in (run / "checkpoints").iterdir()} == {f"epoch-{n:05d}" for n in (best, 7, 8)}
    assert best < 7
    values = [line["valid/mae"] for line in read_metrics(run)]
    assert values.index(min(values)) == best - 1
    assert (run / "best" / WEIGHTS).read_bytes() == (run / "checkpoints" / f"epoch-{best:05d}" / WEIGHTS).read_bytes()


def test_early_stopping(small_pickle: Path, tmp_path: Path) -> None:
    run = train(small_pickle, tmp_path, "run", 60, "--patience", "3", "--lr", "0.05")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["epochs"] == summary["best_epoch"] + 3 < 60
    train(small_pickle, tmp_path, "run", 60, "--patience", "3", "--lr", "0.05")
    assert len(read_metrics(run)) == summary["epochs"]


def test_another_configuration_is_refused(
    small_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(small_pickle, tmp_path, "run", 1)
    argv = ["--local", "--data_path", str(small_pickle), "--storage_path", str(tmp_path), "--name", "run", *SMALL]
    assert main(Config(), [*argv, "--rho", "0.7"]) == 2
    assert "rho: was 1.3, now 0.7" in capsys.readouterr().err


def test_runs_are_named_by_time() -> None:
    assert str(named(Config()).run.name).startswith("mosi-cggm-2")
    assert named(Config(run=RunConfig(name="mine"))).run.name == "mine"
