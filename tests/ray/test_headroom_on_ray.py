"""The head-room of a run on Ray, whose trials are Tune's, against that of the run in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from cggm_ray.commands.cli import main
from cggm_ray.engine.configuration import Config
from cggm_ray.studies.headroom import HEADROOM, Headroom
from conftest import SMALL

pytestmark = pytest.mark.ray


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.slow
def test_the_rows_are_those_of_the_local_run(workers: str, small_pickle: Path, tmp_path: Path) -> None:
    flags = [*SMALL, "--data_path", str(small_pickle), "--storage_path", str(tmp_path), "--headroom", "true"]
    flags += [flag for name in ("attn", "relu", "embed", "res", "out") for flag in (f"--{name}_dropout", "0")]
    assert main(Config(), [*flags, "--name", "here", "--local"]) == 0
    assert main(Config(), [*flags, "--name", "ray", "--workers", workers]) == 0
    here, there = (Headroom.load(tmp_path / name / HEADROOM) for name in ("here", "ray"))
    assert [row["label"] for row in here.rows] == [row["label"] for row in there.rows]
    assert there.notes == []
    for ours, theirs in zip(here.rows, there.rows, strict=True):
        for key in ("valid", "test"):
            assert theirs[key] == pytest.approx(ours[key], rel=1e-3)
    trials = tmp_path / "ray" / "headroom" / "trials"
    assert sorted(path.name for path in trials.iterdir()) == ["joint", "only-audio", "only-text", "only-vision"]
