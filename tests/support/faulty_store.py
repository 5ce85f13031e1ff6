"""A server between the tests and a store that fails as a test says, once or for good."""

from __future__ import annotations

import http.client
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Fault = str | None
"""A key of `ANSWERS`, 'cut' in the middle of the content, 'slow' content, 'late' lists; None for the store's answer."""
ANSWERS = {
    "503": (503, "SlowDown"),
    "500": (500, "InternalError"),
    "404": (404, "NoSuchKey"),
    "403": (403, "AccessDenied"),
    "expired": (400, "ExpiredToken"),
}
SLOW_PARTS = 10
LATE = 5.0
"""Seconds for which a late list does not have a new key."""


class FaultyStore:
    """Passes requests on, unless `decide` names a fault for one.

    Attributes:
        decide: of the method and the path with its query.
        seen: requests by method.
        sent: bytes of content in answers.
        url: of this server.
    """

    def __init__(self, endpoint: str) -> None:
        self.decide: Callable[[str, str], Fault] = lambda method, path: None
        self.seen: Counter[str] = Counter()
        self.sent = 0
        self.endpoint = urlsplit(endpoint).netloc
        self.url = ""

    def once(self, fault: str, method: str, part: str) -> list[str]:
        """Answers the first request of a method whose path holds a text with a fault, and all others properly.

        Returns:
            The fault, until it happened.
        """
        left = [fault]
        lock = threading.Lock()

        def decide(asked: str, path: str) -> Fault:
            with lock:
                return left.pop() if left and asked == method and part in path else None

        self.decide = decide
        return left

    def always(self, fault: str, part: str) -> None:
        """Answers all requests whose path holds a text with a fault."""
        self.decide = lambda method, path: fault if part in path else None


def without_new_keys(listed: bytes) -> bytes:
    """Returns an answer of a list without what was written within the last seconds."""

    def kept(found: re.Match[bytes]) -> bytes:
        written = datetime.fromisoformat(found[1].decode().replace("Z", "+00:00"))
        return found[0] if datetime.now(UTC) - written > timedelta(seconds=LATE) else b""

    return re.sub(rb"<Contents>.*?<LastModified>(.*?)</LastModified>.*?</Contents>", kept, listed, flags=re.DOTALL)


@contextmanager
def faulty_store(endpoint: str, address: str = "127.0.0.1", port: int = 0) -> Iterator[FaultyStore]:
    """Starts a server in front of the store at an endpoint."""
    store = FaultyStore(endpoint)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.content()
            store.seen[self.command] += 1
            fault = store.decide(self.command, self.path)
            if fault in ANSWERS:
                status, code = ANSWERS[fault]
                text = b"" if self.command == "HEAD" else f"<Error><Code>{code}</Code></Error>".encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)
                return
            upstream = http.client.HTTPConnection(store.endpoint)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "transfer-encoding"}
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            content = answer.read()
            if fault == "late" and self.command == "GET" and "list-type=2" in self.path:
                content = without_new_keys(content)
            store.sent += len(content)
            upstream.close()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                    self.send_header(name, value)
            # The answer to HEAD tells the length of a content that it does not have.
            told = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self.send_header("Content-Length", told or str(len(content)))
            self.end_headers()
            if fault == "cut":
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
            elif fault == "slow":
                for part in range(SLOW_PARTS):
                    self.wfile.write(
                        content[part * len(content) // SLOW_PARTS : (part + 1) * len(content) // SLOW_PARTS]
                    )
                    time.sleep(0.05)
            else:
                self.wfile.write(content)

        def content(self) -> bytes:
            """What was sent: of a length that is told, or in chunks, as pyarrow does it."""
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return body

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_any

        def log_message(self, format: str, *values: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer((address, port), Handler)
    store.url = f"http://{address}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
