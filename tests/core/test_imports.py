"""What an import brings in."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("ray", "transformers")


def modules_after(code: str) -> set[str]:
    script = f"import json, sys\n{code}\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    return set(json.loads(output.splitlines()[-1]))


@pytest.mark.parametrize(
    "module", ["cggm_ray", "cggm_ray.engine.loop", "cggm_ray.commands.cli", "cggm_ray.commands.train"]
)
def test_importing_brings_in_neither_ray_nor_transformers(module: str) -> None:
    assert not modules_after(f"import {module}").intersection(HEAVY)


def test_a_command_line_is_read_without_libraries_that_it_does_not_need() -> None:
    """The first lines of a run wait for these imports."""
    found = modules_after("import cggm_ray.commands.cli, cggm_ray.recipes.mosi")
    assert not found.intersection({*HEAVY, "pandas", "matplotlib", "scipy", "tabulate", "rich", "optuna"})


def test_local_training_brings_in_neither(small_pickle: object, tmp_path: object) -> None:
    from conftest import SMALL

    argv = ["--local", "--data_path", str(small_pickle), "--storage_path", str(tmp_path), *SMALL, "--num_epochs", "1"]
    imports = "from cggm_ray.commands.cli import main\nfrom cggm_ray.engine.configuration import Config"
    code = f"{imports}\nassert main(Config(), {argv!r}) == 0"
    assert not modules_after(code).intersection(HEAVY)


def test_the_check_itself_sees_ray() -> None:
    assert "ray" in modules_after("import cggm_ray.distributed.cluster")


def test_an_import_brings_in_nothing_but_torch() -> None:
    """What that costs in seconds is for benchmarks/startup.py to say."""
    more = modules_after("import cggm_ray") - modules_after("import torch")
    assert more - sys.stdlib_module_names == {"cggm_ray"}
