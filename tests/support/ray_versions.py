"""Which minor versions of Ray this package works with: tests in an environment of its own for each, and a table of the results.

    python tests/support/ray_versions.py [--first 2.51] [--last 2.60] [--areas search,job] [--page docs/versions.md]

Every environment holds the newest patch of one minor version of Ray and what that version needs in other versions than those
of the environment that runs this script, which gives everything else. The versions are tested one after the other. The
environments and results.json stay in --folder, so a script that was stopped goes on; delete it to begin anew. Ray's sessions
lie there too, so that no other cluster of this machine is joined.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
EXTRAS = "data,default,serve,train,tune"
OTHERS = ["protobuf<7"]
"""What Ray does not ask for, but needs: Ray Serve read an attribute of protobuf 6 that newer ones do not have."""
BEGIN, END = "<!-- table of tests/support/ray_versions.py -->", "<!-- end of the table -->"
AREAS = {
    "two workers": ["tests/ray/test_train_on_ray.py", "-k", "two_workers"],
    "one worker": ["tests/ray/test_train_on_ray.py", "-k", "one_worker or error"],
    "statistics": ["tests/ray/test_statistics_on_ray.py", "-m", "not slow"],
    "search": ["tests/studies/test_tune.py", "-k", "leaves"],
    "service": ["tests/ray/test_serve.py", "-k", "answers"],
    "job": ["tests/ray/test_jobs.py", "-k", "runs_to_the_end"],
    "joining a cluster": ["tests/ray/test_connect.py", "-m", "not slow"],
}
"""What is tested: a name for a column, and the arguments of pytest."""


def newest_patches(first: tuple[int, int], last: tuple[int, int]) -> list[str]:
    """Returns the newest patch of each minor version that pip finds, the oldest minor version first."""
    command = [sys.executable, "-m", "pip", "index", "versions", "ray"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    versions = [tuple(map(int, found)) for found in re.findall(r"\b(\d+)\.(\d+)\.(\d+)\b", listed)]
    newest = {version[:2]: version for version in sorted(versions) if first <= version[:2] <= last}
    return [".".join(map(str, version)) for version in newest.values()]


def environment(version: str, folder: Path) -> Path:
    """Makes an environment with this version of Ray and returns its Python. pip's error is raised as RuntimeError."""
    python = folder / "bin" / "python"
    if not (folder / "bin" / "ray").exists():
        venv.create(folder, with_pip=True)
        own = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
        # Searched after the environment's own packages.
        (own / "lender.pth").write_text(sysconfig.get_path("purelib") + "\n")
        for what in (["--no-deps", "--ignore-installed", f"ray=={version}"], [f"ray[{EXTRAS}]=={version}", *OTHERS]):
            done = subprocess.run([python, "-m", "pip", "install", "--quiet", *what], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return python


def outcome(python: Path, arguments: list[str]) -> dict[str, Any]:
    """Returns how many tests passed and which failed, with the first line of each error."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        sessions = str(python.parents[2])
        path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": sessions}
        command = [
            python,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            f"--junitxml={report}",
            *arguments,
        ]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        if not report.exists():
            return {"passed": 0, "failed": {"start": (done.stdout + done.stderr).strip().splitlines()[-1]}}
        failed, passed = {}, 0
        for case in ElementTree.parse(report).iter("testcase"):
            problem = next((child for child in case if child.tag in ("failure", "error")), None)
            if problem is not None:
                failed[case.get("name", "")] = (problem.get("message") or "").strip().splitlines()[:1]
            else:
                passed += case.find("skipped") is None
        return {"passed": passed, "failed": failed}


def table(results: dict[str, dict[str, Any]]) -> str:
    """Returns the table as markdown: passed of all tests by version and area."""
    lines = ["| Ray | " + " | ".join(AREAS) + " |", "|---" * (len(AREAS) + 1) + "|"]
    for version, areas in results.items():
        cells = []
        for area in AREAS:
            found = areas.get(area)
            if found is None:
                cells.append("not installed" if "install" in areas else "not run")
                continue
            total = found["passed"] + len(found["failed"])
            cells.append(f"{found['passed']} of {total}")
        lines.append(f"| {version} | " + " | ".join(cells) + " |")
    failed = [
        f"Ray {version}, {area}, {name}: {' '.join(message)}"
        for version, areas in results.items()
        for area in AREAS
        for name, message in areas.get(area, {}).get("failed", {}).items()
    ]
    return "\n\n".join(["\n".join(lines), *failed])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", default="2.51")
    parser.add_argument("--last", default="2.60")
    parser.add_argument("--areas", default=",".join(AREAS), help="what is tested")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "ray-versions")
    parser.add_argument("--page", type=Path, help="whose table is written anew")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    file = args.folder / "results.json"
    results: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    first, last = (tuple(map(int, text.split("."))) for text in (args.first, args.last))
    for version in newest_patches(first, last):
        known = results.setdefault(version, {})
        for area in args.areas.split(","):
            if area in known or "install" in known:
                continue
            try:
                known[area] = outcome(environment(version, args.folder / version), AREAS[area])
            except RuntimeError as error:
                known["install"] = str(error)
            print(version, area, known.get(area, known.get("install")), flush=True)
            file.write_text(json.dumps(results, indent=1))
    results = {
        version: results[version] for version in sorted(results, key=lambda text: list(map(int, text.split("."))))
    }
    print(table(results))
    if args.page:
        before, _, rest = args.page.read_text().partition(BEGIN)
        args.page.write_text(f"{before}{BEGIN}\n\n{table(results)}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
