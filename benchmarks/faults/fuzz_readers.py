"""The side of `fuzz.py` that reads: a process of its own that may crash, with bounded memory and a canary for code that runs.

It takes lines `{"path": ..., "role": ...}` on its standard input and answers each with `{"outcome": ..., "detail": ...}`.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz_listings import BUCKET
from fuzz_recipes import RECIPES, WORK

from cggm_ray.commands.cli import parse
from cggm_ray.core.errors import LONGEST, CggmError
from cggm_ray.data.dataset import Dataset
from cggm_ray.data.datasets.brats.brats import BratsOptions
from cggm_ray.data.datasets.brats.volumes import read_nifti
from cggm_ray.data.datasets.features import FeatureOptions
from cggm_ray.data.datasets.food101.augment import image_problem, resized
from cggm_ray.data.datasets.food101.encoders import find_bert, find_vit
from cggm_ray.data.datasets.food101.food101_records import check_labels, read_lists
from cggm_ray.data.datasets.food101.lists import find_lists
from cggm_ray.data.datasets.iemocap import IemocapOptions
from cggm_ray.data.formats.h5 import PROBE
from cggm_ray.data.loading.sampler import slices
from cggm_ray.data.loading.split import load_split
from cggm_ray.data.loading.stream import StreamSplit
from cggm_ray.data.settings import DataConfig
from cggm_ray.data.shards.opening import open_manifest
from cggm_ray.data.shards.shards import MANIFEST, Manifest, open_set
from cggm_ray.distributed.tune.draws import draw_trials
from cggm_ray.engine.assembly import build_dataset
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.runtime import RunConfig
from cggm_ray.studies.space import read_search

GIB = 2**30
FINE, NAMED, CRASH, HANG, MEMORY, EXECUTED = "fine", "named error", "CRASH", "HANG", "MEMORY", "EXECUTED"
OUTCOMES = (FINE, NAMED, CRASH, HANG, MEMORY, EXECUTED)
BAD = OUTCOMES[2:]
NO_MEMORY = ("MemoryError", "nable to allocate", "malloc of size", "realloc of size", "Out of memory")
STARTS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.startfile", "subprocess.Popen", "pty.spawn")
CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.link", "os.symlink", "shutil.rmtree")
REACHES = ("socket.connect", "socket.getaddrinfo", "urllib.Request", "ctypes.dlopen")


def convert(dataset: Dataset, path: Path) -> None:
    """What a pipeline does with raw files: all shards, read and transformed."""
    for raw in dataset.read(dataset.locate(path)):
        table = raw.table
        for stage in dataset.stages():
            table = stage.make()(table)


def config(dataset: str, options: Any = None) -> Config:
    """Returns a configuration for a dataset."""
    data, run = DataConfig(dataset=dataset), RunConfig(local=True)
    return Config(data=data, run=run) if options is None else Config(data=data, run=run, options=options)


def features(path: Path) -> None:
    """As `pipelines/features.py`, for classes and for numbers."""
    classes, numbers = FeatureOptions(), FeatureOptions(task="regression", target="mark")
    each(
        lambda: convert(build_dataset(config("features", classes)), path),
        lambda: convert(build_dataset(config("features", numbers)), path),
    )


def mosi_and_features(path: Path) -> None:
    """A pickle may be meant for either pipeline."""
    options = FeatureOptions(task="regression", target="labels")
    each(
        lambda: convert(build_dataset(config("mosi")), path),
        lambda: convert(build_dataset(config("features", options)), path),
        lambda: features(path),
    )


def each(*ways: Callable[[], None]) -> None:
    """Reads in all ways; raises our error of the last where none of them could, and any other error at once."""
    errors = []
    for way in ways:
        try:
            way()
        except CggmError as error:
            if lacks_memory(error):
                raise
            errors.append(error)
    if len(errors) == len(ways):
        raise errors[-1]


def iemocap(folder: Path) -> None:
    """As `pipelines/iemocap.py`."""
    for norm in ("trn", "utt"):
        convert(build_dataset(config("iemocap", IemocapOptions(norm_method=norm, text_length=4))), folder)


def brats(folder: Path) -> None:
    """As `pipelines/brats.py`."""
    convert(build_dataset(config("brats", BratsOptions(crop=16))), folder)


def search(path: Path) -> None:
    """As `--tune`."""
    draw_trials(read_search(path, Config()), Config(), str(path))


def records(folder: Path) -> None:
    """As `pipelines/food101.py`, before it looks at images."""
    check_labels(read_lists(find_lists(folder), folder))


def image(path: Path) -> None:
    """As the decoding of Food-101: what has no problem is read."""
    problem = image_problem(path, 16)
    if problem is not None:
        raise CggmError(f"{path}: {problem}")
    resized(path, 16)


def nifti(path: Path) -> None:
    """One file in all five places of a case."""
    read_nifti(dict.fromkeys(("flair", "t1ce", "t1", "t2", "seg"), path))


def read_set(folder: Path, manifest: Manifest) -> None:
    """As the loop does: whole, and as a stream."""
    names, device = tuple(manifest.modalities), torch.device("cpu")
    for split in manifest.splits:
        for opened in (
            load_split(folder, manifest, split, names, device),
            StreamSplit(folder, manifest, split, names, device, 0, GIB),
        ):
            for _ in opened.batches(list(slices(torch.arange(len(opened)), 2, 0, 1)), epoch=0):
                pass


def shard(folder: Path) -> None:
    """A shard of another size makes a set incomplete; here every size is taken, so that its content is read."""
    content = json.loads((folder / MANIFEST).read_text())
    for described in content["splits"]["train"]:
        described["bytes"] = (folder / described["file"]).stat().st_size
    read_set(folder, Manifest.from_json(json.dumps(content)))


def canary_execute(path: Path) -> None:
    """What the canary must notice."""
    import pickle

    pickle.loads(path.read_bytes())


def canary_memory(path: Path) -> None:
    """What the limit must notice, though the reader hides it."""
    try:
        np.ones(2 * GIB, np.uint8)
    except MemoryError:
        raise CggmError(f"{path}: too large") from None


def canary_hang(path: Path) -> None:
    """What the watchdog must notice."""
    while True:
        pass


def canary_crash(path: Path) -> None:
    """What the exit status must notice."""
    os.abort()


def canary_error(path: Path) -> None:
    """An error that is none of ours."""
    raise KeyError(str(path))


READERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "mosi": (mosi_and_features, ""),
    "features": (features, ""),
    "text": (iemocap, "L/bert_large.h5"),
    "audio": (iemocap, "A/comparE.h5"),
    "statistics": (iemocap, "A/comparE_mean_std.h5"),
    "labels": (iemocap, "target/1/trn_label.npy"),
    "names": (iemocap, "target/1/trn_int2name.npy"),
    "volume": (brats, "train/case0.h5"),
    "nifti": (nifti, ""),
    "records": (records, "train.json"),
    "bert": (lambda folder: find_bert(str(folder), 4), "config.json"),
    "vit": (lambda folder: find_vit(str(folder)), "config.json"),
    "manifest": (open_set, MANIFEST),
    "set": (lambda folder: read_set(folder, open_manifest(folder)), MANIFEST),
    "shard": (shard, "train-00000.parquet"),
    "config": (lambda path: parse(Config(), ["--config", str(path)]), ""),
    "search": (search, ""),
    "image": (image, ""),
    **RECIPES,
    "canary execute": (canary_execute, ""),
    "canary memory": (canary_memory, ""),
    "canary hang": (canary_hang, ""),
    "canary crash": (canary_crash, ""),
    "canary error": (canary_error, ""),
}
"""By role: what reads, and the place of the file in a folder whose other files are whole."""


def _known(code: Any) -> bool:
    """Returns whether the standard library runs this code: modules that are frozen, annotations that are evaluated."""
    caller = sys._getframe(2).f_code.co_filename
    return "frozen" in code.co_filename or Path(caller).name in ("typing.py", "dataclasses.py")


class Canary:
    """Notes what a reader of data has no reason to do: start programs, change files, reach out, run code of its input."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.allowed: Path | None = None
        """Folder of the input; nothing is looked at where it is None."""
        self.writable: Path | None = None
        """Folder in which the reader may write, such as copies of files of a store; None for none."""
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.allowed is None:
            return
        noted = ""
        if event == "subprocess.Popen" and list(arguments[1]) == [sys.executable, str(PROBE)]:
            return
        if event.startswith(CHANGES) and self._may_change(event, arguments):
            return
        if event.startswith((*STARTS, *CHANGES, *REACHES)):
            noted = f"{event} {arguments!r:.80}"
        elif event == "exec" and not Path(arguments[0].co_filename).is_file() and not _known(arguments[0]):
            noted = f"exec {arguments[0]!r:.80}"
        elif event == "open" and isinstance(arguments[0], str | bytes):
            path, _, flags = arguments
            name = os.path.abspath(os.fsdecode(path))
            writes = bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            places = (str(self.allowed), sys.prefix, sys.base_prefix, "/proc/", "/sys/", "/usr/", "/etc/mime")
            if (writes and not self._may_write(name)) or not name.startswith(places):
                noted = f"open {name} {'to write' if writes else 'outside'}"
        if noted:
            self.seen.append(noted)
            raise PermissionError(f"the canary stops {noted}")

    def _may_write(self, name: str) -> bool:
        return self.writable is not None and Path(os.path.realpath(name)).is_relative_to(self.writable)

    def _may_change(self, event: str, arguments: tuple[Any, ...]) -> bool:
        """Returns whether a change is below the folder in which the reader may write; names may be relative to open folders."""
        names = [os.fsdecode(one) for one in arguments if isinstance(one, str | bytes | os.PathLike)]
        folders = [one for one in arguments[1:] if isinstance(one, int) and one > 2] if event != "os.mkdir" else []
        above = os.readlink(f"/proc/self/fd/{folders[-1]}") if folders else os.getcwd()
        return bool(names) and all(self._may_write(os.path.join(above, name)) for name in names)


def outcome(
    read: Callable[[Path], Any], path: Path, folder: Path, canary: Canary, watch: bool, role: str
) -> tuple[str, str]:
    """Returns what became of one input, and what to say about it; without `watch` modules may be imported."""
    canary.seen.clear()
    canary.writable = folder / WORK if role in RECIPES else None
    canary.allowed = folder if watch else None
    error: BaseException | None = None
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            read(path)
        except BaseException as raised:
            error = raised
        canary.allowed = None
    if canary.seen:
        return EXECUTED, canary.seen[0]
    if warned:
        # It would be a second line, and says that a value was taken which should not have been.
        return CRASH, f"warns: {warned[0].category.__name__}: {warned[0].message}"
    if error is None:
        return FINE, ""
    told = "".join(traceback.format_exception(error)[-3:]) if not isinstance(error, CggmError) else str(error)
    if lacks_memory(error):
        return MEMORY, told
    if not isinstance(error, CggmError):
        return CRASH, told
    if len(told.splitlines()) != 1 or len(told) > 3 * LONGEST or not told.isprintable():
        return CRASH, f"not one line: {told!r:.300}"
    if str(folder) not in told and not (role == "listing" and BUCKET in told):
        return CRASH, f"names no file: {told}"
    return NAMED, told.replace(str(folder), "...")


def lacks_memory(error: BaseException | None) -> bool:
    """Returns whether an error, or one that it took the place of, is about memory."""
    while error is not None:
        # Our own errors quote names from the input, which may say anything; what they took the place of follows in the chain.
        # FFmpeg names by the same words a size that it refuses, of 2 GiB or more, before it asks for memory.
        quotes = isinstance(error, CggmError) or type(error).__module__ == "av.error"
        if not quotes and (isinstance(error, MemoryError) or any(sign in str(error) for sign in NO_MEMORY)):
            return True
        error = error.__cause__ or error.__context__
    return False


def serve(whole: Path, folder: Path) -> None:
    """Answers until the input ends.

    Args:
        whole: folder with a folder for every role that has a place, of whole files.
        folder: to work in.
    """
    import pyarrow as pa

    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    (folder / WORK).mkdir()
    os.environ.update(dict.fromkeys(("CGGM_FUZZ_WORK", "CGGM_CACHE", "CGGM_WORK"), str(folder / WORK)))
    # What libraries open by a relative name lies in it.
    os.chdir(folder)
    canary = Canary()
    answers = os.fdopen(os.dup(1), "w")
    # What libraries print of a damaged file is not for the reader of the answers.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    for role, (_, place) in READERS.items():
        if place:
            shutil.copytree(whole / role, folder / role)
    for line in sys.stdin:
        question = json.loads(line)
        source, role = Path(question["path"]), question["role"]
        read, place = READERS[role]
        target = folder / role / place if place else folder / f"input{source.suffix}"
        target.unlink(missing_ok=True)
        shutil.copyfile(source, target)
        found, detail = outcome(read, folder / role if place else target, folder, canary, not question["first"], role)
        answers.write(json.dumps({"outcome": found, "detail": detail[:600]}) + "\n")
        answers.flush()
        if question.get("settle"):
            # Everything that is imported late is there: from here on memory belongs to the inputs.
            used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (used + GIB, resource.RLIM_INFINITY))


if __name__ == "__main__":
    serve(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
