"""The storage of docs/own-storage.md."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from programs import blocks, command, train


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the file of the page."""
    (code,) = blocks("own-storage.md")
    (tmp_path / "sqlite.py").write_text(code)
    return tmp_path


@pytest.mark.slow
def test_a_run_goes_through_it(folder: Path, tmp_path: Path) -> None:
    run, url, own = (
        train(folder, "--local", "--nlevels", "3"),
        f"sqlite://{tmp_path}/runs.db",
        ["--import", "sqlite.py"],
    )
    assert command(folder, "publish", str(run), url, *own).stdout == f"{url}/r\n"
    # Again, after an interrupt.
    with sqlite3.connect(tmp_path / "runs.db") as database:
        assert database.execute("DELETE FROM files WHERE key = 'r/best/model.safetensors'").rowcount == 1
    (line,) = command(folder, "fetch", f"{url}/r", "fetched", *own, code=2).stderr.splitlines()
    assert "best/model.safetensors is not there" in line
    assert not (folder / "fetched").exists()
    command(folder, "publish", str(run), url, *own)
    shutil.move(run, tmp_path / "gone")
    command(folder, "fetch", f"{url}/r", "fetched", *own)
    assert "equal to the last bit" in command(folder, "verify", "fetched").stdout
    # Another run of the same name.
    (tmp_path / "gone" / "summary.json").write_text("{}")
    (line,) = command(
        folder, "publish", str(shutil.move(tmp_path / "gone", run)), url, *own, code=2
    ).stderr.splitlines()
    assert "holds something else" in line


def test_what_it_raises_is_one_line(folder: Path, tmp_path: Path) -> None:
    (line,) = command(
        folder, "fetch", f"sqlite://{tmp_path}/no/runs.db/r", "x", "--import", "sqlite.py", code=1
    ).stderr.splitlines()
    assert "unable to open database file" in line
    (line,) = command(folder, "fetch", "sqlit://x/r", "x", "--import", "sqlite.py", code=2).stderr.splitlines()
    assert "did you mean sqlite?" in line
