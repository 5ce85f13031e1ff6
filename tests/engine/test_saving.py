"""Saves beside training: what they hold, who waits for them, and how they fail. Real threads write real files."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from waiting import wait_for

from cggm_ray.commands.cli import main, parse
from cggm_ray.core.errors import NonFiniteError, StorageError
from cggm_ray.core.reduction import SINGLE_WORKER, Reduction
from cggm_ray.data.shards.shards import write_shards_here
from cggm_ray.engine import loop
from cggm_ray.engine.assembly import prepare_data
from cggm_ray.engine.checkpoints import Checkpoints, check_checkpoint
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.loop import train
from cggm_ray.engine.opening import open_training
from cggm_ray.engine.runtime import LocalRuntime, Record
from cggm_ray.engine.saving import HostCopy, Saves
from cggm_ray.engine.state import TENSORS, VALUES, WEIGHTS, Content, Position
from cggm_ray.engine.tracking import read_metrics
from conftest import SMALL

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


class SlowDisk(Checkpoints):
    """Checkpoints on a disk that takes in nothing until `ready` is set."""

    def __init__(self, run: Path) -> None:
        super().__init__(run)
        self.ready = threading.Event()

    def save(self, position: Position, write: Callable[[Path], None]) -> None:
        self.ready.wait()
        super().save(position, write)


def content(value: float, size: int = 1000) -> Content:
    values = json.dumps({"best": {"epoch": 1}, "value": value})
    return Content(weights={"w": torch.full((size,), value)}, tensors={"/m": torch.full((3,), value)}, values=values)


def saves(checkpoints: Checkpoints) -> Saves:
    return Saves(checkpoints, 0, SINGLE_WORKER, CPU)


@contextmanager
def no_room(most: int = 2000) -> Iterator[None]:
    """No file of this process may have more bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_training_goes_on_while_a_slow_disk_writes_what_was(tmp_path: Path) -> None:
    disk, reported = SlowDisk(tmp_path), []
    run, state = saves(disk), content(1.0)
    run.begin(Position(1), lambda: state, lambda: reported.append(threading.current_thread()))
    # The next step changes the tensors before the disk has taken in any of them.
    for tensor in (*state.weights.values(), *state.tensors.values()):
        tensor.fill_(7.0)
    assert not run.ended
    assert not list(disk.folder.glob("*"))
    disk.ready.set()
    run.settle()
    assert reported == [threading.current_thread()]
    (folder,) = disk.folder.iterdir()
    check_checkpoint(folder)
    assert load_file(folder / WEIGHTS)["w"].unique().tolist() == [1.0]
    assert load_file(folder / TENSORS)["/m"].unique().tolist() == [1.0]
    assert json.loads((folder / VALUES).read_text())["value"] == 1.0


def test_one_save_is_in_flight_and_the_next_one_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, said = SlowDisk(tmp_path), []
    run = saves(disk)
    run.begin(Position(1), lambda: content(1.0), lambda: said.append("first is whole"))

    def second() -> Content:
        said.append("second is copied")
        return content(2.0)

    waits, wait = threading.Event(), run.wait

    def noted() -> None:
        waits.set()
        wait()

    monkeypatch.setattr(run, "wait", noted)
    training = threading.Thread(target=run.begin, args=(Position(2), second))
    training.start()
    waits.wait()
    assert said == []
    disk.ready.set()
    training.join()
    run.settle()
    assert said == ["first is whole", "second is copied"]
    assert [position.epoch for position, _ in disk.all()] == [1, 2]
    assert [load_file(folder / WEIGHTS)["w"][0].item() for _, folder in disk.all()] == [1.0, 2.0]


def test_whoever_reads_the_checkpoints_waits(tmp_path: Path) -> None:
    disk = SlowDisk(tmp_path)
    run = saves(disk)
    run.begin(Position(3), lambda: content(1.0))
    threading.Timer(0.1, disk.ready.set).start()
    assert run.checkpoints.newest() == disk.folder / Position(3).name
    assert run.ended


@pytest.mark.parametrize("how", ["at the next save", "at the end"])
def test_a_full_disk_is_told_once_and_nothing_is_lost(tmp_path: Path, how: str) -> None:
    run, reported = saves(Checkpoints(tmp_path)), []
    run.begin(Position(1), lambda: content(1.0))
    run.settle()
    with no_room():
        run.begin(Position(2), lambda: content(2.0), lambda: reported.append(2))
        run.wait()
    act = run.settle if how == "at the end" else partial(run.begin, Position(3), lambda: content(3.0))
    with pytest.raises(StorageError, match=r"File too large.*last good checkpoint: .*epoch-00001; the same command"):
        act()
    assert reported == []
    assert [path.name for path in run.checkpoints.folder.iterdir()] == [Position(1).name]
    run.begin(Position(2), lambda: content(2.0), lambda: reported.append(2))
    run.settle()
    assert reported == [2]


@pytest.mark.parametrize("full", [False, True])
def test_workers_agree(tmp_path: Path, full: bool) -> None:
    """Two workers, of which rank 0 writes: both report, or both end with an error and report nothing."""
    parts, both = [torch.zeros(()), torch.zeros(())], threading.Barrier(2, timeout=60)
    outcomes: dict[int, list[str]] = {0: [], 1: []}

    def work(rank: int) -> None:
        def add(part: torch.Tensor) -> torch.Tensor:
            parts[rank] = part
            both.wait()
            total = parts[0] + parts[1]
            both.wait()
            return total

        run = Saves(Checkpoints(tmp_path), rank, Reduction(add, 2), CPU)
        try:
            for epoch in (1, 2):
                run.begin(Position(epoch), lambda: content(1.0), partial(outcomes[rank].append, f"epoch {epoch}"))
            run.settle()
        except StorageError as error:
            outcomes[rank].append(str(error))

    workers = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    with no_room() if full else nullcontext():
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    if not full:
        assert outcomes == {0: ["epoch 1", "epoch 2"], 1: ["epoch 1", "epoch 2"]}
        return
    (first,), (other,) = outcomes[0], outcomes[1]
    assert "File too large" in first
    assert other == f"{tmp_path / 'checkpoints'}: rank 0 cannot write the checkpoint of epoch 1"


def test_a_copy_is_equal_and_the_next_one_takes_no_more_memory() -> None:
    torch.manual_seed(1)
    shared = torch.randn(4, 3)
    kinds = {
        "float": torch.randn(5, 7),
        "double": torch.randn(3, dtype=torch.float64),
        "half": torch.randn(9).to(torch.bfloat16),
        "flags": torch.tensor([True, False, True]),
        "number": torch.tensor(5),
        "empty": torch.zeros(0, 4),
        "turned": torch.randn(6, 2).T,
        "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }
    state = Content(weights={"a": shared, "b": shared}, tensors=kinds, values="{}")
    copy = HostCopy()
    places = []
    for _ in range(2):
        found = copy(state)
        for ours, theirs in ((found.weights, state.weights), (found.tensors, state.tensors)):
            assert list(ours) == list(theirs)
            for name, tensor in theirs.items():
                assert ours[name].dtype == tensor.dtype
                assert ours[name].is_contiguous()
                assert torch.equal(ours[name], tensor)
        places.append([tensor.data_ptr() for tensor in (*found.weights.values(), *found.tensors.values())])
        shared.add_(1.0)
    assert places[0] == places[1]
    assert found.weights["a"].data_ptr() != found.weights["b"].data_ptr()


ENDLESS = """
import itertools, sys
from pathlib import Path
import torch
from cggm_ray.core.reduction import SINGLE_WORKER
from cggm_ray.engine.checkpoints import Checkpoints
from cggm_ray.engine.saving import Saves
from cggm_ray.engine.state import Content, Position

saves = Saves(Checkpoints(Path(sys.argv[1])), 0, SINGLE_WORKER, torch.device("cpu"))
weights = torch.zeros(1_000_000)
for epoch in itertools.count(1):
    weights.fill_(epoch)
    values = '{"best": {"epoch": %d}}' % epoch
    saves.begin(Position(epoch), lambda: Content(weights={"w": weights}, tensors={"/m": weights[:9]}, values=values))
"""


def test_a_process_that_is_killed_while_it_writes_leaves_the_last_whole_checkpoint(tmp_path: Path) -> None:
    """SIGKILL, always while a folder is half written."""
    checkpoints = Checkpoints(tmp_path)
    for number in range(2):
        process = subprocess.Popen([sys.executable, "-c", ENDLESS, str(tmp_path)], env=os.environ)
        before = checkpoints.newest()

        def writing(before: Path | None = before) -> bool:
            return checkpoints.newest() != before and any(checkpoints.folder.glob(".*.part/*"))

        try:
            wait_for(writing, "nothing is written", by=process)
        finally:
            process.kill()
            process.wait()
        found, damaged = checkpoints.usable()
        assert damaged == []
        assert found is not None
        epoch = int(found.name.removeprefix("epoch-"))
        assert load_file(found / WEIGHTS)["w"].unique().tolist() == [epoch], number


class Publishing(LocalRuntime):
    """Records what is on the disk when the metrics of an epoch are passed on."""

    seen: list[tuple[float, int, bool]]

    def publish(self, record: Record) -> None:
        check_checkpoint(self.checkpoints.folder / Position(int(record["epoch"])).name)
        lines = len(read_metrics(self.checkpoints.folder.parent))
        self.seen.append((record["epoch"], lines, threading.current_thread() is threading.main_thread()))


def arguments(pickle: Path, storage: Path, name: str, *flags: str) -> list[str]:
    return ["--local", *SMALL, "--data_path", str(pickle), "--storage_path", str(storage), "--name", name, *flags]


def test_an_epoch_is_reported_with_a_whole_checkpoint_and_before_the_next_one_is_logged(
    small_pickle: Path, tmp_path: Path
) -> None:
    config = parse(Config(), arguments(small_pickle, tmp_path, "run", "--num_epochs", "4", "--save_every", "2")).config
    shards = prepare_data(config, write_shards_here)
    (tmp_path / "run").mkdir()
    runtime = Publishing(tmp_path / "run", config.run)
    runtime.seen = []
    train(open_training(config, shards, runtime, tmp_path / "run"))
    assert runtime.seen == [(epoch, epoch, True) for epoch in (1, 2, 3, 4)]


def test_an_error_waits_for_the_save_in_flight(
    small_pickle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The step after a save fails while the disk still writes; the run ends with its whole checkpoint."""
    save, take, failed = Checkpoints.save, loop.train_step, threading.Event()

    def slowly(checkpoints: Checkpoints, position: Position, write: Callable[[Path], None]) -> None:
        if position == Position(1, 2):
            failed.wait()
        save(checkpoints, position, write)

    def failing(state: object, *rest: object, **named: object) -> object:
        if state.step == 7:  # type: ignore[attr-defined]
            failed.set()
            raise NonFiniteError("not finite")
        return take(state, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Checkpoints, "save", slowly)
    monkeypatch.setattr(loop, "train_step", failing)
    assert main(Config(), arguments(small_pickle, tmp_path, "run", "--save_every", "7")) == 1
    assert "not finite" in capsys.readouterr().err
    newest = Checkpoints(tmp_path / "run").newest()
    assert newest is not None
    assert newest.name == Position(1, 2).name
    check_checkpoint(newest)


def test_a_failed_write_ends_the_run_at_a_step(
    small_pickle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not only at the next save, which may be an hour away."""
    take, steps = loop.train_step, []

    def waiting(state: object, *rest: object, **named: object) -> object:
        # The step after the save begins when the thread has seen that the disk is full.
        for thread in threading.enumerate():
            if thread.name.startswith("save "):
                thread.join()
        steps.append(state.step)  # type: ignore[attr-defined]
        return take(state, *rest, **named)  # type: ignore[arg-type]

    assert main(Config(), arguments(small_pickle, tmp_path, "run", "--num_epochs", "1")) == 0
    capsys.readouterr()
    monkeypatch.setattr(loop, "train_step", waiting)
    with no_room(20_000):
        assert main(Config(), arguments(small_pickle, tmp_path, "run", "--save_every", "2")) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "File too large" in line
    assert f"last good checkpoint: {tmp_path / 'run' / 'checkpoints' / 'epoch-00001'}" in line
    # It was begun after step 6.
    assert steps == [5, 6]


def test_a_run_that_is_killed_while_it_writes_ends_with_the_same_bits(small_pickle: Path, tmp_path: Path) -> None:
    run, flags = tmp_path / "run", ["--save_every", "1"]
    command = [sys.executable, str(ROOT / "pipelines" / "mosi.py"), *arguments(small_pickle, tmp_path, "run", *flags)]
    endless = [*command, "--num_epochs", "1000000"]
    process = subprocess.Popen(endless, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        wait_for(lambda: any((run / "checkpoints").glob("epoch-*")), "nothing is saved", by=process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    flags = ["--num_epochs", str(len(read_metrics(run)) + 1), "--report", "false"]
    for name in ("run", "whole"):
        assert main(Config(), arguments(small_pickle, tmp_path, name, *flags)) == 0
    for name in ("summary.json", f"best/{WEIGHTS}", "predictions.parquet"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_few_checkpoints_are_kept_and_the_best_one_takes_no_room(small_pickle: Path, tmp_path: Path) -> None:
    flags = ["--num_epochs", "8", "--lr", "0.2", "--keep_checkpoints", "1"]
    assert main(Config(), arguments(small_pickle, tmp_path, "run", *flags)) == 0
    run = tmp_path / "run"
    best = json.loads((run / "summary.json").read_text())["best_epoch"]
    assert best < 7
    kept = {folder.name for folder in (run / "checkpoints").iterdir()}
    assert kept == {Position(best).name, Position(8).name}
    assert {path.name for path in (run / "best").iterdir()} == {WEIGHTS, VALUES, "checksums.json"}
    check_checkpoint(run / "best")
    assert (run / "best" / WEIGHTS).samefile(run / "checkpoints" / Position(best).name / WEIGHTS)
    assert main(Config(), arguments(small_pickle, tmp_path, "run", *flags, "--num_epochs", "9")) == 0
