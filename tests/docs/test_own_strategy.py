"""The strategy of docs/own-strategy.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from programs import blocks, command, train

from cggm_ray.engine.tracking import read_metrics

POWER = 0.25
FLAGS = ["--import", "evener.py", "--modulation", "evener", "--evener_power", str(POWER), "--nlevels", "3"]
FLAGS += ["--proj_dim", "10"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the file of the page; its formula is in another one beside it, as a person's code may be."""
    code, phase = blocks("own-strategy.md")
    (tmp_path / "easier.py").write_text(phase)
    (tmp_path / "evener.py").write_text(code.replace("\nimport torch\n", "\nimport torch\n\nimport helper\n", 1))
    (tmp_path / "helper.py").write_text("")
    return tmp_path


def test_its_rates_follow_the_norms_of_the_epoch_before(folder: Path) -> None:
    first, second = read_metrics(train(folder, "--local", *FLAGS))
    names = ("text", "audio", "vision")
    norms = np.array([first[f"grad_norm/{name}"] for name in names])
    assert [first[f"rate/{name}"] for name in names] == [1, 1, 1]
    assert [second[f"rate/{name}"] for name in names] == pytest.approx(list((norms.mean() / norms) ** POWER))


@pytest.mark.parametrize(
    "place", [["--local"], pytest.param(["--workers", "2"], marks=[pytest.mark.ray, pytest.mark.slow])]
)
def test_it_is_known_in_later_processes(place: list[str], folder: Path, tmp_path: Path) -> None:
    run = train(folder, *place, "--cpus_per_worker", "1", *FLAGS)
    assert f"evener_power: {POWER}" in (run / "config.yaml").read_text()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert "which registered the strategy evener" in command(elsewhere, "verify", str(run)).stderr
    (folder / "evener.py").unlink()
    assert "--import FILE" in command(elsewhere, "verify", str(run), code=2).stderr


PHASE = ["--import", "easier.py", "--modulation", "easier", "--nlevels", "3", "--proj_dim", "10"]


@pytest.mark.slow
def test_a_phase_of_its_own_sorts_the_samples(folder: Path) -> None:
    records = read_metrics(train(folder, "--local", *PHASE))
    assert len(records) == 2
    train(folder, "--local", *PHASE, "--easier_after", "9", "--name", "shuffled")
    shuffled = read_metrics(folder / "runs" / "shuffled")
    assert records[0]["train/loss"] == shuffled[0]["train/loss"]
    assert records[1]["train/loss"] != shuffled[1]["train/loss"]
