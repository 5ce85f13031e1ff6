"""The commands of docs/storage.md, against an S3 server."""

from __future__ import annotations

import runpy
import shlex
from pathlib import Path

import pytest
from programs import ROOT
from test_docs import commands

from cggm_ray.__main__ import main as command
from cggm_ray.commands.cli import main
from cggm_ray.storage.base import open_storage
from cggm_ray.storage.work import WORK

PAGE = ROOT / "docs" / "storage.md"
SMALL = "--nlevels 3 --cls_layers 1 --num_heads 2 --proj_dim 8 --num_epochs 1 --report false --headroom false"


def test_the_commands_of_the_page(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(WORK, str(tmp_path / "node"))
    found = [text.replace("s3://my-bucket", bucket) for text in commands(PAGE)]
    assert [shlex.split(text)[1:3] for text in found] == [
        ["pipelines/mosi.py", "--local"],
        *[["-m", "cggm_ray"]] * 5,
    ]
    for text in found:
        _, target, *flags = shlex.split(text)
        if target == "-m":
            assert command([*flags[1:], *(["--no_contributions"] if "report" in flags else [])]) == 0
        else:
            assert main(runpy.run_path(str(ROOT / target))["RECIPE"], [*flags, *SMALL.split()]) == 0
        # As on a machine with an empty disk.
        monkeypatch.setenv(WORK, str(tmp_path / f"after-{len(list(tmp_path.iterdir()))}"))
    assert "equal to the last bit" in capsys.readouterr().out
    keys = open_storage(f"{bucket}/runs/first").list()
    assert {"best/model.safetensors", "summary.json", "report/report.html"} <= set(keys)
