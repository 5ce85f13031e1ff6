"""What MkDocs does not know by itself: notebooks as pages, pages made from the code, scripts and fonts from elsewhere."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))

import assets
import made

log = logging.getLogger("mkdocs.hooks.cggm_ray")
MADE = {"commands.md": made.commands, "configuration.md": made.configuration, "api.md": made.api}


class Notebook(File):
    """A notebook, which is a page and not a file to copy."""

    def is_documentation_page(self) -> bool:
        """Says so."""
        return True


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds pages that are made from the code, notebooks, scripts and fonts."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            files.remove(file)
            files.append(Notebook(file.src_uri, config.docs_dir, config.site_dir, config.use_directory_urls))
    for name, make in MADE.items():
        files.append(File.generated(config, name, content=make()))
    if assets.complete():
        for name in assets.NAMES:
            copied = File.generated(config, f"bundled/{name}", abs_src_path=str(assets.FOLDER / name))
            files.append(copied)
    elif os.environ.get("DOCS_WITHOUT_ASSETS") != "1":
        log.warning("scripts and fonts are missing: run python docs/theme/assets.py")
    return files


def on_page_read_source(page: Page, config: MkDocsConfig) -> str | None:
    """Returns a notebook as markdown: texts, code, and under each cell what it printed."""
    if not page.file.src_uri.endswith(".ipynb"):
        return None
    notebook: Any = nbformat.read(page.file.abs_src_path, as_version=4)
    parts = []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        parts += [found for output in cell.outputs if (found := _output(output))]
    return "\n\n".join(parts)


def _output(output: Any) -> str:
    """Returns an output of a cell as markdown."""
    if output.output_type == "stream":
        return f'<div class="output" markdown>\n\n```text\n{output.text.rstrip()}\n```\n\n</div>'
    data = output.get("data", {})
    if "image/png" in data:
        image = f"data:image/png;base64,{data['image/png'].strip()}"
        return f'<p class="output"><img alt="Output of the cell above" src="{image}"></p>'
    if "text/html" in data:
        return f'<div class="output">{data["text/html"]}</div>'
    return f"```text\n{data['text/plain']}\n```" if "text/plain" in data else ""
