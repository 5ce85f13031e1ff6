"""Commands in the documents are commands of this package: they parse, their files exist, and their links lead somewhere."""

from __future__ import annotations

import argparse
import importlib
import re
import runpy
import shlex
from collections import Counter
from pathlib import Path

import pytest
from programs import ROOT, blocks, python

from cggm_ray.__main__ import build_commands
from cggm_ray.__main__ import main as console
from cggm_ray.commands.cli import main, parse
from cggm_ray.commands.flags import build_parser
from cggm_ray.commands.recipe import ARGUMENTS
from cggm_ray.engine.tracking import read_metrics
from conftest import SMALL

PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")),
    *sorted((ROOT / "docs").glob("*.md")),
]
NOT_RUN = {
    **{"ray": "a cluster", "curl": "a service", "export": "a store or a cluster"},
    **{"pip": "installs", "make": "installs", "cd": "a folder"},
}
"""Programs whose commands are shown and not run, and what they need or do; only what they give to this package is parsed."""
ELLIPSIS = "[...]"
"""Stands for the flags of the rows of a table."""


def commands(page: Path) -> list[str]:
    """What calls Python, in indented lines with those that continue them and within a text; comments are left out."""
    text = page.read_text().replace("\\\n", " ")
    found = re.findall(r"^    (python \S.*?)(?:\s+#.*)?$", text, re.MULTILINE)
    # The console program is a module, too.
    found += ["python -m cggm_ray " + line for line in re.findall(r"^    cggm (\S.*?)(?:\s+#.*)?$", text, re.MULTILINE)]
    found += re.findall(r"`(python (?:pipelines|benchmarks)/[^`]+)`", text)
    found += re.findall(r"^    ray job submit .*? -- (python \S.*?)(?:\s+#.*)?$", text, re.MULTILINE)
    return [command.replace(ELLIPSIS, "") for command in found]


def parses(flags: list[str]) -> None:
    """Raises where a command about runs has other arguments; their files need not be there."""
    parsers = [build_commands()]
    for parser in parsers:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
            elif action.type is not int:
                action.type = None
    parsers[0].parse_args(flags)


def identity(value: Path) -> str:
    return value.name


@pytest.mark.parametrize("page", PAGES, ids=identity)
def test_commands_parse(page: Path) -> None:
    for command in commands(page):
        _, target, *flags = shlex.split(command)
        # What imports a program of its page runs in a process of its own, below.
        if target == "-m":
            assert flags[0] == "cggm_ray", command
            if "--net" in flags:
                continue
            if flags[1] in ARGUMENTS:
                assert console([*flags[1:], "--dry_run"]) == 0, command
            else:
                parses(flags[1:])
            continue
        if target.startswith(("pipelines/", "benchmarks/")):
            assert (ROOT / target).is_file(), command
        if target.startswith("pipelines/") and not {"--help", "--import"} & set(flags):
            recipe = runpy.run_path(str(ROOT / target))["RECIPE"]
            config = flags.index("--config") if "--config" in flags else None
            if config is not None and not (ROOT / flags[config + 1]).exists():
                # A file that a search leaves behind.
                del flags[config : config + 2]
            parsed = parse(recipe, flags)
            assert parsed.tune is None or (ROOT / parsed.tune).is_file(), command


@pytest.mark.parametrize("page", [page for page in PAGES if page.name.startswith("own-")], ids=identity)
def test_commands_with_programs_of_the_page_parse(page: Path, tmp_path: Path) -> None:
    for command in commands(page):
        _, target, *flags = shlex.split(command)
        if "--net" in flags:
            file, _, function = flags[flags.index("--net") + 1].partition(":")
            (program,) = [
                block for block in blocks(page.name) if f"def {function}(" in block and ".register(" not in block
            ]
            (tmp_path / file).write_text(program)
            assert "dataset: mosi" in python(tmp_path, target, *flags, "--dry_run").stdout, command
        if target.startswith("pipelines/") and "--import" in flags:
            # The program stands on the page before the command that imports it.
            before = page.read_text().partition(flags[flags.index("--name") + 1] if "--name" in flags else command)[0]
            programs = [block for block in blocks(page.name) if ".register(" in block]
            shown = [program for program in programs if program.splitlines()[0] in before]
            (tmp_path / flags[flags.index("--import") + 1]).write_text((shown or programs)[-1 if shown else 0])
            assert "dataset: mosi" in python(tmp_path, str(ROOT / target), *flags, "--dry_run").stdout, command


def test_what_is_not_run_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever shows a command of another program says here why no test runs it."""
    lines = [line for page in PAGES for line in re.findall(r"^    ((?:[a-z]+) .*)$", page.read_text(), re.MULTILINE)]
    count = Counter(line.split()[0] for line in lines)
    left = {program: count[program] for program in NOT_RUN if count[program]}
    checked = sum(len(commands(page)) for page in PAGES)
    with capsys.disabled():
        print(
            f"\n{checked} commands on the pages are parsed, started with --dry_run, or run; {sum(left.values())} are not:"
        )
        print(", ".join(f"{number} {program} ({NOT_RUN[program]})" for program, number in left.items()))
    assert checked > 80
    assert not {"kubectl", "docker", "torchrun", "uv", "npm", "aws", "git"} & {*count}


@pytest.mark.parametrize("page", PAGES, ids=identity)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=identity)
def test_files_that_are_named_exist(page: Path) -> None:
    for name in re.findall(r"`((?:tests|benchmarks|cggm_ray|pipelines|tune_configs)/[\w./-]+\.\w+)", page.read_text()):
        assert (ROOT / name).exists(), name


def test_flags_of_the_migration_table_exist() -> None:
    known = set()
    for script in (ROOT / "pipelines").glob("*.py"):
        parser = build_parser(runpy.run_path(str(script))["RECIPE"])
        known |= {option for action in parser._actions for option in action.option_strings}
    table = (ROOT / "docs" / "migration.md").read_text()
    for row in re.findall(r"^\| `--.*$", table, re.MULTILINE):
        cells = row.split("|")
        # 'the same' means the flags of the first cell.
        flags = re.findall(r"--\w+", cells[2]) or re.findall(r"--\w+", cells[1])
        if "refused" not in row:
            assert set(flags) <= known, row


def test_the_quickstart_runs(tmp_path: Path) -> None:
    """Its local commands one after the other, with a smaller network."""
    storage = tmp_path / "runs"
    for command in commands(ROOT / "docs" / "quickstart.md"):
        _, script, *flags = shlex.split(command)
        recipe = runpy.run_path(str(ROOT / script))["RECIPE"]
        if "--local" in flags:
            # tests/commands/test_run_headroom.py has the runs of the head-room.
            flags += ["--headroom", "false"] if "--compare" in flags else []
            assert main(recipe, [*flags, *SMALL[:8], "--storage_path", str(storage)]) == 0, command
    assert [line["epoch"] for line in read_metrics(storage / "first")] == [1, 2, 3, 4, 5]
    assert (storage / "pair" / "comparison.md").exists()


MOVES = re.findall(
    r"^\| `(cggm_ray[\w.]+)` \| `(cggm_ray[\w.]+)` \|$", (ROOT / "docs" / "migration.md").read_text(), re.M
)


def is_there(path: str) -> bool:
    """Whether this package has a module, or a module a name, of that dotted path."""
    parts = path.split(".")
    for end in range(len(parts), 1, -1):
        file = ROOT.joinpath(*parts[:end])
        if file.with_suffix(".py").is_file() or (file / "__init__.py").is_file():
            found = importlib.import_module(".".join(parts[:end]))
            for name in parts[end:]:
                if not hasattr(found, name):
                    return False
                found = getattr(found, name)
            return True
    return False


@pytest.mark.parametrize(("before", "now"), MOVES)
def test_what_moved_is_there_now_and_not_before(before: str, now: str) -> None:
    assert is_there(now)
    # One is a folder now, and two keep their old place for scripts that import them from there.
    kept = ("cggm_ray.data.shards", "cggm_ray.data.volumes", "cggm_ray.data.augment")
    assert not is_there(before) or before in kept


def test_there_are_moves() -> None:
    assert len(MOVES) > 50


@pytest.mark.parametrize("page", PAGES[1:], ids=identity)
def test_a_page_begins_with_what_its_reader_can_do(page: Path) -> None:
    title, first, *_ = page.read_text().split("\n\n")
    assert title.startswith("# ")
    assert first.startswith("After reading this page you can ")
