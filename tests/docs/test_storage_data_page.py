"""The commands of the page about data in a bucket, run with a bucket of the test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from programs import ROOT

from cggm_ray.__main__ import main as command
from cggm_ray.commands.cli import main
from cggm_ray.engine.configuration import Config
from cggm_ray.storage import cache
from cggm_ray.storage.urls import UrlPath
from conftest import SMALL, small_set, write_pickle

PAGE = (ROOT / "docs" / "storage-data.md").read_text()
COMMANDS = re.findall(r"^    python (.*)", PAGE, re.MULTILINE)
MESSAGES = re.findall(r"^    (error: .*)", PAGE, re.MULTILINE)


def test_the_commands(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    UrlPath(f"{bucket}/raw/mosi.pkl").upload(write_pickle(tmp_path / "mosi.pkl", small_set()))
    monkeypatch.chdir(tmp_path)
    for line in COMMANDS:
        program, *words = line.replace("s3://bucket", bucket).replace("~", str(tmp_path)).split()
        if program == "pipelines/mosi.py":
            assert main(Config(), [*words, "--local", *SMALL]) == 0
        else:
            assert (program, words[0]) == ("-m", "cggm_ray")
            assert command(words[1:]) == 0
    assert not (tmp_path / "s3:").exists()
    assert any(path.name.startswith("mosi-") for path in UrlPath(f"{bucket}/shards").iterdir())
    assert (tmp_path / "cggm_runs" / "first" / "predictions-mosi.parquet").exists()


@pytest.mark.parametrize("message", MESSAGES)
def test_the_messages(
    message: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "cache"))
    (url,) = re.findall(r"s3://[^: ]+", message)
    there = url.replace("s3://bucket", bucket)
    assert main(Config(), ["--data_path", there, "--local", "--storage_path", str(tmp_path)]) == 2
    assert capsys.readouterr().err.strip() == message.replace(url, there)
