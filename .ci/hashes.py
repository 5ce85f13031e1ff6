"""Writes hashes.txt: the file of every package that `make HASHES=.ci/hashes.txt` installs, by its SHA-256.

    python .ci/hashes.py        # with CPython 3.11 on Linux, x86_64; again after a change of constraints.txt

The packages are those of the tests, the documentation and a release. Each has one file, that of this Python and system, so
pip refuses any other. The file of torch is the one for CPUs: give pip an index that has it
(PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = ".[test,docs,release]"
HEAD = "# Made by .ci/hashes.py for CPython 3.11 on Linux, x86_64.\n"


def main() -> None:
    """Asks pip what it would install into an empty environment, and writes that."""
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        what = ["--dry-run", "--ignore-installed", "--report", report.name, "--constraint", "constraints.txt", EXTRAS]
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *what], cwd=ROOT, check=True)
        found = json.loads(Path(report.name).read_text())["install"]
    packages = {}
    for each in found:
        if archive := each["download_info"].get("archive_info"):
            name, version = each["metadata"]["name"], each["metadata"]["version"]
            packages[name.lower()] = f"{name}=={version} --hash=sha256:{archive['hashes']['sha256']}\n"
    (ROOT / ".ci" / "hashes.txt").write_text(HEAD + "".join(packages[name] for name in sorted(packages)))


if __name__ == "__main__":
    main()
