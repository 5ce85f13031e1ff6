"""Serves a page that follows a run, several runs or a study while they train."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cggm_ray.core.errors import CggmError, UsageError, reason
from cggm_ray.report.page import labels, page_html
from cggm_ray.report.run_record import read_run_record
from cggm_ray.report.study_page import study_html
from cggm_ray.report.study_record import is_study, read_study_record
from cggm_ray.storage.mirror import mirror_of

WATCHED = (
    *("metrics.jsonl", "summary.json", "balance.json", "headroom.json", "predictions.parquet", "search.yaml"),
    *("trials/*/trial.json", "trials/*/metrics.jsonl", "trials/*/summary.json"),
)
"""Files of a run and of a study whose change makes the page anew."""


class LivePage:
    """A page and the state of the files that it was made from.

    Args:
        folders: of the runs, or of a single study.

    Raises:
        UsageError: a folder is none of a run or study, or a file in it is damaged.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._lock = threading.Lock()
        self._stamp, self._page = self.stamp(), self._made(self.stamp())

    def stamp(self) -> str:
        """Returns a text that changes with the files of the runs."""
        marks = hashlib.sha256()
        for folder in self._folders:
            # What lies at a URL is fetched; without the storage the page stays as it is.
            with suppress(CggmError, OSError):
                mirror_of(folder).pull()
            for path in sorted(path for pattern in WATCHED for path in folder.glob(pattern)):
                try:
                    found = path.stat()
                except OSError:
                    continue
                marks.update(f"{path} {found.st_mtime_ns} {found.st_size}\n".encode())
        return marks.hexdigest()[:16]

    def page(self) -> str:
        """Returns the page of the files as they are now; the one before where a file is being replaced."""
        with self._lock:
            now = self.stamp()
            if now != self._stamp:
                # Where a checkpoint is replaced while it is read, the next request tries again.
                with suppress(CggmError, OSError):
                    self._page = self._made(now)
                    self._stamp = now
            return self._page

    def _made(self, stamp: str) -> str:
        if len(self._folders) == 1 and is_study(self._folders[0]):
            return study_html(read_study_record(self._folders[0]), live=stamp)
        names = labels(self._folders)
        runs = [read_run_record(folder, label) for folder, label in zip(self._folders, names, strict=True)]
        return page_html(runs, live=stamp)


def server(folders: Sequence[Path], host: str, port: int) -> ThreadingHTTPServer:
    """Returns a server of the page, which listens already.

    Args:
        folders: of the runs, or of a single study.
        host: address to listen at.
        port: 0 takes a free one.

    Raises:
        UsageError: a folder cannot be shown, or the address cannot be used.
    """
    live = LivePage(folders)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/":
                self._answer(live.page(), "text/html")
            elif self.path == "/stamp":
                self._answer(live.stamp(), "text/plain")
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def _answer(self, text: str, kind: str) -> None:
            data = text.encode()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: object) -> None:
            """Prints nothing for a request."""

    try:
        return ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise UsageError(f"port: {host}:{port} cannot be used: {reason(error)}") from None


def serve_page(folders: Sequence[Path], host: str, port: int) -> None:
    """Serves the page until Ctrl-C, and prints its address.

    Raises:
        UsageError: a folder cannot be shown, or the address cannot be used.
    """
    with server(folders, host, port) as listening:
        at = listening.server_address[1]
        print(f"http://{host}:{at}/ follows {', '.join(map(str, folders))}; Ctrl-C ends it", flush=True)
        try:
            listening.serve_forever()
        except KeyboardInterrupt:
            print()
