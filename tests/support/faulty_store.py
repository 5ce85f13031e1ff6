"""A server between the tests and a store that fails as a test says, once or for good."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Fault = str | None
"""'503', '404' or '403' as the answer, 'cut' in the middle of the content, 'slow' content; None for the store's answer."""
SLOW_PARTS = 10


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


@contextmanager
def faulty_store(endpoint: str) -> Iterator[FaultyStore]:
    """Starts a server in front of the store at an endpoint."""
    store = FaultyStore(endpoint)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            store.seen[self.command] += 1
            fault = store.decide(self.command, self.path)
            if fault in ("503", "404", "403"):
                code = {"503": "SlowDown", "404": "NoSuchKey", "403": "AccessDenied"}[fault]
                text = b"" if self.command == "HEAD" else f"<Error><Code>{code}</Code></Error>".encode()
                self.send_response(int(fault))
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)
                return
            upstream = http.client.HTTPConnection(store.endpoint)
            upstream.request(self.command, self.path, body, dict(self.headers))
            answer = upstream.getresponse()
            content = answer.read()
            store.sent += len(content)
            upstream.close()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                    self.send_header(name, value)
            self.send_header("Content-Length", answer.getheader("Content-Length", str(len(content))))
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

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_any

        def log_message(self, format: str, *values: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    store.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
