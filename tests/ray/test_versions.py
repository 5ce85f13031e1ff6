"""Versions of Ray that are not supported end a command in one line; the range is the same everywhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from cggm_ray.commands.cli import main
from cggm_ray.core.errors import UsageError
from cggm_ray.distributed import FIRST, LAST, check_ray
from cggm_ray.distributed.train import launch
from cggm_ray.engine.configuration import Config
from conftest import SMALL

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("version", ["1.13.0", "2.9.3", "2.50.1", "2.61.0", "3.0.0.dev0"])
def test_other_versions_are_refused(version: str) -> None:
    with pytest.raises(
        UsageError, match=rf"ray: found version {re.escape(version)}; expected 2.51 to 2.60: pip install"
    ) as error:
        check_ray(version)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("version", ["2.51.0", "2.55.1", "2.60.0", "2.60.0rc1"])
def test_supported_versions_are_taken(version: str) -> None:
    check_ray(version)


def test_the_range_is_that_of_the_package_and_of_the_page() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *project["optional-dependencies"]["cluster"],
        *project["optional-dependencies"]["serve"],
    ]
    ranges = {each.partition("]")[2] for each in wanted if each.startswith("ray[")}
    assert ranges == {f">={FIRST[0]}.{FIRST[1]},<{LAST[0]}.{LAST[1] + 1}"}
    table = (ROOT / "docs" / "versions.md").read_text().partition("## torch")[0]
    passed = {
        tuple(map(int, found)) for found in re.findall(r"^\| (\d+)\.(\d+)\.\d+ \| 1 of 1 \|", table, re.MULTILINE)
    }
    assert passed == {(2, minor) for minor in range(FIRST[1], LAST[1] + 1)}


def test_groups_that_grow_need_a_ray_that_has_them(
    small_pickle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class OlderConfig:
        def __init__(self, num_workers: int = 1) -> None:
            self.num_workers = num_workers

    monkeypatch.setattr(launch, "ScalingConfig", OlderConfig)
    argv = [*SMALL, "--data_path", str(small_pickle), "--storage_path", str(tmp_path / "runs"), "--workers", "1:2"]
    assert main(Config(), argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: workers: found 1:2 with Ray ")
    assert not (tmp_path / "runs").exists()
