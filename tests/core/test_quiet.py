"""Lines of a run: printed, kept back by `quiet`, or in one bar in a notebook."""

from __future__ import annotations

import io
import json
import sys
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from cggm_ray.core.console import JSON, Form, print_result, printing, quiet, show
from cggm_ray.engine.tracking import LOG, Console

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


def test_lines_of_json_have_time_run_rank_and_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with printing(False, Form(JSON, "first", 0)):
        print("two\nlines")
        said = Console(tmp_path)
        said.step = 7
        said.say("epoch 1/2  loss 0.5")
    print("as ever")
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "as ever"
    found = [json.loads(line) for line in lines]
    assert [line["message"] for line in found] == ["two", "lines", "epoch 1/2  loss 0.5"]
    assert [line["step"] for line in found] == [None, None, 7]
    assert all(line["run"] == "first" and line["rank"] == 0 for line in found)
    assert all(datetime.fromisoformat(line["time"]).tzinfo is not None for line in found)
    # The driver prints what a worker wrote as it is.
    assert (tmp_path / LOG).read_text().splitlines() == lines[-1:]


def test_a_quiet_command_prints_its_result_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    with printing(True, Form(JSON, "first")):
        print("not this")
        print_result("a\nb")
    assert [json.loads(line)["message"] for line in capsys.readouterr().out.splitlines()] == ["a", "b"]
