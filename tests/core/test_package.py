"""The digest of the package, by which hosts with other code are found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cggm_ray.core import package
from cggm_ray.core.errors import UsageError
from cggm_ray.core.package import check_package, package_digest


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of two files that stands for this one."""
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "one.py").write_text("x = 1\n")
    (tmp_path / "two.py").write_text("y = 2\n")
    monkeypatch.setattr(package, "ROOT", tmp_path)
    return tmp_path


def test_it_is_that_of_the_files(copy: Path) -> None:
    digest = package_digest.__wrapped__
    before = digest()
    (copy / "core" / "notes.txt").write_text("not code")
    assert digest() == before
    (copy / "two.py").write_text("y = 3\n")
    changed = digest()
    assert changed != before
    (copy / "two.py").write_text("y = 2\n")
    assert digest() == before
    # The same lines under another name.
    (copy / "two.py").rename(copy / "three.py")
    assert digest() not in (before, changed)


def test_another_process_finds_the_same() -> None:
    program = "from cggm_ray.core.package import package_digest; print(package_digest())"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == package_digest()


def test_other_code_is_one_line() -> None:
    check_package(package_digest(), "host1")
    with pytest.raises(
        UsageError, match=r"host host1 has other code of cggm_ray \(found \w{12}, expected abc "
    ) as error:
        check_package("abc", "host1")
    assert "\n" not in str(error.value)
