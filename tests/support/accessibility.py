"""axe-core, which says what a page keeps from people who use a keyboard or a screen reader.

It comes from npm (`npm pack axe-core`), or from the file that CGGM_AXE names.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from browser import Browser

AXE = "axe-core@4.14.1"
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The script of axe-core; skips where neither a file nor npm has it."""
    if given := os.environ.get("CGGM_AXE"):
        return Path(given).read_text()
    folder = tmp_path_factory.mktemp("axe")
    if shutil.which("npm") is None:
        pytest.skip("no npm for axe-core (or set CGGM_AXE to axe.min.js)")
    done = subprocess.run(["npm", "pack", AXE], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"npm has no {AXE}: {done.stderr[-200:]}")
    with tarfile.open(next(folder.glob("*.tgz"))) as packed:
        member = packed.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()


def serious_findings(browser: Browser, axe: str) -> list[list[str]]:
    """What axe-core finds serious in the page that the browser shows: impact, rule and an element."""
    browser.value(f"{axe};1")
    run = "axe.run(document, {resultTypes: ['violations']})"
    found = json.loads(
        browser.wait(f"{run}.then(r => JSON.stringify(r.violations.map(v => [v.impact, v.id, v.nodes[0].html])))")
    )
    return [finding for finding in found if finding[0] in SERIOUS]


def drawn(browser: Browser) -> None:
    """Waits until the page is drawn."""
    browser.wait("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
