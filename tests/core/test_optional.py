"""Packages that are not installed: a run that needs one says which command installs it, the others do without."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cggm_ray.core.optional import MissingPackageError, check_installed, is_installed, require
from conftest import SMALL

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OPTIONAL = (
    "h5py",
    "nibabel",
    "PIL",
    "transformers",
    "tensorboard",
    "mlflow",
    "wandb",
    "optuna",
    "scipy",
    "sklearn",
    "av",
    "soundfile",
)


def run_without(packages: tuple[str, ...], arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """A pipeline in a process that cannot import some packages."""
    blocked = f"sys.modules.update(dict.fromkeys({packages!r}))"
    script = f"import runpy, sys\n{blocked}\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    script = f"import sys\nsys.argv = sys.argv[1:]\n{script}"
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize(
    ("pipeline", "package", "line"),
    [
        ("brats", "h5py", "brats: h5py is not installed; pip install 'cggm-ray[brats]'"),
        ("iemocap", "h5py", "iemocap: h5py is not installed; pip install 'cggm-ray[iemocap]'"),
        ("food101", "PIL", "food101: PIL is not installed; pip install 'cggm-ray[food101]'"),
        ("food101", "transformers", "food101: transformers is not installed; pip install 'cggm-ray[food101]'"),
        ("table", "sklearn", "table: sklearn is not installed; pip install 'cggm-ray[table]'"),
    ],
)
def test_a_pipeline_names_what_it_lacks_before_any_work(pipeline: str, package: str, line: str, tmp_path: Path) -> None:
    done = run_without((package,), [f"pipelines/{pipeline}.py", "--local", "--storage_path", str(tmp_path / "runs")])
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"error: {line}"]
    assert not list(tmp_path.rglob("config.yaml"))


def test_case_folders_need_nibabel_alone(tmp_path: Path) -> None:
    case = tmp_path / "data" / "case_1"
    case.mkdir(parents=True)
    for name in ("flair", "t1ce", "t1", "t2", "seg"):
        (case / f"case_1_{name}.nii.gz").touch()
    arguments = ["pipelines/brats.py", "--local", "--data_path", str(tmp_path / "data")]
    done = run_without(("nibabel", "h5py"), [*arguments, "--storage_path", str(tmp_path / "runs")])
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: brats: nibabel is not installed; pip install 'cggm-ray[brats]'"]


@pytest.mark.parametrize("tracker", ["tensorboard", "mlflow", "wandb"])
def test_a_tracker_that_was_asked_for(tracker: str, small_pickle: Path, tmp_path: Path) -> None:
    arguments = ["pipelines/mosi.py", "--local", "--data_path", str(small_pickle), "--trackers", tracker]
    done = run_without((tracker,), [*arguments, "--storage_path", str(tmp_path / "runs")])
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: trackers: {tracker} is not installed; pip install 'cggm-ray[{tracker}]'"
    ]


def test_a_comparison_needs_scipy(small_pickle: Path, tmp_path: Path) -> None:
    arguments = ["pipelines/mosi.py", "--local", "--data_path", str(small_pickle), "--compare", "none,cggm"]
    done = run_without(("scipy",), [*arguments, "--storage_path", str(tmp_path / "runs")])
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: compare: scipy is not installed; pip install 'cggm-ray[compare]'"]
    assert not (tmp_path / "runs").exists()


def test_head_room_names_scikit_learn_before_training(small_pickle: Path, tmp_path: Path) -> None:
    arguments = ["pipelines/mosi.py", "--local", "--data_path", str(small_pickle), "--headroom"]
    done = run_without(("sklearn",), [*arguments, "--storage_path", str(tmp_path / "runs")])
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: headroom: sklearn is not installed; pip install 'cggm-ray[baselines]'"]
    assert not (tmp_path / "runs").exists()


def test_a_comparison_without_scikit_learn_leaves_simple_models_out(small_pickle: Path, tmp_path: Path) -> None:
    places = ["--data_path", str(small_pickle), "--storage_path", str(tmp_path / "runs"), "--name", "c"]
    small = [flag for flag in SMALL if flag not in ("--headroom", "false", "--report")]
    flags = ["--local", *places, *small, "--report", "false", "--compare", "none,cggm", "--num_epochs", "1"]
    done = run_without(("sklearn",), ["pipelines/mosi.py", *flags])
    assert done.returncode == 0, done.stderr
    assert "scikit-learn is not installed; pip install 'cggm-ray[baselines]'" in done.stdout
    assert "ridge regression" not in done.stdout
    assert (tmp_path / "runs" / "c" / "headroom.json").exists()


def test_a_search_by_optuna(small_pickle: Path, tmp_path: Path) -> None:
    search = tmp_path / "search.yaml"
    search.write_text("searcher: optuna\ntrials: 2\nspace:\n  rho: {uniform: [0.5, 1.5]}\n")
    arguments = ["pipelines/mosi.py", "--data_path", str(small_pickle), "--tune", str(search)]
    done = run_without(("optuna",), [*arguments, "--storage_path", str(tmp_path / "runs")])
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines() == ["error: searcher: optuna is not installed; pip install 'cggm-ray[optuna]'"]


def test_a_run_that_needs_none_of_them_does_without(small_pickle: Path, tmp_path: Path) -> None:
    arguments = ["pipelines/mosi.py", "--local", "--data_path", str(small_pickle), *SMALL, "--num_epochs", "1"]
    done = run_without(OPTIONAL, [*arguments, "--storage_path", str(tmp_path / "runs")])
    assert done.returncode == 0, done.stderr
    assert "best epoch 1" in done.stdout


def test_require(monkeypatch: pytest.MonkeyPatch) -> None:
    assert require("importlib.metadata", extra="h5", purpose="this") is importlib.metadata
    with pytest.raises(MissingPackageError, match=r"^this: no_such is not installed; pip install 'cggm-ray\[h5\]'$"):
        require("no_such.part", extra="h5", purpose="this")
    check_installed("json", "numpy", extra="h5", purpose="this")
    with pytest.raises(MissingPackageError, match="no_such"):
        check_installed("json", "no_such", extra="h5", purpose="this")
    monkeypatch.setitem(sys.modules, "json", None)
    assert not is_installed("json")


def test_a_package_that_lacks_one_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_installed.py").write_text("import no_such.part\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingPackageError, match="no_such is not installed"):
        require("half_installed", extra="h5", purpose="this")


def needed(requirements: list[str]) -> set[str]:
    """Names of the packages that requirements bring here, their own requirements included."""
    waiting, found = [Requirement(each) for each in requirements], set[tuple[str, str]]()
    while waiting:
        requirement = waiting.pop()
        for extra in ("", *requirement.extras):
            key = (canonicalize_name(requirement.name), extra)
            if key in found:
                continue
            found.add(key)
            if key[0] == "cggm-ray":
                waiting += [Requirement(each) for each in EXTRAS.get(extra, [])]
                continue
            for each in map(Requirement, importlib.metadata.requires(key[0]) or []):
                if each.marker is None or each.marker.evaluate({"extra": extra}):
                    waiting.append(each)
    return {name for name, _ in found} - {"cggm-ray"}


def test_all_that_an_install_brings_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().split()
    pinned = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines}
    brought = needed(PROJECT["dependencies"] + EXTRAS["test"])
    assert sorted(brought - set(pinned)) == []
    assert sorted(set(pinned) - brought) == []


def test_the_files_with_a_checksum_are_those_of_the_pinned_versions() -> None:
    lines = [line for line in (ROOT / ".ci" / "hashes.txt").read_text().splitlines() if not line.startswith("#")]
    found = {}
    for line in lines:
        version, _, checksum = line.partition(" --hash=sha256:")
        assert len(checksum) == 64, line
        # The build of torch for CPUs has a version of its own.
        found[canonicalize_name(version.partition("==")[0])] = version.partition("==")[2].removesuffix("+cpu")
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    assert {name: found[canonicalize_name(name)] for name in pinned} == pinned


def test_nothing_but_its_own_extra_brings_an_optional_package() -> None:
    base = needed(PROJECT["dependencies"])
    assert {"torch", "ray", "transformers", "pyarrow", "numpy", "safetensors", "matplotlib"} <= base
    assert not base & {"h5py", "nibabel", "tensorboard", "mlflow-skinny", "wandb", "optuna", "scipy"}
