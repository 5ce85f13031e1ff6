"""The tables of docs/bad-input.md, made of the messages of all cases.

PYTHONPATH=.:$(ls -d tests tests/*/ | tr '\\n' ':') python tests/support/bad_input_page.py writes the tables of the page anew.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from bad_inputs import CASES, SECTIONS

PAGE = Path(__file__).parents[2] / "docs" / "bad-input.md"


def cell(message: str) -> str:
    """A message as a table in Markdown holds it."""
    return "`" + message.rstrip("\n").replace("|", "\\|") + "`"


def rows(section: str, messages: dict[tuple[str, str], str]) -> str:
    """The table of a section."""
    lines = ["| what is wrong | message |", "|---|---|"]
    lines += [f"| {case.title} | {cell(messages[section, case.title])} |" for case in CASES if case.section == section]
    return "\n".join(lines)


def write_page() -> None:
    """Puts the messages into the page, between the heading of each section and the next one."""
    messages = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            _, messages[case.section, case.title] = case.message(Path(folder))
    before, _, _ = PAGE.read_text().partition("<!-- tables -->")
    tables = "\n\n".join(f"### {section}\n\n{rows(section, messages)}" for section in SECTIONS)
    PAGE.write_text(f"{before}<!-- tables -->\n\n{tables}\n")


if __name__ == "__main__":
    print(json.dumps({section: sum(case.section == section for case in CASES) for section in SECTIONS}))
    write_page()
