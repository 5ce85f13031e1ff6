"""What `fuzz_readers.py` calls for tables, sets of sound and pictures, sets of sentiment and lists of stores.

The roles that lie in a folder find whole files there, which `whole_recipes` writes.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_listings import BUCKET, EMPTY, Listing, listing_server
from PIL import Image

from cggm_ray.core.mirrored import TRAINED
from cggm_ray.data.dataset import Dataset
from cggm_ray.data.datasets.av.media import Media
from cggm_ray.data.datasets.av.options import AvOptions
from cggm_ray.data.datasets.food101.food101_records import check_labels, read_lists
from cggm_ray.data.datasets.food101.lists import find_lists
from cggm_ray.data.datasets.table.options import TableOptions
from cggm_ray.data.prepare import raw_path
from cggm_ray.data.settings import DataConfig
from cggm_ray.engine.assembly import build_dataset
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.runtime import RunConfig
from cggm_ray.storage import objects
from cggm_ray.storage.mirror import Mirror
from cggm_ray.storage.places import place
from cggm_ray.storage.urls import UrlPath, _storage, _Tree

WORK = "work"
"""Folder in which readers may write, such as copies of files of a store."""
SMALL_TABLE = TableOptions(image_size=8, audio_seconds=0.1, video_frames=2)
SMALL_CLIPS = AvOptions(image_size=8, audio_seconds=0.1, audio_rate=8000, audio_window=64, audio_hop=40)
MEDIA_TABLE = "id,x,number,split,label\n" + "".join(
    f"n{number},{'x' if number in (0, 3) else ''},{number},{split},{number % 3}.5\n"
    for number, split in enumerate(("train", "train", "train", "valid", "test"))
)
SUFFIXES = {"sound": ".wav", "video": ".mp4", "picture": ".png"}
_listing: Listing | None = None


def settings(name: str, options: Any, data_path: str | None = None) -> Config:
    """Returns a configuration for a dataset, whose shards belong to the folder in which readers may write."""
    work = os.environ["CGGM_FUZZ_WORK"]
    data = DataConfig(dataset=name, data_path=data_path, shard_path=work)
    return Config(data=data, run=RunConfig(local=True, storage_path=work), options=options)


def convert_described(dataset: Dataset, path: Path) -> None:
    """What a run does with raw files, with what it notes of their origin: all shards, read and transformed."""
    sources = dataset.locate(path)
    dataset.describe(sources)
    for raw in dataset.read(sources):
        table = raw.table
        for stage in dataset.stages():
            table = stage.make()(table)


def table(path: Path) -> None:
    """As the recipe for tables, of a file or of a folder with media."""
    convert_described(build_dataset(settings("table", SMALL_TABLE)), path)


def clips(path: Path) -> None:
    """As the recipe for sound and pictures, media included."""
    convert_described(build_dataset(settings("av", SMALL_CLIPS)), path)


def clip_lists(path: Path) -> None:
    """The same up to the first look at media."""
    dataset = build_dataset(settings("av", SMALL_CLIPS))
    for _ in dataset.read(dataset.locate(path)):
        pass


def lists(folder: Path) -> None:
    """As the recipe for images with texts, before it looks at images."""
    check_labels(read_lists(find_lists(folder), folder))


def sentiment(name: str, path: Path) -> None:
    """As the recipes of MOSEI and SIMS."""
    dataset = build_dataset(Config(data=DataConfig(dataset=name), run=RunConfig(local=True)))
    convert_described_without_files(dataset, path)


def convert_described_without_files(dataset: Dataset, path: Path) -> None:
    """All shards, read and transformed."""
    for raw in dataset.read(dataset.locate(path)):
        found = raw.table
        for stage in dataset.stages():
            found = stage.make()(found)


def listing(path: Path) -> None:
    """A table in a store, the media below its URL, and a run that is mirrored: all of them look at what the store lists."""
    server = _server()
    server.take(path.read_bytes())
    _Tree.held.clear()
    try:
        url = f"{BUCKET}/set"
        dataset = build_dataset(settings("table", SMALL_TABLE, url))
        Mirror(Path(os.environ["CGGM_FUZZ_WORK"]) / TRAINED / "s3" / "bucket" / "set", url).pull()
        root = raw_path(dataset)
        found = Media(root)
        for medium in found.all:
            UrlPath(medium.paths[0]).is_file()
        list(root.glob("*/*"))
        list(root.rglob("*.csv"))
        convert_described(dataset, place("data_path", url))
    finally:
        # A list without an end ends now, in the thread that reads it.
        server.take(EMPTY)


def _server() -> Listing:
    """Returns the server, which is started for the first input."""
    global _listing
    if _listing is None:
        # What a repeated request brings, and what comes after a pause, is the same here.
        objects.PAUSE, objects.QUIET, objects.RETRY = 0.0, 0.5, {"max_retries": 0}
        _listing = listing_server()
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_REGION": "us-east-1"}
        os.environ.update(keys, AWS_ENDPOINT_URL=_listing.url)
        _storage.cache_clear()
    return _listing


def whole_recipes(folder: Path) -> None:
    """Writes, for every role whose file lies among others, a folder in which all files are whole."""
    from fuzz_media import media_seeds
    from fuzz_tables import table_seeds

    whole = {one.role: one.content for one in reversed(media_seeds() + table_seeds())}
    arrow = next(one.content for one in table_seeds() if one.suffix == ".arrow")
    for kind, suffix in SUFFIXES.items():
        for role in (f"table {kind}", f"clip {kind}"):
            (folder / role).mkdir(parents=True)
        (folder / f"table {kind}" / f"x{suffix}").write_bytes(whole[f"table {kind}"])
        content = MEDIA_TABLE.replace(",x,", f",x{suffix},").replace("id,x" + suffix, "id,x")
        (folder / f"table {kind}" / "table.csv").write_text(content)
    _clip_folders(folder, whole)
    for role, name in {"lists": "train.csv", "lines": "train.jsonl"}.items():
        (folder / role).mkdir()
        (folder / role / name).write_bytes(whole[role])
        (folder / role / name.replace("train", "test")).write_bytes(whole[role])
    for role, files in {
        "clips": {"train.csv": whole["clips"], "valid.csv": b"a4,p\n", "test.csv": b"a5,q\n"},
        "vgg": {"vggsound.csv": whole["vgg"]},
        "ave": {"trainSet.txt": whole["ave"], "valSet.txt": b"p&a3&good&0&10\n", "testSet.txt": b"q&a4&good&0&10\n"},
        "ucf": {"trainlist01.txt": whole["ucf"], "testlist01.txt": b"p/a10.mp4\nq/a11.mp4\n"},
    }.items():
        (folder / role / "media").mkdir(parents=True)
        for name, content in files.items():
            (folder / role / name).write_bytes(content)
        for number in range(12 if role == "ucf" else 6):
            (folder / role / "media" / f"a{number}.wav").write_bytes(whole["table sound"])
            _picture(folder / role / "media" / f"a{number}")
            for side in "uv" if role == "ucf" else "":
                _picture(folder / role / side / f"a{number}")
    (folder / "saved").mkdir()
    (folder / "saved" / "state.json").write_bytes(whole["saved"])
    (folder / "saved" / "data.arrow").write_bytes(arrow)
    (folder / "splits").mkdir()
    (folder / "splits" / "dataset_dict.json").write_bytes(whole["splits"])
    for split in ("train", "validation", "test"):
        (folder / "splits" / split).mkdir()
        (folder / "splits" / split / "state.json").write_bytes(whole["saved"])
        (folder / "splits" / split / "data.arrow").write_bytes(arrow)


def _clip_folders(folder: Path, whole: dict[str, bytes]) -> None:
    """Writes four clips of two classes, the first of which is the one that is damaged."""
    for kind in SUFFIXES:
        for number, split in enumerate(("train", "train", "val", "test")):
            place = folder / f"clip {kind}" / split / "pq"[number % 2]
            _picture(place / f"a{number}")
            if kind == "video" and number == 0:
                (place / "a0.mp4").write_bytes(whole["clip video"])
                (place / "a0" / "0.png").unlink()
            else:
                (place / f"a{number}.wav").write_bytes(whole["clip sound"])
            if kind == "picture" and number == 0:
                (place / "a0" / "0.png").write_bytes(whole["clip picture"])


def _picture(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(file, "PNG")
    (folder / "0.png").write_bytes(file.getvalue())


RECIPES: dict[str, tuple[Any, str]] = {
    "table": (table, ""),
    "lists": (lists, "train.csv"),
    "lines": (lists, "train.jsonl"),
    "clips": (clip_lists, "train.csv"),
    "vgg": (clip_lists, "vggsound.csv"),
    "ave": (clip_lists, "trainSet.txt"),
    "ucf": (clip_lists, "trainlist01.txt"),
    "saved": (table, "state.json"),
    "splits": (table, "dataset_dict.json"),
    "mosei": (lambda path: sentiment("mosei", path), ""),
    "sims": (lambda path: sentiment("sims", path), ""),
    "table sound": (table, "x.wav"),
    "clip sound": (clips, "train/p/a0.wav"),
    "table video": (table, "x.mp4"),
    "clip video": (clips, "train/p/a0.mp4"),
    "table picture": (table, "x.png"),
    "clip picture": (clips, "train/p/a0/0.png"),
    "listing": (listing, ""),
}
"""By role, as `fuzz_readers.READERS`."""
