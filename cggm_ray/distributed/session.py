"""Chooses the folder for the session of a cluster that is started here: sockets, logs and spilled objects."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray._common import utils

from cggm_ray.core.errors import UsageError

SOCKET = 107
"""Largest number of bytes in the path of a socket."""
WITHIN = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store") + len("_and_longer")
"""Bytes of the longest path that Ray makes in the folder, with room for longer names of sockets."""
LONGEST = SOCKET - WITHIN
OF_PYTHON = SOCKET - len("/pymp-12345678/listener-12345678")
"""Bytes of the longest temporary folder in which the sockets of `multiprocessing` fit, which Ray's dashboard uses."""
LEAST_FREE = 16
"""Smallest free space in MiB for a session."""
# It has this name from Ray 2.55 on.
get_default_ray_temp_dir = getattr(utils, "get_default_ray_temp_dir", None) or utils.get_ray_temp_dir  # type: ignore[attr-defined]


def session_folder() -> str | None:
    """Returns the folder for Ray's session, or None if Ray's own default is usable.

    Schedulers set TMPDIR to long paths, in which Ray's sockets do not fit. A short folder is used then, and a line says so.

    Raises:
        UsageError: no folder will do.
    """
    usual = Path(get_default_ray_temp_dir())
    wrong = unfit(usual)
    if wrong is None:
        return None
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), None)
    wrong = f"{variable or 'RAY_TMPDIR'}: {usual.parent if variable else usual} {wrong}"
    places = {"/tmp", "/var/tmp", "/dev/shm", os.environ.get("XDG_RUNTIME_DIR") or "/tmp", os.path.expanduser("~")}
    tried = [Path(place) / f"ray-{os.getuid()}" for place in sorted(places, key=lambda place: (place != "/tmp", place))]
    for folder in tried:
        if unfit(folder, own=True) is None:
            print(f"{wrong}; Ray keeps its session in {folder}", flush=True)
            return str(folder)
    raise UsageError(
        f"{wrong}; nor will {', '.join(map(str, tried))} do; set RAY_TMPDIR to a folder on a local disk that can be written, "
        f"with a path of at most {LONGEST - len('/ray')} bytes"
    )


@contextmanager
def short_temporary_folder(session: str | None) -> Iterator[None]:
    """Sets TMPDIR to the folder of the session while Ray's processes are started, if it is too long for their sockets.

    Args:
        session: of `session_folder`; None for Ray's own default.
    """
    before = os.environ.get("TMPDIR")
    if len(os.fsencode(before or "")) > OF_PYTHON:
        os.environ["TMPDIR"] = session or get_default_ray_temp_dir()
    try:
        yield
    finally:
        if before is not None:
            os.environ["TMPDIR"] = before


def unfit(folder: Path, own: bool = False) -> str | None:
    """Returns why a folder cannot hold Ray's sessions, or None if it can. The folder is made if necessary.

    Args:
        folder: to check.
        own: whether it must belong to this user, as one of a known name in a folder that everybody may write must.
    """
    if not folder.is_absolute():
        return "is no absolute path"
    if len(os.fsencode(folder)) > LONGEST:
        return f"is too long for the sockets of Ray, whose paths have at most {SOCKET} bytes"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700 if own else 0o777)
        if own and (folder.is_symlink() or folder.stat().st_uid != os.getuid()):
            return "belongs to somebody else"
        with tempfile.NamedTemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"cannot be written: {error.strerror or error}"
    return None if free >= LEAST_FREE * 2**20 else f"has less than {LEAST_FREE} MiB free"
