"""The site of the documentation: it is built without a warning, and a page loads nothing from another server."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from accessibility import axe, drawn, serious_findings
from browser import Browser
from programs import ROOT

import cggm_ray
from cggm_ray.commands.completion import subcommands
from cggm_ray.engine.configuration import Config
from cggm_ray.strategies.registry import STRATEGIES

pytest.importorskip("mkdocs", reason="needs pip install '.[docs]'")
__all__ = ["axe"]
ASSETS = runpy.run_path(str(ROOT / "docs" / "theme" / "assets.py"))


class Loaded(HTMLParser):
    """Collects what a browser loads by itself, and the ids."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.urls.append(values.get("src") or "")
        if tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload", "preconnect", "modulepreload"):
            self.urls.append(values.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site, with scripts and fonts where they were fetched before. The build uses no network."""
    folder = tmp_path_factory.mktemp("site")
    without = {} if ASSETS["complete"]() else {"DOCS_WITHOUT_ASSETS": "1"}
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1", "no_proxy": "*"} | without
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        found = Loaded()
        found.feed(page.read_text())
        assert found.urls, page
        assert not [url for url in found.urls if re.match(r"(https?:)?//", url)], page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//", style.read_text()), style


def test_pages_have_what_the_code_has(site: Path) -> None:
    configuration = (site / "configuration.html").read_text()
    assert not [field.name for _, field in Config().fields() if f"<code>{field.name}</code>" not in configuration]
    commands, api = (site / "commands.html").read_text(), (site / "api.html").read_text()
    from cggm_ray.__main__ import build_commands

    assert not [name for name in subcommands(build_commands()).choices if f"cggm {name}" not in commands]
    assert not [name for name in cggm_ray.__all__ if not re.search(rf'id="[\w.]+\.{name}"', api)]


@pytest.mark.slow
def test_everybody_can_read_it(site: Path, browser: Browser, axe: str) -> None:
    """Every page fits a telephone and a screen, light and dark, and axe-core has no serious finding."""
    # 404.html is for a server: its links begin at the root.
    for page in sorted(set(site.rglob("*.html")) - {site / "404.html"}):
        for scheme in ("light", "dark"):
            for width in (390, 1280):
                browser.look(width, scheme)
                browser.open(page)
                drawn(browser)
                assert browser.value("document.documentElement.scrollWidth <= window.innerWidth"), (page.name, width)
            assert serious_findings(browser, axe) == [], (page.name, scheme)


def test_the_notebook_is_a_page_with_its_outputs(site: Path) -> None:
    page = (site / "examples" / "python.html").read_text()
    assert 'class="output"' in page
    assert "run.predict" in re.sub("<[^>]+>", "", page)


def test_another_byte_in_a_package_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checksums decide, not the server: a registry of this test's own, as files."""
    for path, _ in ASSETS["PACKAGES"]:
        file = tmp_path / "registry" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"another package")
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", (tmp_path / "registry").as_uri())
    with pytest.raises(ValueError, match="found SHA-512"):
        ASSETS["fetch"](tmp_path / "assets")
    assert not (tmp_path / "assets").exists()


def test_every_strategy_has_its_formula() -> None:
    text = (ROOT / "docs" / "formulas.md").read_text()
    named = re.findall(r"^(?:\*\*|- )`([\w-]+)`|\*\*`([\w-]+)`\*\* adds|and `([\w-]+)` leaves", text, re.MULTILINE)
    assert {name for names in named for name in names if name} == set(STRATEGIES.names())
    for family in text.split("\n## ")[2:]:
        for part in re.split(r"^\*\*`", family, flags=re.MULTILINE)[1:]:
            assert "$$" in part or "$L = " in part, part


@pytest.mark.skipif(shutil.which("node") is None or not ASSETS["complete"](), reason="needs node, and make docs before")
def test_katex_reads_every_formula() -> None:
    """With errors for what KaTeX only warns of."""
    texts = [
        re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL) for page in (ROOT / "docs").glob("*.md")
    ]
    found = [
        formula
        for text in texts
        for pair in re.findall(r"\$\$(.*?)\$\$|\$([^$\n][^$]*)\$", text, re.DOTALL)
        for formula in pair
    ]
    formulas = [formula for formula in found if formula]
    assert len(formulas) > 100
    script = (
        f"const katex = require({json.dumps(str(ASSETS['FOLDER'] / 'katex.min.js'))});"
        "for (const each of JSON.parse(require('fs').readFileSync(0, 'utf8')))"
        " katex.renderToString(each, { displayMode: true, strict: 'error' });"
    )
    done = subprocess.run(["node", "-e", script], input=json.dumps(formulas), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
