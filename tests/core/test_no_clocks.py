"""Tests wait for events: no test reads a clock, sleeps, or gives a process so many seconds. `waiting.py` is for all of them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = next(parent for parent in Path(__file__).parents if parent.name == "tests")
CLOCKS = {"monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time", "sleep", "time", "time_ns"}
LIMITED = {"call", "check_call", "check_output", "communicate", "join", "run", "wait"}
"""Functions that end a wait after the seconds that they are given."""
ALLOWED = {("waiting.py", "sleep"), ("raylets.py", "wait"), ("faulty_store.py", "sleep")}
"""The helper itself; the end of a cluster, of which nothing is expected any more; and a store that shall be slow."""


def timed(tree: ast.AST) -> list[tuple[int, str]]:
    """Lines and names of what reads a clock, or waits for a number of seconds."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            found += [(node.lineno, name.name) for name in node.names]
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, of = node.func.attr, node.func.value
        if isinstance(of, ast.Name) and of.id == "time" and name in CLOCKS:
            found.append((node.lineno, name))
        given = [each.value for each in node.keywords if each.arg == "timeout"]
        # Popen.wait and Thread.join take the seconds without a name too; the join of a text takes texts.
        if name in {"wait", "join"}:
            given += [
                each for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, int | float)
            ]
        if name in LIMITED and any(not (isinstance(each, ast.Constant) and each.value is None) for each in given):
            found.append((node.lineno, name))
    return found


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: path.name)
def test_no_test_depends_on_a_clock(path: Path) -> None:
    found = [(line, name) for line, name in timed(ast.parse(path.read_text())) if (path.name, name) not in ALLOWED]
    assert not found, f"{path.name}: wait for an event, see waiting.py: {found}"


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("import time\ntime.sleep(3)\ntime.monotonic()", ["sleep", "monotonic"]),
        ("from time import perf_counter", ["perf_counter"]),
        ("process.wait(timeout=60)\nprocess.wait(60)\nthread.join(2.5)", ["wait", "wait", "join"]),
        ("subprocess.run(command, timeout=limit)", ["run"]),
        ("process.wait()\n', '.join(names)\nsubprocess.run(command, timeout=None)\nrecord.time()", []),
    ],
)
def test_the_check_sees_what_it_is_for(code: str, names: list[str]) -> None:
    assert [name for _, name in timed(ast.parse(code))] == names
