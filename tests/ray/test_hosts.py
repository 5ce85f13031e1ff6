"""Two rows of the faults of hosts: a raylet that is killed, and a host with other code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """What came of the rows, by fault."""
    out = tmp_path_factory.mktemp("faults")
    script = [sys.executable, "benchmarks/faults/host_faults.py", "--out", str(out), "--only", "run"]
    done = subprocess.run(
        [*script, "--fault", "raylet killed", "--fault", "other code"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    if "this machine lacks" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode in (0, 1), done.stderr
    found = [json.loads(path.read_text()) for path in out.glob("row-*.json")]
    assert len(found) == 2, done.stdout + done.stderr
    return {row["fault"]: row for row in found}


def test_a_raylet_that_is_killed(rows: dict[str, dict[str, object]]) -> None:
    row = rows["raylet killed"]
    assert (row["result"], row["exit_codes"]) == ("bits", [0]), row
    assert not any(row["left"].values()), row


def test_other_code_on_one_host(rows: dict[str, dict[str, object]]) -> None:
    row = rows["other code on one host"]
    assert (row["result"], row["exit_codes"]) == ("bits", [2, 0]), row
    assert "has other code of cggm_ray" in row["said"][0]
