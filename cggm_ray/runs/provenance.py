"""Records the origin of a run: `provenance.jsonl` in its folder has a line for every start.

Versions, the command, the commit of the code that a person runs from, and the checksums of the data. The environment and
the names of users and machines are left out. A run does not depend on it: what cannot be found out is null.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from cggm_ray.core.errors import CggmError
from cggm_ray.data.shards.shards import MANIFEST, Manifest
from cggm_ray.engine.configuration import Config

PROVENANCE = "provenance.jsonl"
PACKAGES = ("cggm-ray", "torch", "numpy", "ray", "pyarrow", "safetensors")
MOST_SOURCES = 20
"""Largest number of raw files in the record. The manifest of the set lists all of them."""
GIT_SECONDS = 10


def command_of(argv: Sequence[str]) -> list[str]:
    """Returns the command of a process, its program by name alone; empty in a notebook, whose kernel has files of its own."""
    program = Path(argv[0]).name
    return [] if "kernel_launcher" in program else [program, *argv[1:]]


def typed(argv: Sequence[str]) -> str:
    """Returns the command of a process as a person types it, or that it was a call in Python."""
    command = command_of(argv)
    if not command or command[0] in ("", "-c"):
        return "called from Python"
    if command[0] == "__main__.py":
        return shlex.join(["python", "-m", "cggm_ray", *command[1:]])
    # A script by its path, because that is where it is found again.
    return shlex.join(["python", *argv] if command[0].endswith(".py") else command)


def note_start(
    folder: Path, config: Config, shards: Path, workers: int | None = None, threads: int | None = None
) -> None:
    """Appends the line of this start. If it cannot be written, a printed line says so.

    Args:
        folder: of the run or the study.
        config: of it.
        shards: folder of the converted set.
        workers: that train; None where their number changes, or where several runs share a folder.
        threads: of torch in each; default those of this process.
    """
    entry = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command_of(sys.argv),
        "git": git_commit(),
        "versions": versions(),
        "workers": workers,
        "threads": threads or torch.get_num_threads(),
        "device": "cuda" if config.run.use_gpu or (not config.run.no_cuda and torch.cuda.is_available()) else "cpu",
        "seed": config.train.seed,
        "deterministic": config.train.deterministic,
        "data": data_entry(shards),
    }
    try:
        with (folder / PROVENANCE).open("a") as file:
            file.write(json.dumps(entry) + "\n")
    except OSError as error:
        print(f"{folder / PROVENANCE} cannot be written: {error.strerror}; this start is not recorded", flush=True)


def read_provenance(folder: Path) -> list[dict[str, Any]]:
    """Returns the lines of a run, oldest first, without lines that a crash cut short."""
    try:
        texts = (folder / PROVENANCE).read_text().splitlines()
    except OSError:
        return []
    entries = []
    for text in texts:
        try:
            entries.append(json.loads(text))
        except ValueError:
            continue
    return entries


def versions() -> dict[str, str | None]:
    """Returns the versions of Python and of the packages that compute, with None for a missing package."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        # Metadata that was damaged raises what its parser raises.
        try:
            found[package] = version(package)
        except Exception:
            found[package] = None
    return found


def git_commit(folder: Path | None = None) -> dict[str, Any] | None:
    """Returns the commit of the checkout that contains a folder, and whether tracked files differ from it.

    Args:
        folder: default the working directory.

    Returns:
        None where there is no checkout, or git is not installed or does not read it, such as one of another owner.
    """

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *([] if folder is None else ["-C", str(folder)]), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=GIT_SECONDS,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
        )
        return done.stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "changed": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    # Texts of git may be in no encoding that this process reads.
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def data_entry(shards: Path) -> dict[str, Any] | None:
    """Returns the name of a set, the checksum of its manifest, and its first raw files with their checksums.

    The manifest has the checksums of all shards.

    Returns:
        None where the manifest cannot be read; whoever opens the set says so.
    """
    try:
        text = (shards / MANIFEST).read_text()
        sources = Manifest.from_json(text).sources
    except (OSError, ValueError, KeyError, TypeError, CggmError):
        return None
    return {
        "set": shards.name,
        "manifest_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "source_files": len(sources),
        "sources": {source.path: source.sha256 for source in sources[:MOST_SOURCES]},
    }
