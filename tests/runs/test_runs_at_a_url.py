"""Runs whose folder is a URL: the same bits as in a folder, from any machine, and after a crash at any moment."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from s3_server import KEY

from cggm_ray.__main__ import main as command
from cggm_ray.api import load
from cggm_ray.commands.cli import main
from cggm_ray.core.errors import StorageError
from cggm_ray.engine.configuration import Config
from cggm_ray.runs.result import stored_result
from cggm_ray.storage import leases
from cggm_ray.storage.base import open_storage
from cggm_ray.storage.mirror import Mirror, mirror_of
from cggm_ray.storage.objects import ObjectStorage
from cggm_ray.storage.work import WORK, work_folder
from conftest import SMALL, small_set

TIMES = {"seconds", "samples_per_second", "peak_memory"}
MACHINES = iter(range(10**6))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "PERIOD", 0.01)


@pytest.fixture
def new_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes this process one of a machine with an empty disk."""

    def begin() -> None:
        number = next(MACHINES)
        monkeypatch.setenv(WORK, str(tmp_path / f"machine-{number}"))
        monkeypatch.setattr(leases, "_machine", lambda: [str(number), str(number)])
        mirror_of.cache_clear()

    begin()
    return begin


def train(pickle: Path, storage: str, *flags: str, shards: Path | None = None) -> int:
    # Shards are of another test.
    where = ["--shard_path", str(pickle.parent / "shards")]
    return main(
        Config(),
        ["--local", "--data_path", str(pickle), *where, "--storage_path", storage, "--name", "r", *SMALL, *flags],
    )


def content(read: Callable[[str], bytes]) -> dict[str, Any]:
    """What has to be the same in two runs."""
    lines = [json.loads(line) for line in read("metrics.jsonl").splitlines()]
    return {
        "metrics": [{key: value for key, value in line.items() if key not in TIMES} for line in lines],
        **{name: read(name) for name in ("best/model.safetensors", "summary.json", "predictions.parquet")},
        "training": read("checkpoints/epoch-00002/training.safetensors"),
    }


@pytest.fixture
def wanted(small_pickle: Path, tmp_path: Path) -> dict[str, Any]:
    """The content of a run in a folder."""
    assert train(small_pickle, str(tmp_path / "plain")) == 0
    return content(lambda name: (tmp_path / "plain" / "r" / name).read_bytes())


def at(bucket: str) -> dict[str, Any]:
    return content(open_storage(f"{bucket}/runs/r").read)


def test_a_url_and_a_folder_give_the_same_bits(
    small_pickle: Path,
    wanted: dict[str, Any],
    bucket: str,
    new_machine: Callable[[], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train(small_pickle, f"{bucket}/runs") == 0
    assert f"best checkpoint:    {bucket}/runs/r/best\n" in capsys.readouterr().out
    assert at(bucket) == wanted
    keys = open_storage(bucket).list()
    assert not [key for key in keys if ".part" in key or "/." in key.removeprefix("runs/.")]
    secrets = [value.encode() for name, value in KEY.items() if name != "AWS_REGION"]
    assert not [key for key in keys for secret in secrets if secret in open_storage(bucket).read(key)]
    assert f"storage_path: {bucket}/runs" in open_storage(f"{bucket}/runs/r").read("config.yaml").decode()

    new_machine()
    for arguments, shown in (
        (["verify"], "equal to the last bit"),
        (["predict"], f"{bucket}/runs/r/predictions-test-small.parquet"),
        (["export"], f"{bucket}/runs/r/model.pt2: equal"),
        (["report", "--no_contributions"], f"{bucket}/runs/r/report/report.html"),
    ):
        assert command([arguments[0], f"{bucket}/runs/r", *arguments[1:]]) == 0
        assert shown in capsys.readouterr().out
    added = set(open_storage(bucket).list()) - set(keys)
    assert {"runs/r/model.pt2", "runs/r/report/report.html", "runs/r/predictions-test-small.parquet"} <= added

    new_machine()
    run = load(f"{bucket}/runs/r")
    assert run.test == json.loads(wanted["summary.json"])["test"]
    assert len(run.predict(split="valid")) == len(small_set()["valid"]["labels"])
    assert "runs/r/predictions-valid-small.parquet" in open_storage(bucket).list()

    new_machine()
    assert train(small_pickle, f"{bucket}/runs", "--lr", "0.5") == 2
    assert f"{bucket}/runs/r holds a run with another configuration: lr: was" in capsys.readouterr().err
    assert train(small_pickle, f"{bucket}/runs", "--lr", "0.5", "--fresh") == 0
    assert f"starting over; what was there is kept in {bucket}/runs/r.1" in capsys.readouterr().out
    assert content(open_storage(f"{bucket}/runs/r.1").read) == wanted
    assert at(bucket) != wanted


class Gone(BaseException):
    """This machine is not there any more."""


@pytest.mark.parametrize(
    "moment", [9, 16, 24, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4, 13, 20, 29, 33, 37))]
)
def test_a_machine_that_is_gone(
    small_pickle: Path,
    wanted: dict[str, Any],
    bucket: str,
    new_machine: Callable[[], None],
    moment: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing reaches the store after some request of the first machine. The second one has nothing but the store."""
    left = moment

    def until_gone(act: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Gone
            return act(*arguments)

        return counted

    flags = ("--save_every", "3")
    with monkeypatch.context() as patch:
        for name in ("upload", "write", "delete"):
            patch.setattr(ObjectStorage, name, until_gone(getattr(ObjectStorage, name)))
        with pytest.raises(Gone):
            train(small_pickle, f"{bucket}/runs", *flags)
    new_machine()
    monkeypatch.setattr(leases, "LEASE", 0)
    assert train(small_pickle, f"{bucket}/runs", *flags) == 0
    assert at(bucket) == wanted
    # No part of a checkpoint is left.
    keys = open_storage(f"{bucket}/runs/r").list("checkpoints/")
    whole = {key.rpartition("/")[0] for key in keys if key.endswith("/checksums.json")}
    assert {key.rpartition("/")[0] for key in keys} == whole


def test_two_drivers(
    small_pickle: Path, bucket: str, new_machine: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """The second is refused; one that has lost its lease writes nothing any more."""
    mirror = mirror_of(work_folder(f"{bucket}/runs/r"))
    assert isinstance(mirror, Mirror)

    def busy(holder: str) -> None:
        raise AssertionError(holder)

    with mirror.owned(busy):
        assert train(small_pickle, f"{bucket}/runs") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"name: {bucket}/runs/r belongs to process" in line
        content = {"holder": "process 7 on other"}
        open_storage(f"{bucket}/runs").write(".r.lock.000002", json.dumps(content).encode())
        mirror.folder.mkdir(parents=True, exist_ok=True)
        (mirror.folder / "train.log").write_text("one more line\n")
        with pytest.raises(StorageError, match="was taken by process 7 on other") as caught:
            mirror.push()
        assert len(str(caught.value).splitlines()) == 1
        (mirror.folder / "train.log").unlink()
        # The block ends as the process would.
        open_storage(f"{bucket}/runs").delete(".r.lock.000002")
    assert not open_storage(f"{bucket}/runs").list("r/")


def test_the_store_is_away(
    small_pickle: Path, bucket: str, new_machine: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(small_pickle, "s3://there-is-no-such-bucket/runs") == 2
    (line,) = capsys.readouterr().err.splitlines()
    where = "s3://there-is-no-such-bucket/runs/r"
    assert line == f"error: storage_path: {where} cannot be read: 404 Not Found, NoSuchBucket"
    assert command(["verify", f"{bucket}/runs/nothing"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {bucket}/runs/nothing/config.yaml does not exist; expected the folder of a finished run"


def test_teachers_at_urls_teach_as_those_in_folders(
    small_pickle: Path, tmp_path: Path, bucket: str, new_machine: Callable[[], None]
) -> None:
    def taught(storage: str, folder: str) -> int:
        names = ("text", "audio", "vision")
        for name in names:
            alone = ["--modalities", name, "--modulation", "none", "--num_epochs", "1", "--name", name]
            assert train(small_pickle, storage, *alone) == 0
        new_machine()
        teachers = ",".join(f"{folder}{name}" for name in names)
        return train(small_pickle, storage, "--modulation", "umt", "--umt_teachers", teachers)

    assert taught(str(tmp_path / "plain"), "") == 0
    assert taught(f"{bucket}/runs", f"{bucket}/runs/") == 0
    wanted = content(lambda name: (tmp_path / "plain" / "r" / name).read_bytes())
    assert at(bucket) == wanted
    # By their names in the storage of the run, on a machine with an empty disk.
    new_machine()
    assert (
        train(
            small_pickle, f"{bucket}/runs", "--modulation", "umt", "--umt_teachers", "text,audio,vision", "--name", "s"
        )
        == 0
    )
    assert content(open_storage(f"{bucket}/runs/s").read) == wanted


def test_runs_at_a_url_are_listed_and_shown(
    small_pickle: Path, bucket: str, new_machine: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        assert train(small_pickle, f"{bucket}/runs", "--num_epochs", "1", "--name", name) == 0
    open_storage(f"{bucket}/runs/two").delete("summary.json")
    new_machine()
    capsys.readouterr()
    assert command(["runs", "list", f"{bucket}/runs"]) == 0
    head, one, two = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "state", "dataset", "strategy", "metric", "valid", "test", "size"]
    assert one.split()[:3] == ["one", "finished", "mosi"]
    assert two.split()[:8] == ["two", "stopped", "after", "epoch", "1", "of", "1", "mosi"]
    assert command(["runs", "show", f"{bucket}/runs/one"]) == 0
    assert "best epoch 1" in capsys.readouterr().out
    assert command(["runs", "list", f"{bucket}/nothing"]) == 2
    assert capsys.readouterr().err == f"error: {bucket}/nothing is no folder; expected the --storage_path of runs\n"


def test_what_no_result_needs_is_deleted_at_a_url(
    small_pickle: Path, bucket: str, new_machine: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert train(small_pickle, f"{bucket}/runs", "--num_epochs", "1", "--fresh", "--name", "one") == 0
    store = open_storage(f"{bucket}/runs")
    with leases.leasing(store, ".one.lock", pytest.fail):
        capsys.readouterr()
        assert command(["runs", "clean", f"{bucket}/runs"]) == 0
        # A run that somebody holds keeps everything.
        assert "runs/one/" not in capsys.readouterr().out
    store.write("shards/unused/manifest.json", b"{}")
    before = set(store.list())
    new_machine()
    capsys.readouterr()
    assert command(["runs", "clean", f"{bucket}/runs"]) == 0
    told = capsys.readouterr().out
    assert set(store.list()) == before
    for what in ("runs/one/checkpoints ", "runs/one.1 ", "runs/shards/unused "):
        assert f"{bucket}/{what}" in told
    assert command(["runs", "clean", f"{bucket}/runs", "--delete"]) == 0
    left = set(store.list())
    gone = ("one/checkpoints/", "one.1/", "shards/unused/")
    assert left == {key for key in before if not key.startswith(gone)}
    new_machine()
    assert command(["verify", f"{bucket}/runs/one"]) == 0
    assert command(["runs", "clean", f"{bucket}/runs", "--delete"]) == 0
    assert "has nothing that no result needs" in capsys.readouterr().out


def test_a_result_that_a_late_list_lacks_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"the storage does not list their summary\.json"):
        stored_result(tmp_path)
