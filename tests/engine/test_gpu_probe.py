"""What a step asks of a GPU, counted without one by benchmarks/speed/gpu_probe.py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROBE = ROOT / "benchmarks" / "speed" / "gpu_probe.py"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_no_step_waits_for_the_device(tmp_path: Path) -> None:
    """The plain step, which reads and copies, shows that the probe sees both."""
    flags = ["--naive", "--sdpa", "--strategies", "none,cggm", "--batch", "4"]
    command = [sys.executable, str(PROBE), *flags, "--cache", str(tmp_path), "--json", str(tmp_path / "rows.json")]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    rows = {row["strategy"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert rows["naive"]["reads"] > 0
    assert rows["naive"]["h2d_sync"] > 0
    for strategy in ("none", "cggm"):
        assert (rows[strategy]["reads"], rows[strategy]["h2d_sync"]) == (0, 0)
        assert 0 < rows[strategy]["launches"] < rows["naive"]["launches"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
@pytest.mark.parametrize("dataset", ["mosi", "iemocap", "brats"])
def test_no_strategy_waits_for_the_device(dataset: str, tmp_path: Path) -> None:
    """`cml` draws the order of three modalities by itself, which tensors without memory cannot."""
    flags = ["--sdpa", "--datasets", dataset, "--strategies", "all", "--batch", "4"]
    command = [sys.executable, str(PROBE), *flags, "--cache", str(tmp_path), "--json", str(tmp_path / "rows.json")]
    done = subprocess.run(
        command, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    failed = [line.split()[1] for line in done.stdout.splitlines() if "FAILED" in line]
    assert failed == (["cml"] if dataset == "iemocap" else [])
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) > 15
    assert not [row for row in rows if row["reads"] or row["h2d_sync"] or not row["launches"]]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_what_is_called_together_needs_few_launches(tmp_path: Path) -> None:
    """With guides one by one CGGM made 1.6 times the launches of joint training; encoders were most of both."""
    launches = {}
    for label, more in (("one by one", ["--one_by_one"]), ("together", [])):
        file = tmp_path / f"{label}.json"
        flags = ["--strategies", "none,cggm", "--batch", "4", *more]
        command = [sys.executable, str(PROBE), *flags, "--cache", str(tmp_path), "--json", str(file)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        launches[label] = {row["strategy"]: row["launches"] for row in json.loads(file.read_text())}
    alone, together = launches["one by one"], launches["together"]
    # Guides are called together in both.
    assert alone["cggm"] <= 1.3 * alone["none"]
    for strategy in ("none", "cggm"):
        assert together[strategy] <= 0.7 * alone[strategy]
    assert together["cggm"] <= 0.85 * alone["none"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_an_epoch_of_the_loop_is_counted(tmp_path: Path) -> None:
    flags = ["--loop", "--strategies", "none", "--batch", "4"]
    command = [sys.executable, str(PROBE), *flags, "--cache", str(tmp_path), "--json", str(tmp_path / "rows.json")]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    # The loop reads the mean loss once an epoch, and the steps read nothing.
    assert row["launches"] > 0
    assert row["h2d_sync"] == 0


def test_an_unknown_problem_is_one_line() -> None:
    """Without the guard: flags are read before it is made."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CGGM_GPU_PROBE": "1"}
    command = [sys.executable, str(PROBE), "--datasets", "mossi"]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "gpu_probe: --datasets: unknown 'mossi'; available: mosi, iemocap, food101, brats"
    ]


@pytest.mark.slow
def test_the_measurements_of_a_gpu_run_on_a_cpu(tmp_path: Path) -> None:
    """A rehearsal: every part but those that take minutes on a CPU."""
    parts = ["epoch", "steps", "one stream", "profile", "resume", "data parallel"]
    file = tmp_path / "results.json"
    command = [sys.executable, str(PROBE.with_name("gpu.py")), "--device", "cpu", "--tiny", "--json", str(file)]
    command += ["--checks_at_once", "2"]
    subprocess.run([*command, "--parts", ",".join(parts)], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    results = json.loads(file.read_text())
    for part in parts:
        assert "error" not in results[part], results[part]
        assert not [value for value in results[part].values() if isinstance(value, str) and "Error" in value]
    assert results["resume"]["mosi cggm eager"] == "equal"
    assert results["data parallel"]["five losses"] == "equal"
