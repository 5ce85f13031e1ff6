"""Object stores: `s3://bucket/runs`, `gs://bucket/runs`.

Endpoint, region and credentials come from the store's usual environment variables, such as AWS_ENDPOINT_URL, AWS_REGION and
AWS_ACCESS_KEY_ID, or from the machine's role. No message holds any of them. The client repeats requests that a
store answers with 5xx, or not in time. For a file that is not found there is a second request, because some stores show a new
file late.
"""

from __future__ import annotations

import errno
import os
import queue
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from cggm_ray.core.errors import one_line, short_repr
from cggm_ray.core.optional import require
from cggm_ray.storage.base import STORAGES, Entry, Storage, check_key

T = TypeVar("T")
ALIASES = {"s3a": "s3", "gcs": "gs"}
TIMEOUT = timedelta(seconds=60)
"""For one request, which transfers at most `CHUNK` bytes."""
CHUNK = 16 * 2**20
"""Bytes of one request of a download; an upload in parts has smaller ones."""
RETRY = {"max_retries": 6, "retry_timeout": timedelta(seconds=90)}
"""What the client does about answers of 5xx and about connections that break."""
TRIES = 3
PAUSE = 0.25
"""Seconds before the second try; each further pause is twice as long."""
MOST_TEXT = 300
PASSES = re.compile(r"status code: 5|sending request|connection|timed out|named no further", re.IGNORECASE)
"""In the text of an error that is over when the store or the network works again."""
QUIET = 300.0
"""Seconds for which a list may name no further file; a request takes about half of it with all its repetitions."""
MOST_NAMED = 2
"""Times that a list may name a key; a file and a mark of a folder can have the same one."""


@STORAGES.register("s3")
@STORAGES.register("s3a")
@STORAGES.register("gs")
@STORAGES.register("gcs")
class ObjectStorage(Storage):
    """A storage in S3, GCS or a store with the interface of one of them.

    Args:
        url: 's3://bucket/folder' or 'gs://bucket/folder'.

    Raises:
        MissingPackageError: obstore is not installed.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._obstore = require("obstore", extra="store", purpose=self.url)
        store = require("obstore.store", extra="store", purpose=self.url)
        scheme, _, self._path = self.url.partition("://")
        self._scheme = ALIASES.get(scheme.lower(), scheme.lower())
        self._store = _quiet(
            lambda: store.from_url(
                f"{self._scheme}://{self._path}",
                client_options={"allow_http": True, "timeout": TIMEOUT, "connect_timeout": timedelta(seconds=5)},
                retry_config=RETRY,
            ),
            self.url,
        )

    def read(self, key: str) -> bytes:
        """Returns the content of a file."""
        return self._repeated(key, lambda: bytes(self._obstore.get(self._store, key).bytes()))

    def write(self, key: str, content: bytes) -> None:
        """Writes a file, or replaces it."""
        self._repeated(key, lambda: self._obstore.put(self._store, key, content, use_multipart=False))

    def create(self, key: str, content: bytes) -> bool:
        """Writes a file where there is none, by a conditional write of the store, and returns whether it did."""

        def put() -> bool:
            try:
                self._obstore.put(self._store, key, content, mode="create", use_multipart=False)
            except self._obstore.exceptions.AlreadyExistsError:
                return False
            return True

        return self._repeated(key, put)

    def entries(self, prefix: str = "") -> Sequence[Entry]:
        """Returns the files whose keys begin with the prefix, with size and version."""
        # The client lists whole folders only.
        folder = prefix.rpartition("/")[0]

        def listed() -> list[Entry]:
            chunks = _in_time(self._obstore.list(self._store, folder or None))
            found = list(_ending(_entry(meta) for chunk in chunks for meta in chunk))
            # Some programs, such as pyarrow, mark a folder by an empty file of its name.
            folders = {str(parent) for entry in found for parent in PurePosixPath(entry.key).parents}
            files = (entry for entry in found if entry.key and (entry.size or entry.key not in folders))
            return [entry for entry in files if entry.key.startswith(prefix)]

        return sorted(self._repeated(folder, listed, check=False), key=lambda entry: entry.key)

    def entry(self, key: str) -> Entry | None:
        """Returns a file with size and version, or None if there is none."""

        def head() -> Entry | None:
            try:
                return _entry(self._obstore.head(self._store, key))
            except (FileNotFoundError, self._obstore.exceptions.NotFoundError):
                return None

        return self._repeated(key, head)

    def list(self, prefix: str = "") -> Sequence[str]:
        """Returns the keys that begin with the prefix, sorted."""
        return [entry.key for entry in self.entries(prefix)]

    def delete(self, key: str) -> None:
        """Removes a file; nothing happens where there is none."""

        def remove() -> None:
            with suppress(FileNotFoundError, self._obstore.exceptions.NotFoundError):
                self._obstore.delete(self._store, key)

        self._repeated(key, remove)

    def upload(self, file: Path, key: str) -> None:
        """Writes a local file in parts; the file is there when the last one has arrived."""
        self._repeated(key, lambda: self._obstore.put(self._store, key, file))

    def download(self, key: str, file: Path) -> None:
        """Reads into a local file, in parts of one version of the file."""
        self._repeated(key, lambda: self._download(key, file))

    def copy(self, key: str, to: str) -> None:
        """Copies a file inside the store."""
        check_key(to)
        self._repeated(key, lambda: self._obstore.copy(self._store, key, to))

    def filesystem(self) -> tuple[Any, str]:
        """Returns the file system of pyarrow for this URL, and the path in it."""
        from pyarrow.fs import GcsFileSystem, S3FileSystem

        if self._scheme == "gs":
            return _quiet(GcsFileSystem, self.url), self._path
        options = {
            "endpoint_override": os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
            "region": os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
            "anonymous": os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true"),
            "connect_timeout": 5.0,
            "request_timeout": TIMEOUT.total_seconds(),
        }
        return _quiet(lambda: S3FileSystem(**{k: v for k, v in options.items() if v}), self.url), self._path

    def _download(self, key: str, file: Path) -> None:
        meta = self._obstore.head(self._store, key)
        with file.open("wb") as out:
            for start in range(0, meta["size"], CHUNK):
                # All parts are of one version.
                options = {"range": (start, min(start + CHUNK, meta["size"])), "if_match": meta["e_tag"] or None}
                part = bytes(self._obstore.get(self._store, key, options=options).bytes())
                if len(part) != min(CHUNK, meta["size"] - start):
                    # The size may be wrong, and so large that there would be no end.
                    raise OSError(f"found {len(part):,} bytes from byte {start:,} of {meta['size']:,}")
                out.write(part)

    def _repeated(self, key: str, act: Callable[[], T], check: bool = True) -> T:
        """Returns what a request gives, which is repeated after a failure.

        Raises:
            FileNotFoundError, PermissionError, OSError: with one line.
        """
        if check:
            check_key(key)
        for number in range(TRIES):
            try:
                return _quiet(act, f"{self.url}/{key}")
            except OSError as error:
                last = 1 if isinstance(error, FileNotFoundError) else TRIES - 1
                if isinstance(error, PermissionError) or number == last:
                    raise
                time.sleep(PAUSE * 2**number)
        raise AssertionError


def _entry(meta: Any) -> Entry:
    return Entry(key=meta["path"], size=meta["size"], version=str(meta["e_tag"] or meta["last_modified"]))


def _in_time(chunks: Iterable[T]) -> Iterator[T]:
    """Yields chunks of a list; raises a TimeoutError where there is no next one for `QUIET` seconds.

    A store may answer with pages that are empty and name a next page each. The client then asks on inside of one call, which
    nothing can interrupt, so it runs in a thread that is left behind.
    """
    waiting: queue.SimpleQueue[tuple[T | None, Exception | None]] = queue.SimpleQueue()
    left = threading.Event()

    def ask() -> None:
        try:
            for chunk in chunks:
                waiting.put((chunk, None))
                if left.is_set():
                    return
            waiting.put((None, None))
        except Exception as error:
            waiting.put((None, error))

    threading.Thread(target=ask, daemon=True).start()
    try:
        while True:
            try:
                chunk, error = waiting.get(timeout=QUIET)
            except queue.Empty:
                raise TimeoutError(f"its list has named no further file for {QUIET:g} s; expected an end") from None
            if error is not None:
                raise error
            if chunk is None:
                return
            yield chunk
    finally:
        left.set()


def _ending(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Yields the files of a list; raises an OSError where it goes round in a circle, as its last page names an earlier one."""
    named: Counter[str] = Counter()
    for entry in entries:
        named[entry.key] += 1
        if named[entry.key] > MOST_NAMED:
            raise OSError(f"its list names {short_repr(entry.key)} again and again; expected every file once")
        yield entry


def _quiet(act: Callable[[], T], name: str) -> T:
    """Calls a client whose errors may be long and may repeat headers or keys, and raises an OSError with one line instead."""
    try:
        return act()
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "there is no such file or bucket", name) from None
    except Exception as error:
        kind, text = type(error).__name__, str(error)
        if kind == "NotFoundError":
            raise FileNotFoundError(errno.ENOENT, "there is no such file or bucket", name) from None
        if kind in ("PermissionDeniedError", "UnauthenticatedError") or isinstance(error, PermissionError):
            raise PermissionError(errno.EACCES, f"the store refuses it: {summary(text)}", name) from None
        raise OSError(errno.EIO, f"{summary(text)}{_next_step(text)}", name) from None


def _next_step(text: str) -> str:
    """Returns what a person does about an error of a store that may pass, or nothing for one that will not."""
    if re.search(r"<Code>(Expired|Invalid)\w*Token\w*</Code>", text):
        return "; renew the credentials, then the same command goes on"
    return "; the same command goes on when the store answers" if PASSES.search(text) else ""


def summary(text: str) -> str:
    """The part of a client's error that is safe to show: status and code of the store, or the client's first line."""
    status = re.search(r"status code: (\d+[\w ]*)", text)
    code = re.search(r"<Code>(\w+)</Code>", text)
    if status or code:
        return ", ".join(found[1].strip() for found in (status, code) if found)
    first = text.partition("\n")[0].partition("<")[0]
    return one_line(re.sub(r"\?\S*", "", first))[:MOST_TEXT]
