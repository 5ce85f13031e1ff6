"""Training on the training and the validation split together (`--refit`), once validation has decided everything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from strategy_cases import lines

from cggm_ray.__main__ import main as command
from cggm_ray.commands.cli import main
from cggm_ray.data.loading.split import TensorSplit
from cggm_ray.engine.evaluation import evaluate
from cggm_ray.engine.refit import joined_splits
from cggm_ray.engine.tracking import read_metrics
from cggm_ray.recipes import features

ROOT = Path(__file__).parents[2]
SHORT = [
    *("--max_steps", "20", "--valid_interval", "5", "--batch_size", "16", "--cpus_per_worker", "1", "--local"),
    *("--preset", "quick", "--standardise", "off", "--report", "false", "--patience", "1"),
]


def write(path: Path, *, moved: bool = False) -> Path:
    """90 samples of three classes. With `moved` the validation samples stand behind the training samples, in the same split."""
    rng = np.random.default_rng(0)
    label = np.arange(90) % 3
    content = {name: label[:, None] + 1.5 * rng.normal(size=(90, 6)) for name in ("left", "right")}
    part = rng.permutation(np.array((["train"] * 3 + ["valid", "test"]) * 18))
    rows = np.concatenate([np.flatnonzero(part == name) for name in ("train", "valid", "valid", "test")])
    counts = {name: int((part == name).sum()) for name in ("train", "valid", "test")}
    names = ["train"] * counts["train"] + ["train" if moved else "unused"] * counts["valid"]
    names += ["valid"] * counts["valid"] + ["test"] * counts["test"]
    kept = np.array(names) != "unused"
    np.savez(
        path,
        **{name: values[rows][kept] for name, values in content.items()},
        label=label[rows][kept],
        part=np.array(names)[kept],
    )
    return path


def argv(raw: Path, storage: Path, name: str, *flags: str) -> list[str]:
    data = ["--data_path", str(raw), "--modalities", "left,right", "--target", "label", "--split", "part"]
    return [*data, "--storage_path", str(storage), "--name", name, *SHORT, *flags]


def trained(raw: Path, storage: Path, name: str, *flags: str) -> list[dict[str, Any]]:
    assert main(features.RECIPE, argv(raw, storage, name, *flags)) == 0
    return lines(storage / name)


def test_it_is_a_run_whose_training_split_has_both(tmp_path: Path) -> None:
    both = trained(write(tmp_path / "moved.npz", moved=True), tmp_path, "both", "--patience", "9")
    refit = trained(write(tmp_path / "three.npz"), tmp_path, "refit", "--refit", "1")
    assert len(both) == len(refit) == 4
    for left, right in zip(both, refit, strict=True):
        # Validation differs in nothing but the choice.
        assert {key: left[key] for key in left if not key.startswith("best")} == {
            key: right[key] for key in right if not key.startswith("best")
        }
    assert [line["best_epoch"] for line in refit] == [1, 2, 3, 4]


def test_a_share_ends_the_same_run_earlier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write(tmp_path / "three.npz")
    whole = trained(raw, tmp_path, "whole", "--refit", "1")
    half = trained(raw, tmp_path, "half", "--refit", "0.5")
    assert half == whole[:2]
    assert len({line["lr"] for line in whole}) == 4
    shown = capsys.readouterr().out
    assert "validation metrics do not say how good the network is" in shown
    assert "last epoch 2, trained on validation too" in shown
    assert "trained on the validation samples too" in (tmp_path / "half" / "README.md").read_text()
    assert command(["report", str(tmp_path / "half"), "--no_contributions"]) == 0
    page = (tmp_path / "half" / "report" / "report.html").read_text()
    assert "Metrics of epoch 2, the last of a network that was trained on validation too" in page
    assert "The epoch with the best value is tested" not in page


def test_it_goes_on_after_a_stop_and_every_command_knows_it(tmp_path: Path) -> None:
    raw = write(tmp_path / "three.npz")
    whole = trained(raw, tmp_path, "whole", "--refit", "1")
    folder = tmp_path / "parts"
    validations = iter([evaluate, evaluate])
    with pytest.MonkeyPatch.context() as patch:
        # The third one finds no function, which ends the run.
        patch.setattr("cggm_ray.engine.loop.evaluate", lambda *given, **named: next(validations)(*given, **named))
        with pytest.raises(StopIteration):
            main(features.RECIPE, argv(raw, tmp_path, "parts", "--refit", "1"))
    assert len(read_metrics(folder)) == 2
    assert trained(raw, tmp_path, "parts", "--refit", "1") == whole
    tables = [pq.read_table(tmp_path / name / "predictions.parquet") for name in ("whole", "parts")]
    assert tables[0].equals(tables[1])


def test_two_processes_follow_one(tmp_path: Path) -> None:
    raw = write(tmp_path / "three.npz")
    quiet = ["--dropout", "0", "--refit", "1", "--precision", "fp64"]
    one = trained(raw, tmp_path, "one", *quiet)
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    flags = [flag for flag in argv(raw, tmp_path, "two", *quiet) if flag != "--local"]
    script = str(ROOT / "pipelines" / "features.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*program, script, *flags], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    for left, right in zip(one, lines(tmp_path / "two"), strict=True):
        assert left == pytest.approx(right, rel=1e-9)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--modulation", "gblend"], "the strategy 'gblend' learns from the validation split"),
        (["--schedule", "plateau"], "the schedule plateau follows the validation loss"),
        (["--standardise", "auto"], "--standardise auto decides on validation"),
        (["--headroom", "true"], "it chooses on validation"),
        (["--refit", "1.5"], "expected a number in [0, 1]"),
    ],
)
def test_what_still_needs_validation_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], reason: str
) -> None:
    raw = write(tmp_path / "three.npz")
    assert main(features.RECIPE, argv(raw, tmp_path, "r", "--refit", "1", *flags)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "refit" in line
    assert reason in line


def test_a_set_that_is_streamed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write(tmp_path / "three.npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cggm_ray.data.dataset.set_bytes", lambda *given: 2**50)
        assert main(features.RECIPE, argv(raw, tmp_path, "r", "--refit", "1")) == 2
    assert "refit: this set is read while a run trains; expected 0" in capsys.readouterr().err


def test_a_search_chooses_on_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, search = write(tmp_path / "three.npz"), tmp_path / "search.yaml"
    search.write_text("space: {lr: {choice: [0.1, 0.01]}}\ntrials: 2\n")
    flags = [flag for flag in argv(raw, tmp_path, "r", "--refit", "1", "--tune", str(search)) if flag != "--local"]
    assert main(features.RECIPE, flags) == 2
    assert "refit: found 1; expected 0, because a search chooses on validation" in capsys.readouterr().err


def split(rows: int, start: int, **parts: Any) -> TensorSplit:
    return TensorSplit({"a": torch.arange(start, start + rows)[:, None]}, torch.arange(start, start + rows), **parts)


def test_masks_views_and_labels_are_joined() -> None:
    views = {"b": torch.stack([torch.zeros(3, 2), torch.ones(3, 2)])}
    train = split(3, 0, masks={"a": torch.tensor([[True], [False], [True]])}, views=views)
    valid = split(2, 3, labelled=torch.tensor([True, False]))
    valid.inputs["b"] = torch.full((2, 2), 7.0)
    found = joined_splits(train, valid)
    assert len(found) == 5
    assert found.inputs["a"].flatten().tolist() == found.target.tolist() == [0, 1, 2, 3, 4]
    assert found.masks["a"].flatten().tolist() == [True, False, True, True, True]
    assert found.views["b"][:, 3:].unique().tolist() == [7.0]
    assert found.views["b"][:, :3].equal(views["b"])
    assert found.labelled is not None
    assert found.labelled.tolist() == [True, True, True, True, False]
