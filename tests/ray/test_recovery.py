"""Nothing is lost: runs that are stopped, killed or damaged go on, and end as the run that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import cggm_ray
from cggm_ray.commands.cli import main
from cggm_ray.core.errors import StorageError
from cggm_ray.data.loading.sampler import epoch_order, slices
from cggm_ray.engine.checkpoints import Checkpoints
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.state import VALUES, WEIGHTS, Position
from cggm_ray.engine.tracking import LOG, Console, read_metrics
from cggm_ray.storage.files import copy_files, write_folder
from conftest import SMALL

PACKAGE = str(Path(cggm_ray.__file__).parent)
TIMES = {"seconds", "samples_per_second", "peak_memory"}


def argv(pickle: Path, storage: Path, name: str, *flags: str) -> list[str]:
    places = ["--data_path", str(pickle), "--storage_path", str(storage), "--name", name]
    return ["--local", *SMALL, *places, "--log_interval", "1", *flags]


def lines(run: Path) -> list[dict[str, float | None]]:
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(run)]


def same(run: Path, whole: Path) -> bool:
    files = ("summary.json", f"best/{WEIGHTS}", "predictions.parquet")
    return lines(run) == lines(whole) and all((run / f).read_bytes() == (whole / f).read_bytes() for f in files)


def when(patch: pytest.MonkeyPatch, text: str, act: Callable[[], object]) -> None:
    """Acts as soon as a run has said a line with the text, before it does anything else."""
    say = Console.say

    def saying(console: Console, line: str) -> None:
        say(console, line)
        if text in line:
            act()

    patch.setattr(Console, "say", saying)


@pytest.mark.parametrize("strategy", ["cggm", "cggm-released", "agm", "ogm-ge", "modality-dropout"])
def test_a_signal_saves_within_the_epoch(
    small_pickle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    strategy: str,
) -> None:
    flags = ["--modulation", strategy, "--num_epochs", "5", "--batch_size", "2"]
    assert main(Config(), argv(small_pickle, tmp_path, "whole", *flags)) == 0
    command, log = argv(small_pickle, tmp_path, "parts", *flags), tmp_path / "parts" / LOG
    for epoch, step, number in ((2, 3, signal.SIGTERM), (3, 7, signal.SIGINT)):
        capsys.readouterr()
        with monkeypatch.context() as patch:
            when(patch, f"epoch {epoch}  step {step}/", partial(signal.raise_signal, number))
            assert main(Config(), command) == 128 + number
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("stopped after epoch ")
        newest = Checkpoints(tmp_path / "parts").newest()
        assert newest is not None
        assert str(newest) in line
        assert newest.name == Position(epoch - 1, step).name
    assert main(Config(), command) == 0
    assert same(tmp_path / "parts", tmp_path / "whole")
    assert log.read_text().count("continues after epoch") == 2


def test_checkpoints_within_epochs_change_nothing(small_pickle: Path, tmp_path: Path) -> None:
    assert main(Config(), argv(small_pickle, tmp_path, "whole")) == 0
    assert main(Config(), argv(small_pickle, tmp_path, "often", "--save_every", "2")) == 0
    assert same(tmp_path / "often", tmp_path / "whole")


def test_an_epoch_that_stopped_after_its_last_step_is_validated(small_pickle: Path, tmp_path: Path) -> None:
    assert main(Config(), argv(small_pickle, tmp_path, "whole")) == 0
    command = argv(small_pickle, tmp_path, "run", "--save_every", "5")
    assert main(Config(), command) == 0
    checkpoints = Checkpoints(tmp_path / "run")
    assert [position for position, _ in checkpoints.all()] == [Position(1), Position(1, 5), Position(2)]
    shutil.rmtree(checkpoints.folder / Position(2).name)
    assert main(Config(), command) == 0
    assert same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    small_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    command = argv(small_pickle, tmp_path, "run", "--num_epochs", "4")
    assert main(Config(), argv(small_pickle, tmp_path, "whole", "--num_epochs", "4")) == 0
    assert main(Config(), argv(small_pickle, tmp_path, "run", "--num_epochs", "3")) == 0
    checkpoints, rng = Checkpoints(tmp_path / "run"), random.Random(1)
    newest, before = (checkpoints.folder / f"epoch-0000{n}" for n in (3, 2))
    for number in range(24):
        file = sorted(newest.iterdir())[number % 4]
        content = file.read_bytes()
        place = rng.randrange(len(content))
        file.write_bytes(
            content[:place] + (b"" if damage == "cut" else bytes([content[place] ^ 4]) + content[place + 1 :])
        )
        found, (line, *_) = checkpoints.usable()
        assert found == before
        assert str(newest) in line
        if number < 23:
            file.write_bytes(content)
    capsys.readouterr()
    assert main(Config(), command) == 0
    printed = capsys.readouterr().out
    damaged, goes_on = printed.index(f"{newest}"), printed.index(f"continues after epoch 2 from {before}")
    assert damaged < goes_on
    assert same(tmp_path / "run", tmp_path / "whole")


def test_what_happens_where_no_checkpoint_is_whole(
    small_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = argv(small_pickle, tmp_path, "run")
    assert main(Config(), [*command, "--num_epochs", "1"]) == 0
    (tmp_path / "run" / "checkpoints" / "epoch-00001" / VALUES).write_text("{")
    capsys.readouterr()
    assert main(Config(), command) == 0
    assert "starts at the beginning" in capsys.readouterr().out
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        (folder / WEIGHTS).unlink()
    assert main(Config(), [*command, "--num_epochs", "3"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "no checkpoint can be used" in line
    assert WEIGHTS in line
    assert "--fresh starts over" in line


def test_nothing_in_a_checkpoint_is_unpickled(
    small_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, trap = argv(small_pickle, tmp_path, "run"), tmp_path / "executed"

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (trap,))

    assert main(Config(), command) == 0
    for folder in (tmp_path / "run" / "checkpoints").iterdir():

        def write(partial: Path, folder: Path = folder) -> None:
            copy_files(folder, partial)
            torch.save({"weights": Bomb()}, partial / WEIGHTS)

        write_folder(folder, write)
    assert main(Config(), [*command, "--num_epochs", "3"]) == 1
    assert "cannot be used" in capsys.readouterr().err
    assert not trap.exists()


def killed_at(line: int, work: Callable[[], object]) -> bool:
    """Whether a process of its own was killed at the n-th line of Python that it ran for some work, or else finished it."""
    child = os.fork()
    if not child:
        left = line

        def trace(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
            nonlocal left
            if not frame.f_code.co_filename.startswith((PACKAGE, shutil.__file__, __file__)):
                return None
            left -= event == "line"
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace

        try:
            sys.settrace(trace)
            work()
            sys.settrace(None)
        finally:
            os._exit(int(sys.exc_info()[0] is not None))
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_a_writer_that_is_killed_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """Wherever it is killed: before each line of the code that writes, renames and removes."""

    def write(folder: Path) -> None:
        for name in (VALUES, WEIGHTS):
            with (folder / name).open("w") as file:
                file.write('{"best": ')
                file.flush()
                file.write('{"epoch": 0}}')

    before = Checkpoints(tmp_path / "before")
    for epoch in (1, 2):
        before.save(Position(epoch), write)
    newest = []
    killed = True
    while killed:
        run = tmp_path / str(len(newest))
        shutil.copytree(tmp_path / "before", run)
        checkpoints = Checkpoints(run)
        killed = killed_at(len(newest) + 1, partial(checkpoints.save, Position(3), write))
        found, damaged = checkpoints.usable()
        assert damaged == []
        assert found is not None
        newest.append(found.name)
    # There is one line before which the old one is the newest, and after which the new one is.
    assert newest == sorted(newest)
    assert set(newest) == {Position(2).name, Position(3).name}
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == [Position(2).name, Position(3).name]


def test_a_full_disk_is_one_line_with_the_last_good_checkpoint(
    small_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = argv(small_pickle, tmp_path, "run", "--num_epochs", "3")
    assert main(Config(), argv(small_pickle, tmp_path, "whole", "--num_epochs", "3")) == 0
    assert main(Config(), [*command, "--num_epochs", "1"]) == 0
    capsys.readouterr()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        assert main(Config(), command) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be written or read: " in line
    assert "File too large" in line
    assert f"last good checkpoint: {tmp_path / 'run' / 'checkpoints' / 'epoch-00001'}" in line
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"epoch-00001"}
    assert main(Config(), command) == 0
    assert same(tmp_path / "run", tmp_path / "whole")


def test_storage_that_vanishes_is_one_line(
    small_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    when(monkeypatch, "epoch 2  step 1/", lambda: shutil.move(run, tmp_path / "away"))
    assert main(Config(), argv(small_pickle, tmp_path, "run", "--num_epochs", "200")) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {run}")
    assert "No such file or directory" in line


def test_the_old_checkpoints_stay_when_a_new_one_cannot_be_written(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)

    def write(folder: Path) -> None:
        (folder / VALUES).write_text(json.dumps({"best": {"epoch": 1}}))

    def fail(folder: Path) -> None:
        raise OSError(28, "No space left on device", str(folder / WEIGHTS))

    for epoch in (1, 2, 3, 4):
        checkpoints.save(Position(epoch), write)
    with pytest.raises(StorageError, match=r"No space left on device; last good checkpoint: .*epoch-00004"):
        checkpoints.save(Position(5), fail)
    assert [position.epoch for position, _ in checkpoints.all()] == [1, 3, 4]


def test_fresh_keeps_what_was_there(small_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = argv(small_pickle, tmp_path, "run", "--num_epochs", "1")
    assert main(Config(), command) == 0
    old = (tmp_path / "run" / "summary.json").read_bytes()
    for number, seed in enumerate(("7", "8"), start=1):
        assert main(Config(), [*command, "--fresh", "--seed", seed]) == 0
        assert f"kept in {tmp_path / f'run.{number}'}" in capsys.readouterr().out
    assert (tmp_path / "run.1" / "summary.json").read_bytes() == old != (tmp_path / "run" / "summary.json").read_bytes()
    assert [line["epoch"] for line in lines(tmp_path / "run")] == [1]
    assert "fresh: false" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_changed_configuration_is_taken_on_demand(
    small_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = argv(small_pickle, tmp_path, "run")
    assert main(Config(), [*command, "--num_epochs", "1"]) == 0
    assert main(Config(), [*command, "--rho", "0.7"]) == 2
    assert "--allow_config_change" in capsys.readouterr().err
    assert main(Config(), [*command, "--rho", "0.7", "--allow_config_change"]) == 0
    printed = capsys.readouterr().out
    assert "another configuration: rho: was 1.3, now 0.7" in printed
    assert "continues after epoch 1" in printed
    assert main(Config(), [*command, "--rho", "0.7", "--num_epochs", "3"]) == 0


@pytest.mark.parametrize("sizes", [(4, 2), (1, 3, 2), (3, 1)])
def test_a_group_of_another_size_goes_on_with_the_same_samples(sizes: tuple[int, ...]) -> None:
    order = epoch_order(37, 5, 0)
    seen, batches = 0, []
    for world_size in sizes:
        parts = [list(slices(order[seen:], 8, rank, world_size)) for rank in range(world_size)]
        # Each group takes two steps, the last one what is left.
        steps = len(parts[0]) if world_size == sizes[-1] else 1
        for step in range(steps):
            batch = [part[step].index for part in parts if part[step].weight is None]
            batches.append(torch.cat(batch))
            seen += parts[0][step].samples
    assert [batch.tolist() for batch in batches] == [batch.tolist() for batch in order.split(8)]
