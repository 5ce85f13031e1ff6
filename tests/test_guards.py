"""A loss that is not finite stops the run before anything is moved or saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cggm_ray.cli import main
from cggm_ray.config import Config
from cggm_ray.state import WEIGHTS
from conftest import SMALL, small_set, tamper, write_pickle


def test_the_message_names_step_rank_samples_and_checkpoint(
    tmp_path: Path, small_pickle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*SMALL, "--local", "--data_path", str(small_pickle), "--storage_path", str(tmp_path), "--name", "run"]
    assert main(Config(), [*argv, "--num_epochs", "1"]) == 0
    checkpoint = tmp_path / "run" / "checkpoints" / "epoch-00001"
    tamper(checkpoint, WEIGHTS, lambda weights: weights["head.weight"][0, 0].fill_(torch.inf))
    capsys.readouterr()
    assert main(Config(), argv) == 1
    (line,) = capsys.readouterr().err.splitlines()
    for text in ("step 6 (epoch 2)", "task loss inf", "rank 0", "no parameter was moved", f"checkpoint: {checkpoint}"):
        assert text in line
    assert sorted(folder.name for folder in checkpoint.parent.iterdir()) == ["epoch-00001"]


def test_overflow_in_the_first_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = small_set()
    content["train"]["text"] = np.full_like(content["train"]["text"], 3e38)
    path = write_pickle(tmp_path / "huge.pkl", content)
    argv = [*SMALL, "--local", "--data_path", str(path), "--storage_path", str(tmp_path), "--name", "run"]
    assert main(Config(), argv) == 1
    assert "step 1 (epoch 1): not finite: task loss nan" in capsys.readouterr().err
