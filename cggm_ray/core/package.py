"""Which code of this package a process runs: hosts of a cluster must have the same."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from cggm_ray.core.errors import UsageError

ROOT = Path(__file__).parents[1]


@cache
def package_digest() -> str:
    """Returns a digest of all Python files of this package, by their paths in it."""
    digest = hashlib.sha256()
    for path in sorted(ROOT.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(ROOT).as_posix()} {len(content)} ".encode() + content)
    return digest.hexdigest()[:12]


def check_package(wanted: str, host: str) -> None:
    """Compares the package in this process with that of another one.

    Args:
        wanted: digest in the process that gave the command.
        host: name of the host of this process.

    Raises:
        UsageError: they differ.
    """
    found = package_digest()
    if found != wanted:
        raise UsageError(different(host, found, wanted))


def different(host: str, found: str, wanted: str) -> str:
    """Returns the text of an error about a host with another package."""
    return (
        f"host {host} has other code of cggm_ray (found {found}, expected {wanted} as where the command was given); install "
        "the same version on every node, or submit a job with the package in its working directory"
    )
