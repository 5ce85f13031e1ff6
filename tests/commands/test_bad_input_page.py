"""Every message in docs/bad-input.md is the one that the command line gives, in one line, with the exit code it has."""

from __future__ import annotations

from pathlib import Path

import pytest
from bad_input_page import PAGE, cell, rows
from bad_inputs import CASES, SECTIONS, Case

from conftest import sets


def page_rows() -> dict[tuple[str, str], str]:
    """The message of every row of the page, by section and what is wrong."""
    found, section = {}, ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("### "):
            section = line.removeprefix("### ")
        elif line.startswith("| ") and section:
            title, _, message = line.removeprefix("| ").removesuffix(" |").partition(" | ")
            found[section, title] = message
    return {place: message for place, message in found.items() if place[1] != "what is wrong"}


PAGE_ROWS = page_rows()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.section}: {case.title}")
def test_the_program_says_what_the_page_says(tmp_path: Path, case: Case) -> None:
    code, said = case.message(tmp_path)
    assert code == case.code
    assert said.endswith("\n")
    assert len(said.splitlines()) == 1
    assert cell(said) == PAGE_ROWS[case.section, case.title]
    if case.section != "checkpoints":
        assert not (tmp_path / "runs" / "run").exists()
        assert not sets(tmp_path / "runs" / "shards")
    assert not (tmp_path / "executed").exists()


def test_page_and_cases_are_the_same() -> None:
    assert list(PAGE_ROWS) == [
        (case.section, case.title) for section in SECTIONS for case in CASES if case.section == section
    ]
    assert len({(case.section, case.title) for case in CASES}) == len(CASES) >= 40


def test_no_message_shows_more_than_it_needs() -> None:
    """No arrays, no environment: a message is short, and holds no value of the data but the one that is wrong."""
    assert all(len(message) < 500 for message in PAGE_ROWS.values())
    assert "array(" not in "".join(PAGE_ROWS.values())


def test_rows_escape_what_markdown_takes_for_a_column() -> None:
    case = CASES[0]
    assert rows(case.section, {(c.section, c.title): "a|b" for c in CASES}).count("`a\\|b`") == sum(
        c.section == case.section for c in CASES
    )
