"""What made a run: `provenance.jsonl` in its folder has a line for every start.

Versions, the command, the commit of the code that a person runs from, and the checksums of the data. The environment and
the names of users and machines are left out.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cggm_ray.core.errors import UsageError
from cggm_ray.data.shards.shards import MANIFEST, Manifest
from cggm_ray.engine.configuration import Config

PROVENANCE = "provenance.jsonl"
PACKAGES = ("cggm-ray", "torch", "numpy", "ray", "pyarrow", "safetensors")
MOST_SOURCES = 20
"""Raw files that are listed one by one; the manifest of the set has all of them."""
GIT_SECONDS = 10


def note_start(
    folder: Path, config: Config, shards: Path, workers: int | None = None, threads: int | None = None
) -> None:
    """Adds the line of this start.

    Args:
        folder: of the run or the study.
        config: of it.
        shards: folder of the converted set.
        workers: that train; None where their number changes, or where several runs share a folder.
        threads: of torch in each; default those of this process.

    Raises:
        UsageError: the folder cannot be written.
    """
    entry = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git": git_commit(Path.cwd()),
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
        raise UsageError(f"storage_path: {folder / PROVENANCE} cannot be written: {error.strerror}") from None


def read_provenance(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run, oldest first; lines that a crash cut short are left out."""
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
    """Of Python and of the packages that compute; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def git_commit(folder: Path) -> dict[str, Any] | None:
    """Commit of the checkout that a folder lies in, and whether tracked files differ from it; None where there is none."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
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
    except (OSError, subprocess.SubprocessError):
        return None


def data_entry(shards: Path) -> dict[str, Any]:
    """Name of a set, the checksum of its manifest, which has those of all shards, and its first raw files with theirs."""
    text = (shards / MANIFEST).read_text()
    sources = Manifest.from_json(text).sources
    return {
        "set": shards.name,
        "manifest_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "source_files": len(sources),
        "sources": {source.path: source.sha256 for source in sources[:MOST_SOURCES]},
    }
