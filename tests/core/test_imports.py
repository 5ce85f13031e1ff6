"""What an import brings in, and how long it takes."""

from __future__ import annotations

import json
import statistics
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


def test_local_training_brings_in_neither(small_pickle: object, tmp_path: object) -> None:
    from conftest import SMALL

    argv = ["--local", "--data_path", str(small_pickle), "--storage_path", str(tmp_path), *SMALL, "--num_epochs", "1"]
    imports = "from cggm_ray.commands.cli import main\nfrom cggm_ray.engine.configuration import Config"
    code = f"{imports}\nassert main(Config(), {argv!r}) == 0"
    assert not modules_after(code).intersection(HEAVY)


def test_the_check_itself_sees_ray() -> None:
    assert "ray" in modules_after("import cggm_ray.distributed.cluster")


def test_import_takes_little_more_than_torch() -> None:
    """A ratio within one test, medians of interleaved runs in fresh processes."""

    def seconds(module: str) -> float:
        script = f"import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
        return float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)

    seconds("torch"), seconds("cggm_ray")
    pairs = [(seconds("torch"), seconds("cggm_ray")) for _ in range(5)]
    torch_time, own_time = (statistics.median(times) for times in zip(*pairs, strict=True))
    assert own_time <= 1.3 * torch_time
