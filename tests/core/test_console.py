"""Lines of a run: printed, kept back by `quiet`, or in one bar in a notebook."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest

from cggm_ray.core.console import print_result, quiet, show

LINES = (
    "standardise auto: on",
    "epoch 1  step 30/60  loss 2.9688",
    "epoch  1/10  loss 2.7877  valid accuracy 0.7944  (best 0.7944 at 1)",
    "epoch 2  step 30/60  loss 1.0687",
    "epoch  2/10  loss 1.0920  valid accuracy 0.9389  (best 0.9389 at 2)",
    "best epoch 2",
)


def test_quiet_leaves_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet(), quiet():
        show(LINES[0])
        print("anything else")
        print_result("the table")
        print("error", file=sys.stderr)
    with quiet(False):
        show(LINES[-1])
    assert capsys.readouterr() == ("the table\nbest epoch 2\n", "error\n")


def test_a_notebook_has_one_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    drawn = io.StringIO()
    monkeypatch.setattr(sys, "stderr", drawn)
    for line in LINES:
        show(line)
    assert capsys.readouterr().out.splitlines() == [LINES[0], LINES[-1]]
    assert "| 2/10 [" in drawn.getvalue()
    assert "best 0.9389 at 2" in drawn.getvalue()
    assert drawn.getvalue().count("\n") == 1


def test_a_terminal_has_lines(capsys: pytest.CaptureFixture[str]) -> None:
    for line in LINES:
        show(line)
    assert capsys.readouterr().out.splitlines() == list(LINES)
