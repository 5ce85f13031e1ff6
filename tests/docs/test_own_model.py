"""The two programs of docs/own-model.md, as a person would save and run them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from programs import ROOT, blocks, python

TORCHRUN = ["-m", "torch.distributed.run", "--standalone"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The code of the page, in files."""
    for name, code in zip(("two_cnns.py", "parallel.py"), blocks("own-model.md"), strict=True):
        (tmp_path / name).write_text(code)
    return tmp_path


def test_two_cnns_learn_and_the_easy_one_is_held_back(folder: Path) -> None:
    *lines, last = python(folder, "two_cnns.py").stdout.splitlines()
    numbers = [[float(number) for number in re.findall(r"\d+\.\d*", line.partition(":")[2])] for line in lines]
    assert len(numbers) == 3
    for picture, spectrum, *coefficients in numbers:
        assert picture > spectrum
        assert sum(coefficients) == pytest.approx(1.3, abs=0.02)
    assert float(last.removeprefix("test accuracy ")) > 0.9


@pytest.mark.slow
def test_two_processes_do_what_one_does(folder: Path) -> None:
    one, two = (python(folder, *TORCHRUN, "--nproc_per_node", str(count), "parallel.py").stdout for count in (1, 2))
    assert one == two
    assert re.fullmatch(r"norm of the last layer \d+\.\d{4}\n", one)


def test_five_lines_change() -> None:
    marked = re.findall(r"# ([1-5])", (ROOT / "docs" / "own-model.md").read_text().partition("## With")[0])
    assert marked == list("12345")
