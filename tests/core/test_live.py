"""The bar of a terminal: who sees it, and that files and pipes do not."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest

from cggm_ray.commands.cli import main
from cggm_ray.core.console import Form, printing
from cggm_ray.core.live import FILE, Clock, bar, from_file, looked_at, moved, to_file, told_to
from cggm_ray.engine.configuration import Config
from conftest import SMALL


class Terminal(io.StringIO):
    """A standard output that says of itself that it is a terminal."""

    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Puts a terminal in the place of standard output; in a fixture, pytest would take it away again."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    made = Terminal()
    monkeypatch.setattr(sys, "stdout", made)
    return made


def test_a_run_moves_the_bar_and_its_log_has_plain_lines(
    small_pickle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = terminal(monkeypatch)
    places = ["--data_path", str(small_pickle), "--storage_path", str(tmp_path), "--name", "run"]
    assert main(Config(), ["--local", *SMALL, *places]) == 0
    shown = made.getvalue()
    assert "training" in shown
    assert re.search(r"epoch 1/2  step 1/5  loss \d", shown)
    assert "coefficients  text" in shown
    assert "\x1b[" in shown
    log = (tmp_path / "run" / "train.log").read_text()
    assert "\x1b" not in log
    assert "coefficients  text" not in log
    # A line is printed whole, however long it is.
    assert f"best checkpoint:    {tmp_path / 'run' / 'best'}\n" in shown
    assert sys.stdout is made
    assert not looked_at()


def test_there_is_no_bar_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(monkeypatch)
    with printing(True, Form()), bar():
        assert not looked_at()
    with printing(False, Form("json", "run")), bar():
        assert not looked_at()
    with bar():
        assert looked_at()
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with bar():
        assert not looked_at()
        assert not Clock().due()


def test_a_worker_tells_the_driver_by_a_file(tmp_path: Path) -> None:
    with told_to(to_file(tmp_path)):
        moved("test", 3, 8, "three of eight")
    found = []
    with told_to(found.append):
        from_file(tmp_path)
        (tmp_path / FILE).write_text("{")
        from_file(tmp_path)
        (tmp_path / FILE).unlink()
        from_file(tmp_path)
    assert [(each.phase, each.done, each.total, each.text) for each in found] == [("test", 3, 8, "three of eight")]
