"""Two commands of one name, two conversions of one set: kept apart while they live, and no longer."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cggm_ray.commands.cli import main
from cggm_ray.engine.configuration import Config
from cggm_ray.storage.digests import FILE
from cggm_ray.storage.locks import holding
from conftest import SMALL, sets

COUNT = """
import sys
from pathlib import Path
from cggm_ray.storage import locks
locks.PERIOD = 0.001
counter = Path(sys.argv[1])
said = []
def busy(holder):
    if not said:
        said.append(holder)
        print("waits", flush=True)
for _ in range(50):
    with locks.holding(counter.with_suffix(".lock"), busy):
        counter.write_text(str(int(counter.read_text()) + 1))
"""
HOLD = """
import sys
from pathlib import Path
from cggm_ray.storage.locks import holding
with holding(Path(sys.argv[1]), lambda holder: None):
    print("held", flush=True)
    sys.stdin.read()
"""


def flags(pickle: Path, storage: Path, *more: str) -> list[str]:
    places = ["--data_path", str(pickle), "--storage_path", str(storage), "--name", "run"]
    return [*SMALL, *places, "--local", "--num_epochs", "1", *more]


def holder(path: Path) -> subprocess.Popen[str]:
    """A process that holds a lock until it is killed."""
    command = [sys.executable, "-c", HOLD, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """Also where the file is removed by the one that leaves while others are opening it."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    command = [sys.executable, "-c", COUNT, str(counter)]
    with holding(counter.with_suffix(".lock"), pytest.fail):
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
        # All want it at the same time, however long each took to start.
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "waits\n"
    assert [process.wait() for process in processes] == [0] * 4
    assert counter.read_text() == "200"
    assert not counter.with_suffix(".lock").exists()


def test_a_second_command_of_the_same_name(
    small_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = holder(tmp_path / ".run.lock")
    try:
        assert main(Config(), flags(small_pickle, tmp_path)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: name: {tmp_path / 'run'} belongs to process {process.pid} on ")
        assert not (tmp_path / "run").exists()
        assert main(Config(), flags(small_pickle, tmp_path, "--seeds", "1,2")) == 2
        assert "belongs to process" in capsys.readouterr().err
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    # The dead hold nothing.
    assert main(Config(), flags(small_pickle, tmp_path)) == 0
    assert not (tmp_path / ".run.lock").exists()


def test_a_second_conversion_waits_and_finds_the_set(small_pickle: Path, tmp_path: Path) -> None:
    assert main(Config(), flags(small_pickle, tmp_path)) == 0
    (made,) = sets(tmp_path / "shards")
    away = made.rename(tmp_path / "away")
    process = holder(made.with_name(f".{made.name}.lock"))
    unfinished = made.with_name(f".{made.name}.0123.part")
    unfinished.mkdir()
    command = [sys.executable, "pipelines/mosi.py", *flags(small_pickle, tmp_path, "--fresh")]
    second = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    try:
        assert second.stdout is not None
        # After the first lines of the run.
        said = next(line for line in second.stdout if not line.startswith(("run: ", "  ")))
        assert said.startswith(f"waits for process {process.pid} on ")
        # What another one is making is left alone.
        assert unfinished.exists()
        away.rename(made)
        before = {file.name: file.stat().st_mtime_ns for file in made.iterdir()}
    finally:
        process.kill()
        process.wait()
    assert second.wait() == 0
    assert {file.name: file.stat().st_mtime_ns for file in made.iterdir()} == before


def test_what_a_killed_conversion_left_is_removed(small_pickle: Path, tmp_path: Path) -> None:
    assert main(Config(), flags(small_pickle, tmp_path)) == 0
    (made,) = sets(tmp_path / "shards")
    unfinished, other = made.with_name(f".{made.name}.0123.part"), made.with_name(".other-set.0123.part")
    made.rename(unfinished)
    other.mkdir()
    assert main(Config(), flags(small_pickle, tmp_path, "--fresh")) == 0
    # Checksums of raw files are kept once these have been the same for a while.
    assert {path.name for path in made.parent.glob(".*")} - {FILE} == {other.name}
    assert made.exists()


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with holding(tmp_path / "lock", pytest.fail) as held:
        assert not held


def test_a_folder_that_cannot_be_written(
    small_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(Config(), flags(small_pickle, tmp_path)) == 0
    shutil.rmtree(tmp_path / "run")
    storage = tmp_path / "file"
    storage.write_text("")
    places = ["--storage_path", str(storage), "--shard_path", str(tmp_path / "shards")]
    assert main(Config(), [*flags(small_pickle, tmp_path), *places]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: storage_path: {storage / 'run'} cannot be written: File exists"
