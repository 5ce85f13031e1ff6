"""The programs of the pages, saved and run as a person would: in a process and a folder of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def blocks(page: str, language: str = "python") -> list[str]:
    """The programs of a page of docs, or its files in another language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


def python(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Python with these arguments, started in a folder; it must end with the code."""
    # Only the package's own root: what is next to the tests is not importable for a person either.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_ADDRESS": "local"}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done


def command(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """A command about a run."""
    return python(folder, "-m", "cggm_ray", *arguments, code=code)


def train(folder: Path, *flags: str) -> Path:
    """A run of two epochs on the demonstration set; its folder."""
    small = ("--batch_size", "64", "--num_epochs", "2", "--report", "false", "--storage_path", "runs", "--name", "r")
    python(folder, str(ROOT / "pipelines" / "mosi.py"), *small, *flags)
    return folder / "runs" / "r"
