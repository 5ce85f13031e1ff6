"""A path in a store answers as the path of a folder with the same files does, and nothing local is made in its name."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cggm_ray.core.errors import UsageError
from cggm_ray.storage import cache, leases
from cggm_ray.storage.locks import holding
from cggm_ray.storage.places import as_path, check_place, common_folder, local_folder, new_file, place, walk
from cggm_ray.storage.urls import UrlPath

FILES = {
    "train/a.npy": b"one",
    "train/b.txt": b"two",
    "train/deep/c.txt": b"",
    "valid/a.txt": b"three",
    "list.json": b"[1]",
}
NAMES = ["", "train", "train/a.npy", "train/deep", "train/dee", "nothing", "list.json", "list.json/x"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory and an empty cache."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "cache"))


@pytest.fixture(params=[False, True], ids=["asked", "listed"])
def pair(request: pytest.FixtureRequest, bucket: str, tmp_path: Path) -> tuple[Path, UrlPath]:
    """A folder, and one in a store with the same files."""
    local, there = tmp_path / "set", UrlPath(f"{bucket}/some/set")
    for name, content in FILES.items():
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        (local / name).write_bytes(content)
        (there / name).write_bytes(content)
    UrlPath(f"{bucket}/some/settle").write_bytes(b"another name that begins with the same letters")
    if request.param:
        there.hold_listing()
    return local, there


QUERIES: list[Callable[[Path], Any]] = [
    lambda path: (path.exists(), path.is_file(), path.is_dir(), path.name, path.suffix, path.stem),
    lambda path: sorted(child.name for child in path.iterdir()) if path.is_dir() else None,
    lambda path: [
        sorted(str(file.relative_to(path)) for file in path.glob(p)) for p in ("*", "*.txt", "*/*", "t*/*.np?")
    ],
    lambda path: sorted(str(file.relative_to(path)) for file in path.rglob("*.txt")),
    lambda path: path.stat().st_size if path.is_file() else None,
    lambda path: (
        (path.read_bytes(), path.open("rb").read(), Path(os.fspath(path)).read_bytes()) if path.is_file() else None
    ),
    lambda path: sorted((str(top.relative_to(path)), sorted(inner), sorted(files)) for top, inner, files in walk(path)),
]


@pytest.mark.parametrize("query", QUERIES)
def test_it_answers_as_a_folder(pair: tuple[Path, UrlPath], query: Callable[[Path], Any]) -> None:
    local, there = pair
    for name in NAMES:
        assert query(there / name) == query(local / name), name
    assert os.listdir() == []


def test_its_names(bucket: str) -> None:
    path = as_path(f"{bucket}/a/b.tar.gz")
    assert (str(path), str(path.parent), str(path.parent.parent)) == (f"{bucket}/a/b.tar.gz", f"{bucket}/a", bucket)
    assert pickle.loads(pickle.dumps(path)) == path
    assert str(pickle.loads(pickle.dumps(path)).with_name("c")) == f"{bucket}/a/c"
    assert isinstance(path.parent / "x", UrlPath)
    assert common_folder([path, path.parent / "c" / "d"]) == path.parent
    assert path.is_relative_to(path.parent)
    assert not path.is_relative_to(Path("/a"))
    assert as_path("file:///tmp/x") == Path("/tmp/x")


@pytest.mark.parametrize(
    "act",
    [
        lambda path: os.mkdir(path),
        lambda path: os.makedirs(path / "x"),
        lambda path: os.open(path / "x", os.O_CREAT | os.O_WRONLY),
        lambda path: (path / "x").open("w"),
        lambda path: (path / "list.json").open("ab"),
        lambda path: (path / "list.json").rename("x"),
        lambda path: (path / "list.json").replace("x"),
        lambda path: (path / "x").touch(),
        lambda path: np.save(path / "x.npy", np.zeros(3)),
    ],
)
def test_nothing_is_written_but_whole_files(pair: tuple[Path, UrlPath], act: Callable[[Path], Any]) -> None:
    with pytest.raises(OSError, match=r"no such file|cannot be|no time"):
        act(pair[1])
    assert os.listdir() == []
    assert {entry.key for entry in pair[1].storage.entries("some/set/")} == {f"some/set/{name}" for name in FILES}


def test_libraries_read_it(bucket: str) -> None:
    folder = UrlPath(f"{bucket}/set")
    with new_file(folder / "x.npz", ".npz") as file:
        np.savez(file, a=np.arange(5))
    with new_file(folder / "x.parquet") as file:
        pq.write_table(pa.table({"a": [1, 2]}), file)
    assert np.load(folder / "x.npz")["a"].tolist() == [0, 1, 2, 3, 4]
    assert pq.read_table(folder / "x.parquet").to_pydict() == {"a": [1, 2]}
    with local_folder([folder / "x.npz", folder / "x.parquet"]) as local:
        assert sorted(os.listdir(local)) == ["x.npz", "x.parquet"]
    assert os.listdir() == []


def test_a_file_that_changes_is_fetched_again(bucket: str) -> None:
    path = UrlPath(f"{bucket}/x")
    for content in (b"old", b"new", b"other size"):
        path.write_bytes(content)
        assert path.open("rb").read() == content


def test_a_file_that_is_not_replaced_is_fetched_once(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = UrlPath(f"{bucket}/x")
    path.write_bytes(b"content")
    fetched: list[str] = []
    download = type(path.storage).download
    monkeypatch.setattr(
        type(path.storage), "download", lambda self, key, file: (fetched.append(key), download(self, key, file))[1]
    )
    threads = [threading.Thread(target=path.local) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == ["x"]


def test_the_cache_keeps_within_its_size(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.SIZE, str(10_000 / 2**30))
    monkeypatch.setattr(cache, "GRACE", -1.0)
    paths = [UrlPath(f"{bucket}/{number}") for number in range(12)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 2_000)
        assert path.open("rb").read() == bytes([number]) * 2_000
        os.utime(path.local(), (number, number))
        held = [file for file in (tmp_path / "cache").rglob("*") if file.is_file() and file.parent.name != "locks"]
        assert sum(file.stat().st_size for file in held) <= 10_000
        # What was used last stays.
        assert {path.name, paths[max(0, number - 1)].name} <= {file.name for file in held}
    assert paths[0].open("rb").read() == bytes(2_000)


@pytest.mark.parametrize("text", ["0", "-1", "many"])
def test_a_size_that_is_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.SIZE, text)
    with pytest.raises(UsageError, match=f"{cache.SIZE}: found '{text}'; expected a positive number of GiB"):
        cache.cache_bytes()


def test_a_lock_in_a_store(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "PERIOD", 0.01)
    path = UrlPath(f"{bucket}/.set.lock")
    order: list[str] = []
    waits = threading.Event()

    def other() -> None:
        with holding(path, lambda holder: waits.set()):
            order.append("other")

    thread = threading.Thread(target=other)
    with holding(path, lambda holder: None) as held:
        assert held
        thread.start()
        assert waits.wait()
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://host/x", "expected a folder, or a URL such as s3://bucket/folder"),
        ("s3://", "expected a folder, or a URL such as"),
        ("dbfs:/x", "expected a folder, or a URL such as"),
        ("nosuch://x/y", "no storage serves nosuch://; expected file, gcs, gs, s3, s3a, or a scheme that fsspec knows"),
    ],
)
def test_urls_that_name_nothing(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"data_path: .*{message}"):
        check_place("data_path", url)
    with pytest.raises(UsageError, match="data_path: "):
        place("data_path", url)
