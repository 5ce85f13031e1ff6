"""Which folder of this node stands for the URL of a run, and the other way round.

The folder of `s3://bucket/runs/first` is `CGGM_WORK/cggm-runs/s3/bucket/runs/first`: its path says which URL it mirrors, on
every node.
"""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path

from cggm_ray.config.parsing import local_path
from cggm_ray.core.errors import UsageError
from cggm_ray.core.mirrored import READ, TRAINED
from cggm_ray.storage.base import check_no_password, is_url, open_storage

LOCAL = "file"
READ_ONLY = ("http", "https")
WORK = "CGGM_WORK"
"""Variable with the folder of this node in which runs work whose files are kept at a URL."""


def work_folder(url: str, kind: str = TRAINED) -> Path:
    """Returns the folder of this node that mirrors a URL; `file:///x` is the folder `/x` itself.

    Args:
        url: of a folder.
        kind: `TRAINED` or `READ`.

    Raises:
        UsageError: the folder cannot be made.
    """
    scheme, _, rest = url.rstrip("/").partition("://")
    if scheme.lower() == LOCAL:
        return Path(rest or "/")
    return _root() / kind / scheme.lower() / rest


@functools.cache
def check_folder_url(field: str, url: str) -> None:
    """Raises a UsageError unless a storage serves the URL of a folder, and what that needs is installed.

    Args:
        field: named in the message.
        url: as it was given. A URL that passes is checked once in a process, because every trial of a study has the same one.
    """
    check_no_password(field, url)
    scheme, _, folder = url.partition("://")
    rest = folder.rstrip("/").split("/")
    if scheme.lower() == LOCAL and folder.startswith("/"):
        return
    if scheme.lower() in READ_ONLY:
        raise UsageError(
            f"{field}: found the URL {url}; nothing can be written there; expected one such as s3://bucket/runs"
        )
    if not all(rest) or {".", ".."} & set(rest):
        raise UsageError(f"{field}: found the URL {url}; expected a folder such as s3://bucket/runs")
    try:
        open_storage(url)
    except UsageError as error:
        raise UsageError(f"{field}: found the URL {url}: {error}") from None
    except OSError as error:
        raise UsageError(f"{field}: {url} cannot be reached: {error.strerror or error}") from None


def url_of(folder: Path) -> str | None:
    """Returns the URL that a folder of this node mirrors, or None for every other path."""
    parts = folder.parts
    places = [place for place, part in enumerate(parts) if part in (TRAINED, READ)]
    if not places or len(parts) < places[0] + 3:
        return None
    return f"{parts[places[0] + 1]}://{'/'.join(parts[places[0] + 2 :])}"


def shown(path: Path) -> str:
    """Returns the URL that a path mirrors, or the path itself."""
    return url_of(path) or str(path)


def read_folder(field: str, text: str) -> Path:
    """Returns the path that a flag gives, or for a URL the folder of this node that `at_hand` fills.

    Raises:
        UsageError: no storage serves the URL, or the path leads nowhere.
    """
    if not is_url(text):
        return local_path(field, text)
    check_folder_url(field, text)
    return work_folder(text, READ)


def _root() -> Path:
    """Returns the folder of this node for such runs, which only this user can write.

    Raises:
        UsageError: it cannot be made, or belongs to somebody else.
    """
    given = os.environ.get(WORK)
    folder = Path(given).expanduser().absolute() if given else Path(tempfile.gettempdir()) / f"cggm-{os.getuid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not given and folder.stat().st_uid != os.getuid():
            raise UsageError(f"{folder} belongs to somebody else; set {WORK} to a folder on a local disk")
    except OSError as error:
        raise UsageError(f"{WORK}: {folder} cannot be written: {error.strerror}") from None
    return folder
