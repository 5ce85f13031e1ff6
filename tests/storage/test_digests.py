"""Checksums of raw files: a file is read once, and again when anything about it changed."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from waiting import let_time_pass

from cggm_ray.data.shards.shards import write_shards_here
from cggm_ray.engine.assembly import prepare_data
from cggm_ray.engine.configuration import Config
from cggm_ray.storage import digests
from cggm_ray.storage.digests import FILE, file_digests, file_state, keep_digests, load_digests
from cggm_ray.storage.files import file_digest
from conftest import small_set, write_pickle

DAY = 86400 * 10**9


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read, and no wait until a file counts as settled."""
    found: list[str] = []

    def reading(path: Path) -> str:
        found.append(path.name)
        return file_digest(path)

    monkeypatch.setattr(digests, "file_digest", reading)
    monkeypatch.setattr(digests, "SETTLED_NS", -1)
    return found


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("one", "two")]
    for path in paths:
        path.write_text(f"content of {path.name}")
    return paths


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return tmp_path / "shards"


def test_an_unchanged_file_is_read_once(files: list[Path], shards: Path, reads: list[str]) -> None:
    want = [file_digest(path) for path in files]
    assert file_digests(files, shards) == want
    assert file_digests(files, shards) == want
    assert file_digests(files[::-1], shards) == want[::-1]
    assert reads == ["one", "two"]


def test_a_changed_file_is_read_again(files: list[Path], shards: Path, reads: list[str]) -> None:
    first = file_digests(files, shards)
    reads.clear()
    let_time_pass(files[0])
    files[0].write_text("CONTENT of one")
    second = file_digests(files, shards)
    assert reads == ["one"]
    assert second == [file_digest(files[0]), first[1]]
    assert second[0] != first[0]


def test_a_touched_file_is_read_again_and_is_the_same(files: list[Path], shards: Path, reads: list[str]) -> None:
    first = file_digests(files, shards)
    reads.clear()
    stat = files[1].stat()
    os.utime(files[1], ns=(stat.st_atime_ns, stat.st_mtime_ns + DAY))
    assert file_digests(files, shards) == first
    assert file_digests(files, shards) == first
    assert reads == ["two"]


@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_content_of_the_same_size_under_the_old_time_is_read(
    files: list[Path], shards: Path, reads: list[str], how: str
) -> None:
    """As a tool leaves it that copies times along."""
    file_digests(files, shards)
    reads.clear()
    let_time_pass(files[0])
    stat = files[0].stat()
    other = files[0] if how == "in place" else files[0].with_name("other")
    other.write_text("CONTENT of one")
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(files[0])
    assert file_state(files[0])[:2] == (stat.st_size, stat.st_mtime_ns)
    assert file_digests(files, shards)[0] == file_digest(files[0])
    assert reads == ["one"]


def test_a_file_that_changed_just_now_is_not_remembered(
    files: list[Path], shards: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "SETTLED_NS", DAY)
    assert file_digests(files, shards) == file_digests(files, shards)
    assert reads == ["one", "two"] * 2


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    files: list[Path], shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changing(path: Path) -> str:
        found = file_digest(path)
        with path.open("a") as file:
            file.write("more")
        return found

    monkeypatch.setattr(digests, "SETTLED_NS", -1)
    monkeypatch.setattr(digests, "file_digest", changing)
    file_digests(files, shards)
    assert load_digests(shards) == {}


def test_what_was_read_before_an_interrupt_is_kept(
    files: list[Path], shards: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path) -> str:
        if path.name == "two":
            raise KeyboardInterrupt
        return file_digest(path)

    with monkeypatch.context() as patch:
        patch.setattr(digests, "file_digest", interrupted)
        with pytest.raises(KeyboardInterrupt):
            file_digests(files, shards)
    file_digests(files, shards)
    assert reads == ["two"]


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "other digest", "other content", "no text", "folder"])
def test_a_damaged_cache_is_no_cache(files: list[Path], shards: Path, reads: list[str], damage: str) -> None:
    want = file_digests(files, shards)
    path = shards / FILE
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "gone":
        digest = want[0].encode()
        damaged = {
            "empty": b"",
            "cut": content[:-5],
            "other digest": content.replace(digest, b"0" * len(digest)),
            "other content": b"[1, 2]",
            "no text": b"\xff" + content,
        }
        path.write_bytes(damaged[damage])
    reads.clear()
    assert file_digests(files, shards) == want
    assert reads == ["one", "two"]
    assert damage == "folder" or len(load_digests(shards)) == 2


def test_a_folder_that_cannot_be_written_costs_the_cache_alone(
    files: list[Path], shards: Path, reads: list[str]
) -> None:
    shards.write_text("a file")
    assert file_digests(files, shards) == [file_digest(path) for path in files]


def test_several_writers(shards: Path) -> None:
    """Whatever they lose to each other, readers never see half a file, and no entry is of another file."""
    done, seen = threading.Event(), []

    def write(writer: int) -> None:
        for number in range(25):
            keep_digests(shards, {f"{writer}-{number}": ((writer, number), f"digest {writer} {number}")})

    def read() -> None:
        while not done.is_set():
            if (shards / FILE).exists():
                seen.append(load_digests(shards))

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    for entries in (*seen, load_digests(shards)):
        assert entries
        for (writer, number), digest in entries.values():
            assert digest == f"digest {writer} {number}"
    assert [path.name for path in shards.iterdir()] == [FILE]


def test_a_second_run_reads_no_raw_file(tmp_path: Path, reads: list[str]) -> None:
    source = write_pickle(tmp_path / "small.pkl", small_set())
    config = Config().replace({"data_path": source, "storage_path": tmp_path})
    first = prepare_data(config, write_shards_here)
    assert reads == ["small.pkl"]
    assert prepare_data(config, write_shards_here) == first
    assert reads == ["small.pkl"]
    let_time_pass(source)
    write_pickle(source, small_set(4))
    assert prepare_data(config, write_shards_here) != first
    assert reads == ["small.pkl"] * 2
