"""Local runs: under torchrun, in bfloat16, and what a run leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file

from cggm_ray.commands.cli import main
from cggm_ray.data.datasets.mosi import planted_imbalance
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.tracking import Console, JsonLines, following, read_metrics
from conftest import SMALL, small_set, write_pickle

ROOT = Path(__file__).parents[2]


def argv(pickle: Path, storage: Path, name: str, *flags: str) -> list[str]:
    return [*SMALL, "--local", "--data_path", str(pickle), "--storage_path", str(storage), "--name", name, *flags]


def test_what_a_run_leaves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = small_set()
    content["test"]["id"] = np.array([f"video_{n}" for n in range(7)])
    content["train"]["id"], content["valid"]["id"] = np.arange(22), np.arange(9)
    pickle = write_pickle(tmp_path / "small.pkl", content)
    assert main(Config(), argv(pickle, tmp_path, "run", "--log_interval", "2")) == 0
    run, printed = tmp_path / "run", capsys.readouterr().out
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["modulation"]["coefficients"], config["model"]["proj_dim"]) == ("stable", 8)
    lines = read_metrics(run)
    by_modality = [
        f"{name}/{modality}"
        for name in ("score", "guide_loss", "coefficient", "cosine", "grad_norm")
        for modality in ("text", "audio", "vision")
    ]
    for name in ["train/loss", "valid/loss", "valid/mae", "lr", "samples_per_second", *by_modality]:
        assert all(isinstance(line[name], float) for line in lines), name
    table = pq.read_table(run / "predictions.parquet").to_pandas()
    assert list(table["id"]) == [f"video_{n}" for n in range(7)]
    assert np.allclose(table["target"], content["test"]["labels"].ravel())
    summary = json.loads((run / "summary.json").read_text())
    assert np.isclose(np.abs(table["prediction"] - table["target"]).mean(), summary["test"]["mae"])
    assert load_file(run / "best" / "model.safetensors")["head.weight"].shape == (1, 8)
    assert list((run / "tensorboard").iterdir())
    # What is printed says besides what the data is like.
    rest = iter(printed.splitlines())
    assert all(line in rest for line in (run / "train.log").read_text().splitlines())
    assert "epoch 1  step 2/5  loss " in printed
    for place in ("config.yaml", "metrics.jsonl", "best", "predictions.parquet"):
        assert str(run / place) in printed


def test_torchrun_follows_one_process(tmp_path: Path, small_pickle: Path) -> None:
    dropouts = [flag for name in ("attn", "relu", "embed", "res", "out") for flag in (f"--{name}_dropout", "0")]
    assert main(Config(), argv(small_pickle, tmp_path, "one", *dropouts)) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    flags = [flag for flag in argv(small_pickle, tmp_path, "two", *dropouts) if flag != "--local"]
    script = [str(ROOT / "pipelines" / "mosi.py"), *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *script], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best epoch") == 1
    for one, two in zip(read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two"), strict=True):
        for name in ("train/loss", "valid/loss", "coefficient/text", "cosine/audio", "grad_norm/vision"):
            assert np.isclose(one[name], two[name], rtol=1e-4), name


@pytest.mark.parametrize("strategy", ["cggm", "cggm-released"])
def test_bfloat16_trains_close_to_float32(tmp_path: Path, small_pickle: Path, strategy: str) -> None:
    flags = ["--modulation", strategy, "--num_epochs", "1"]
    assert main(Config(), argv(small_pickle, tmp_path, "fp32", *flags)) == 0
    assert main(Config(), argv(small_pickle, tmp_path, "bf16", *flags, "--precision", "bf16")) == 0
    (full,), (half,) = (read_metrics(tmp_path / name) for name in ("fp32", "bf16"))
    assert full["train/loss"] != half["train/loss"]
    assert np.isclose(full["train/loss"], half["train/loss"], rtol=0.05)
    weights = load_file(tmp_path / "bf16" / "best" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_the_demonstration_set_is_planted_as_described() -> None:
    content = planted_imbalance(1, samples={"train": 2000})["train"]
    labels = content["labels"].ravel()

    def explained(features: np.ndarray) -> float:
        """Share of the label's variance that a linear regression on the mean over time explains."""
        x = np.column_stack([features.mean(1), np.ones(len(labels))])
        residual = labels - x @ np.linalg.lstsq(x, labels, rcond=None)[0]
        return 1 - residual.var() / labels.var()

    assert explained(content["text"]) > 0.4
    assert explained(content["audio"]) < 0.2
    assert explained(content["vision"]) < 0.05
    # What text does not show is in the others, behind a nonlinearity.
    vision = content["vision"]
    hidden = (vision[:, :, 0].mean(1) * vision[:, :, 1].mean(1))[:, None, None]
    assert (
        explained(np.concatenate([content["text"].mean(1, keepdims=True), hidden], 2))
        > explained(content["text"]) + 0.15
    )


def test_metrics_file_drops_lines_of_lost_work(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path, 0)
    for epoch in (1, 2, 3):
        lines.log({"epoch": epoch, "x": float("nan") if epoch == 2 else epoch})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "x"')
    assert [line["x"] for line in read_metrics(tmp_path)] == [1, None, 3]
    JsonLines(tmp_path, 2)
    assert [line["epoch"] for line in read_metrics(tmp_path)] == [1, 2]


def test_the_driver_prints_what_a_worker_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.log").write_text("of an earlier start\n")
    with following(tmp_path, period=0.01), (tmp_path / "train.log").open("a") as file:
        file.write("one\ntwo\n")
    assert capsys.readouterr().out == "one\ntwo\n"
    Console(tmp_path).say("three")
    assert capsys.readouterr().out == "three\n"
    assert (tmp_path / "train.log").read_text().endswith("two\nthree\n")


def test_compiling_needs_a_compiler(
    small_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    argv = [*SMALL, "--local", "--data_path", str(small_pickle), "--storage_path", str(tmp_path), "--compile"]
    assert main(Config(), argv) == 2
    assert "compile: found no C++ compiler" in capsys.readouterr().err
