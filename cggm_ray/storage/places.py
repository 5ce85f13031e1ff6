"""Local paths and URLs side by side: what a text names, and what readers and writers of files need for either."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

from cggm_ray.config.parsing import URL, check_path, whole
from cggm_ray.core.errors import UsageError
from cggm_ray.storage.base import check_no_password, check_scheme, is_url
from cggm_ray.storage.cache import part_file
from cggm_ray.storage.files import whole_file
from cggm_ray.storage.urls import UrlPath

LOCAL = "file://"
WEB = ("http", "https")
"""Schemes of addresses under which nothing can be listed or written."""
FORM = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://([^/\s]+)(/.*)?")


def as_path(text: str | os.PathLike[str]) -> Path:
    """Returns the path that a text names; a URL names files of a store, and `file:///x` names `/x`."""
    if isinstance(text, UrlPath):
        return text
    text = str(text)
    if text.startswith(LOCAL + "/"):
        return Path(text.removeprefix(LOCAL))
    return UrlPath(text) if is_url(text) else Path(text)


def place(field: str, text: str) -> Path:
    """Returns the absolute path that a field of the configuration names, or the path of a URL.

    Raises:
        UsageError: no storage serves the URL, or the local path cannot be resolved.
    """
    check_place(field, text)
    found = as_path(text.strip() if is_url(text.strip()) else text)
    return found if isinstance(found, UrlPath) else whole(field, str(found))


def check_place(field: str, text: str) -> None:
    """Raises a UsageError where a field that takes URLs has one that no storage serves.

    Args:
        field: named in the message.
        text: path or URL.
    """
    url = text.strip()
    if not URL.match(url) or url.startswith(f"{LOCAL}/"):
        check_path(field, text.removeprefix(LOCAL))
        return
    check_no_password(field, url)
    form = FORM.fullmatch(url)
    if form is None or form[1].lower() in WEB:
        raise UsageError(
            f"{field}: found the URL {text}; expected a folder, or a URL such as s3://bucket/folder or gs://bucket/folder"
        )
    check_scheme(field, form[1].lower())


def common_folder(paths: Sequence[Path]) -> Path:
    """Returns the deepest folder that holds all paths, which are local or of one bucket."""
    if all(map(is_local, paths)):
        return Path(os.path.commonpath(paths))
    several = zip(*(path.parts for path in paths), strict=False)
    common = takewhile(lambda same: len(set(same)) == 1, several)
    return UrlPath(*(same[0] for same in common))


def walk(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yields every folder with the names of its folders and of its files, from the root down; links are followed.

    Folders that the caller removes from the list are left out, as with `os.walk`.
    """
    if is_local(root):
        for folder, folders, files in os.walk(root, followlinks=True):
            yield Path(folder), folders, files
        return
    entries = list(root.iterdir())
    if not entries:
        return
    inner = [entry.name for entry in entries if entry.is_dir()]
    yield root, inner, [entry.name for entry in entries if entry.is_file()]
    for name in inner:
        yield from walk(root / name)


@contextmanager
def new_file(path: Path, ending: str = "") -> Iterator[Path]:
    """Gives the block a local path to write a file to, which then becomes the file, or is put into its store.

    Args:
        path: of the file.
        ending: of the other path, for writers that depend on it, such as '.npz'.

    Raises:
        OSError: the file cannot be written; one that was there is as it was.
    """
    if not isinstance(path, UrlPath):
        with whole_file(path, ending) as partial:
            yield partial
        return
    with part_file(f"{path.name}{ending}") as part:
        yield part
        path.upload(part)


@contextmanager
def local_folder(files: Sequence[Path]) -> Iterator[Path]:
    """Gives the block a local folder that holds these files under their names.

    Args:
        files: of one folder. Those of a store are copied for as long as the block runs.
    """
    if all(map(is_local, files)):
        yield files[0].parent
        return
    with part_file("all") as folder:
        folder.mkdir()
        for file in files:
            os.link(file, folder / file.name)
        yield folder


def local_copy(path: Path) -> Path:
    """Returns a local path itself, and for a file of a store the path of a copy in the cache."""
    return path.local() if isinstance(path, UrlPath) else path


def is_local(path: Path) -> bool:
    """Returns whether a path is one of this machine's file system."""
    return not isinstance(path, UrlPath)
