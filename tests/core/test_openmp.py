"""Threads of OpenMP wait shortly before they sleep, unless a person says otherwise; what counts is what OpenMP has read."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cggm_ray.core.openmp import GIVEN, ROUNDS


def said(first: str, **given: str) -> str:
    """What the OpenMP of torch prints of its settings when a process loads it."""
    others = {name: value for name, value in os.environ.items() if name not in GIVEN}
    environment = others | {"OMP_DISPLAY_ENV": "verbose"} | given
    run = subprocess.run([sys.executable, "-c", first], env=environment, capture_output=True, text=True, check=True)
    return run.stderr


@pytest.mark.parametrize(
    "first", ["import cggm_ray", "from cggm_ray.commands.cli import main", "import cggm_ray.__main__"]
)
def test_they_wait_shortly(first: str) -> None:
    assert f"GOMP_SPINCOUNT = '{ROUNDS}'" in said(first)


def test_what_a_person_says_counts() -> None:
    assert "OMP_WAIT_POLICY = 'ACTIVE'" in said("import cggm_ray", OMP_WAIT_POLICY="ACTIVE")
    assert "GOMP_SPINCOUNT = '1000'" in said("import cggm_ray", GOMP_SPINCOUNT="1000")
