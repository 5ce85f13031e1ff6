"""The picture, the tables and the way of a sample in docs/architecture.md, against the code."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import ROOT

PACKAGE = ROOT / "cggm_ray"
PAGE = (ROOT / "docs" / "architecture.md").read_text()
STATIONS = re.findall(r"^\| \d+ \|.*\| `(\S+)` \| `(\S+)` \|$", PAGE, re.MULTILINE)
ARROWS = set(re.findall(r"^    (\w+) --> (\w+)$", PAGE, re.MULTILINE))


def imported(file: Path) -> Iterator[str]:
    """The rooms that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            package, *rest = name.split(".")
            if package == "cggm_ray" and rest:
                yield rest[0]


def reachable(start: str, arrows: set[tuple[str, str]]) -> set[str]:
    found: set[str] = set()
    ends = {end for begin, end in arrows if begin == start}
    while ends:
        found |= ends
        ends = {end for begin, end in arrows if begin in ends} - found
    return found


def test_the_picture_has_the_arrows_of_the_imports() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    imports = {
        (room, other)
        for room in rooms
        for file in (PACKAGE / room).rglob("*.py")
        for other in imported(file)
        if other in rooms - {room}
    }
    assert imports >= ARROWS
    for room, other in imports:
        assert other in reachable(room, ARROWS), f"{room} imports {other}"
    for room, other in ARROWS:
        assert other not in reachable(room, ARROWS - {(room, other)}), f"{room} --> {other} is implied"


def test_the_table_has_the_rooms_of_the_contracts() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    (layers,) = [contract["layers"] for contract in tools["importlinter"]["contracts"] if contract["type"] == "layers"]
    there = [layer for layer in layers if (PACKAGE / layer).is_dir()]
    table = re.findall(r"^\| `(\w+)` \|", PAGE.partition("## The way")[0], re.MULTILINE)
    assert sorted(table) == sorted(there)


@pytest.mark.parametrize(("file", "name"), STATIONS)
def test_a_station_exists(file: str, name: str) -> None:
    body: list[ast.stmt] = ast.parse((ROOT / file).read_text()).body
    for part in name.split("."):
        (found,) = [each for each in body if isinstance(each, ast.FunctionDef | ast.ClassDef) and each.name == part]
        body = found.body


def test_there_are_stations() -> None:
    assert len(STATIONS) >= 15
