"""Storages: what every one promises, and publishing on top of it."""

from __future__ import annotations

import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fuzz_listings import EMPTY, HEADERS, Listing, listing_server, page, whole
from s3_server import KEY

from cggm_ray.__main__ import main
from cggm_ray.core.errors import DataError, UsageError
from cggm_ray.storage import objects
from cggm_ray.storage.base import INDEX, Storage, open_storage, url_filesystem
from cggm_ray.storage.objects import _quiet as quiet
from cggm_ray.storage.objects import summary
from cggm_ray.storage.others import FsspecStorage


@pytest.fixture(params=["file://", "", "s3", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "s3":
        return open_storage(f"{request.getfixturevalue('bucket')}/some/where")
    if request.param == "memory":
        return open_storage(f"memory://{tmp_path}")
    return open_storage(f"{request.param}{tmp_path / 'store'}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "first" / "best").mkdir(parents=True)
    (tmp_path / "first" / "best" / "weights").write_bytes(bytes(range(256)) * 1000)
    (tmp_path / "first" / "summary.json").write_text("{}")
    return tmp_path / "first"


FILES = ["best/weights", "summary.json"]


def test_operations(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read("a/b")
    storage.write("a/b", b"one")
    storage.write("a/b", b"two")
    storage.write("ab", b"")
    assert storage.read("a/b") == b"two"
    assert (storage.list("a"), storage.list("a/"), storage.list("b/c")) == (["a/b", "ab"], ["a/b"], [])
    assert not storage.create("a/b", b"three")
    assert storage.read("a/b") == b"two"
    storage.delete("a/b")
    storage.delete("a/b")
    assert storage.create("a/b", b"three")
    assert storage.list() == ["a/b", "ab"]


def test_entries(storage: Storage) -> None:
    storage.write("a/b", b"one")
    storage.write("ab", b"")
    before = storage.entries("a")
    assert [(entry.key, entry.size) for entry in before] == [("a/b", 3), ("ab", 0)]
    storage.write("a/b", b"other")
    after = storage.entry("a/b")
    assert after is not None
    assert (after.size, after.version != before[0].version) == (5, True)
    assert storage.entry("a") is None
    assert storage.entry("ab") == before[1]


def test_files_of_several_parts(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "CHUNK", 2**20)
    (tmp_path / "large").write_bytes(os.urandom(11 * 2**20 + 7))
    storage.upload(tmp_path / "large", "x/large")
    storage.download("x/large", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "large").read_bytes()
    with pytest.raises(FileNotFoundError):
        storage.download("x/small", tmp_path / "small")


@pytest.mark.parametrize("scheme", ["s3", "memory"])
def test_pyarrow_reads_what_was_written(scheme: str, request: pytest.FixtureRequest) -> None:
    url = f"{request.getfixturevalue('bucket')}/x" if scheme == "s3" else "memory://x"
    open_storage(url).write("a/b", b"one")
    files, path = url_filesystem(f"{url}/a")
    with files.open_input_file(f"{path}/b") as file:
        assert file.read() == b"one"
    # Folders that it makes are no files.
    files.create_dir(f"{path}/c/d")
    open_storage(url).write("a/c/d/e", b"")
    assert open_storage(url).list() == ["a/b", "a/c/d/e"]


def test_errors_are_one_line_without_keys(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "PAUSE", 0)
    with pytest.raises(FileNotFoundError):
        open_storage("s3://there-is-no-such-bucket/x").read("a")
    answer = (
        "Server returned non-2xx status code: 403 Forbidden: <Error><Code>InvalidAccessKeyId</Code><AWSAccessKeyId>AKIA"
    )
    assert summary(answer) == "403 Forbidden, InvalidAccessKeyId"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(objects, "RETRY", {"max_retries": 0})
    with pytest.raises(OSError, match=r"Error performing PUT http://127\.0\.0\.1:1/") as caught:
        open_storage(f"{bucket}/x").write("a", b"")
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert not any(value in text for name, value in KEY.items() if name != "AWS_REGION")


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    assert main(["fetch", "s3://bucket/x/run", "again"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: s3://bucket/x: obstore is not installed; pip install 'cggm-ray[store]'"
    assert main(["fetch", "abfs://container/x/run", "again"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "adlfs" in line


def test_one_of_many_writers_creates(storage: Storage) -> None:
    if isinstance(storage, FsspecStorage):
        pytest.skip("fsspec's memory is for one thread")
    contents = [bytes([number]) * 100_000 for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda content: storage.create("key", content), contents))
    assert made.count(True) == 1
    assert storage.read("key") == contents[made.index(True)]
    assert storage.list() == ["key"]


@pytest.mark.parametrize("key", ["../x", "/x", "a/../../x", "a//b", "", "a/./b"])
def test_no_key_leads_out_of_it(storage: Storage, key: str) -> None:
    for act in (
        storage.read,
        storage.delete,
        lambda key: storage.write(key, b""),
        lambda key: storage.create(key, b""),
    ):
        with pytest.raises(DataError, match="inside the folder"):
            act(key)


def test_a_folder_goes_there_and_back(storage: Storage, folder: Path, tmp_path: Path) -> None:
    storage.publish(folder, "first", FILES)
    storage.publish(folder, "first", FILES)
    storage.fetch("first", tmp_path / "again")
    assert sorted(path.relative_to(tmp_path / "again").as_posix() for path in (tmp_path / "again").rglob("*.*")) == [
        "summary.json"
    ]
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    with pytest.raises(UsageError, match="exists"):
        storage.fetch("first", tmp_path / "again")
    (folder / "summary.json").write_text('{"epochs": 2}')
    before = {key: storage.read(key) for key in storage.list()}
    with pytest.raises(UsageError, match="holds something else"):
        storage.publish(folder, "first", FILES)
    assert {key: storage.read(key) for key in storage.list()} == before


def test_what_is_not_whole_is_not_fetched(storage: Storage, folder: Path, tmp_path: Path) -> None:
    storage.publish(folder, "first", FILES)
    storage.write("first/best/weights", b"other")
    with pytest.raises(DataError, match="best/weights is damaged"):
        storage.fetch("first", tmp_path / "again")
    storage.delete("first/best/weights")
    with pytest.raises(DataError, match="best/weights is not there"):
        storage.fetch("first", tmp_path / "again")
    storage.publish(folder, "first", FILES)
    for index in (b"{}", b"[1]", b"\xff", b'{"../../x": "0"}'):
        storage.write(f"first/{INDEX}", index)
        with pytest.raises(DataError, match=r"damaged|inside the folder"):
            storage.fetch("first", tmp_path / "again")
    with pytest.raises(UsageError, match="expected what `publish` wrote"):
        storage.fetch("second", tmp_path / "again")
    assert {path.name for path in tmp_path.iterdir()} - {"store"} == {"first"}


def test_commands_refuse_in_one_line(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, wanted in (
        (["publish", str(folder), "sqlite://bucket"], "unknown storage 'sqlite'"),
        (["publish", str(folder), str(tmp_path / "store")], "expected the folder of a finished run"),
        (["fetch", "file://", str(tmp_path / "again")], "expected the URL that `publish` printed"),
        (["fetch", str(tmp_path / "nothing"), str(tmp_path / "again")], "expected what `publish` wrote"),
        (["fetch", str(tmp_path / "nothing"), str(folder)], "expected the path of a new folder"),
        (["fetch", str(tmp_path / ".."), str(folder / "x")], "inside the folder"),
    ):
        assert main(arguments) == 2, arguments
        (line,) = capsys.readouterr().err.splitlines()
        assert wanted in line


@pytest.fixture
def listing(monkeypatch: pytest.MonkeyPatch) -> Listing:
    """A store whose lists are wrong, and the client for it."""
    found = listing_server()
    monkeypatch.setattr(objects, "PAUSE", 0.0)
    monkeypatch.setattr(objects, "QUIET", 0.5)
    for name, value in {**KEY, "AWS_ENDPOINT_URL": found.url}.items():
        monkeypatch.setenv(name, value)
    return found


@pytest.mark.parametrize(
    ("entries", "message"), [([("a", "5")], "its list names 'a' again"), ([], "has named no further file for 0.5 s")]
)
def test_a_list_without_an_end(listing: Listing, entries: list[tuple[str, str]], message: str) -> None:
    """The last page names a next one, which is the same."""
    listing.take(whole(HEADERS, [page(entries, "again")]))
    with pytest.raises(OSError, match=message):
        open_storage("s3://bucket").entries()
    listing.take(EMPTY)
    assert open_storage("s3://bucket").entries() == []


def test_a_size_that_is_wrong(listing: Listing, tmp_path: Path) -> None:
    """A download ends with the first part that is too short, and not after as many parts as the size says."""
    listing.take(whole(HEADERS | {"length": 2**62}, [page([("a", "5")])]))
    with pytest.raises(OSError, match=r"found .* bytes|range|length"):
        open_storage("s3://bucket").download("a", tmp_path / "a")


@pytest.mark.parametrize(
    ("answer", "step"),
    [
        (
            "status code: 503 Service Unavailable <Code>SlowDown</Code>",
            "; the same command goes on when the store answers",
        ),
        ("error sending request: connection refused", "; the same command goes on when the store answers"),
        ("status code: 400 Bad <Code>ExpiredToken</Code>", "; renew the credentials, then the same command goes on"),
        ("status code: 404 Not Found <Code>NoSuchBucket</Code>", ""),
    ],
)
def test_an_error_that_may_pass_says_what_to_do(answer: str, step: str) -> None:
    def fail() -> None:
        raise RuntimeError(answer)

    with pytest.raises(OSError, match=re.escape(summary(answer) + step)) as error:
        quiet(fail, "s3://bucket/key")
    assert error.value.strerror == f"{summary(answer)}{step}"
