"""Runs the notebooks of the documentation, each in an empty folder, and keeps what their cells print.

python docs/theme/execute.py [NOTEBOOK ...]
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "examples").glob("*.ipynb"))


def execute(path: Path) -> None:
    """Writes the notebook anew with what its cells print; bars and warnings are left out, because they always differ."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            printed = "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
            text = without_places(printed, folder)
            cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)] if text else []
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
    nbformat.write(notebook, path)


def without_places(text: str, folder: str) -> str:
    """Returns a text without what is of this machine: the folder, and the command of the kernel."""
    lines = text.replace(f"{folder}/", "").splitlines(keepends=True)
    return "".join(line for line in lines if "ipykernel_launcher" not in line)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(ROOT))
    for notebook in map(Path, sys.argv[1:]) if sys.argv[1:] else NOTEBOOKS:
        execute(notebook)
