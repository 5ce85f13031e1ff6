"""A URL where only a path is expected is refused: as a path it would be a new folder with the scheme's name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cggm_ray.__main__ import main as command
from cggm_ray.commands.cli import main
from cggm_ray.config.parsing import check_path
from cggm_ray.core.errors import UsageError
from cggm_ray.data.datasets.food101.food101_options import Food101Options
from cggm_ray.data.settings import DataConfig
from cggm_ray.engine.configuration import Config

RECIPE = Config(data=DataConfig(dataset="food101"), options=Food101Options())
FIELDS = [key.name for _, key in RECIPE.fields() if key.metadata["path"] and not key.metadata["url"]]
BY_URL = [key.name for _, key in RECIPE.fields() if key.metadata["url"]]
URLS = [
    "s3://bucket/x",
    "gs://bucket/x",
    "hdfs://host:8020/x",
    "http://host/x",
    "https://host/x",
    "file:///tmp/x",
    "abfss://container@account/x",
    "dbfs:/x",
    " s3a://bucket/x",
]


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_all_paths_are_known_as_such() -> None:
    assert {*FIELDS, *BY_URL} == {"data_path", "shard_path", "storage_path", "vit", "bert", "umt_teachers"}
    assert {"data_path", "shard_path"} <= set(BY_URL)


@pytest.mark.parametrize("field", ["data_path", "shard_path"])
@pytest.mark.parametrize("url", ["http://host/x", "https://host/x", "dbfs:/x", "s3://", "nosuch://host/x"])
def test_a_url_of_no_store(field: str, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(RECIPE, [f"--{field}", url, "--local"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {field}: ")
    assert "expected" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("field", [*FIELDS, "config", "tune"])
@pytest.mark.parametrize("url", URLS)
def test_a_flag(field: str, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(RECIPE, [f"--{field}", url, "--local"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    # A list of names loses the spaces around them.
    assert line.startswith(f"error: {field}: found the URL ")
    assert f"{url.strip()}; only local or mounted folders are taken so far" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("field", FIELDS)
def test_a_configuration_file(field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({field: "s3://bucket/x"}))
    assert main(RECIPE, ["--config", str(file), "--local"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {file}: {field}: found the URL s3://bucket/x; only local")
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "argv",
    [
        ["predict", "run", "--out", "s3://bucket/run"],
        ["report", "run", "--out", "s3://bucket/run"],
        ["export", "run", "--out", "s3://bucket/run"],
    ],
)
def test_commands(argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "found the URL s3://bucket/run; only local or mounted folders are taken so far" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        (
            "s3://me:secret@bucket/x",
            "found a URL with a password or with parameters; expected one such as s3://bucket/runs",
        ),
        (
            "s3://bucket/x?secret=y",
            "found a URL with a password or with parameters; expected one such as s3://bucket/runs",
        ),
        ("s3://", "found the URL s3://; expected a folder such as s3://bucket/runs"),
        ("s3://bucket/../x", "expected a folder such as s3://bucket/runs"),
        ("s3://bucket//x", "expected a folder such as s3://bucket/runs"),
        ("https://host/x", "nothing can be written there; expected one such as s3://bucket/runs"),
        ("abfs://container/x", "adlfs"),
        ("ssss://bucket/x", "unknown storage 'ssss'"),
        ("dbfs:/x", "only local or mounted folders are taken so far"),
        (" s3a://bucket/x", "only local or mounted folders are taken so far"),
    ],
)
def test_urls_that_serve_no_results(url: str, wanted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for do in (lambda: main(RECIPE, ["--storage_path", url, "--local"]), lambda: command(["verify", url])):
        assert do() == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert wanted in line
        assert "secret" not in line
    assert not list(tmp_path.iterdir())


def test_from_python() -> None:
    with pytest.raises(UsageError, match="shard_path: found the URL"):
        Config(data=DataConfig(shard_path="https://host/x"))


@pytest.mark.parametrize("path", [r"C:\data\x", "C:/data", "d:/x", "./s3:/x", "runs/a:b", "~/runs", "/mnt/s3://x", "x"])
def test_paths_are_no_urls(path: str) -> None:
    check_path("data_path", path)
    assert Config(data=DataConfig(data_path=path)).data.data_path == path
