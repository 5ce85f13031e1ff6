"""Answers of a store for `fuzz.py`: lists of keys that cannot be, that lie about sizes, that go round in circles or break off.

An input is one line of JSON about the files, then the pages of the list, each behind `PAGE`. The last page is given again where
the client wants one more. `listing_server` answers with it, on the loopback interface, in the process that reads.
"""

from __future__ import annotations

import json
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

from fuzz_seeds import Seed

PAGE = b"\n<!-- page -->\n"
BUCKET = "s3://bucket"
CONTENT = b"title,price,split,label\n" + b"".join(
    f"red {n},{n}.5,{split},{'pq'[n % 2]}\n".encode()
    for n, split in enumerate(("train", "train", "train", "train", "valid", "valid", "test", "test"))
)
"""Of every file of the store."""
PLAIN = (
    "set/train.csv",
    "set/val.csv",
    "set/test.csv",
    "set/x/0.png",
    "set/a.wav",
    "set/summary.json",
    "set/log.jsonl",
)
ODD = (
    *(
        "set/train.csv/x",
        "set/%2e%2e/x",
        "set/a%00b",
        "set/a%2fb",
        "set/C:\\x",
        "set/a\\..\\b",
        "set/ ",
        "set/~",
        "set/$HOME",
    ),
    *(
        "set/\u202etxt",
        "set/" + "x" * 300,
        "set/" + "d/" * 600 + "x",
        "set/.hidden.csv",
        "set/state.json",
        "set/table.parquet",
    ),
    *(
        "set",
        "set/",
        "set/a",
        "set/a/b",
        "set/checkpoints/a",
        "set/train.jsonl",
        "set/x.csv",
        "set/?a=b",
        "set/*",
        "set/[a]",
    ),
)
"""Keys that a store may have."""
KEYS = (
    *(
        "../x",
        "a/../../x",
        "/etc/passwd",
        "//x",
        "",
        ".",
        "..",
        "/",
        "a/",
        "a//b",
        "set/../x",
        "other/x",
        "s3://other/x",
    ),
    *(
        "set/\x01",
        "set/\x1b[31m",
        "set/a\nb",
        "set/a\rb",
        "set/\ufffe",
        "set/./x",
        "set/a/",
        "set//x",
        "set/" + "x" * 5000,
    ),
)
"""Keys that lead elsewhere, or that no client asked for."""
SIZES = (
    "0",
    "1",
    "-1",
    "2147483648",
    "1099511627776",
    "9223372036854775807",
    "18446744073709551615",
    "99999999999999999999",
    "x",
)
DATES = (
    "2024-01-01T00:00:00.000Z",
    "1970-01-01T00:00:00Z",
    "9999-12-31T23:59:59Z",
    "99999-01-01T00:00:00Z",
    "yesterday",
    "",
)
TAGS = ('"a"', "a", "", '"' + "a" * 5000 + '"', "\x01", "é", "W/")
TOKENS = ("t", "t", "1", "", "../x", "a" * 5000, "&amp;x=1", "\u00e9")
HEADERS: dict[str, Any] = {"status": 200, "length": None, "etag": '"a"', "modified": "Mon, 01 Jan 2024 00:00:00 GMT"}


def listing_seeds() -> list[Seed]:
    """Whole lists of one and two pages."""
    one, two = ("set/table.csv",), ("set/train.csv", "set/val.csv", "set/test.csv", "set/x/0.png")
    size = str(len(CONTENT))
    pages = [
        [page([(key, size) for key in one])],
        [page([(two[0], size)], "t"), page([(key, size) for key in two[1:]])],
    ]
    return [Seed("listing", "listing", ".xml", whole(HEADERS, some)) for some in pages]


def page(entries: list[tuple[str, str]], token: str | None = None, tag: str = '"a"', date: str = DATES[0]) -> bytes:
    """Returns a page of a list.

    Args:
        entries: keys and sizes.
        token: with which the next page is asked for; None for the last one.
        tag: of every file.
        date: of every file.
    """
    more = "<IsTruncated>false</IsTruncated>"
    if token is not None:
        more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>"
    rows = "".join(
        f"<Contents><Key>{escape(key)}</Key><LastModified>{date}</LastModified><ETag>{escape(tag)}</ETag><Size>{size}</Size>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
        for key, size in entries
    )
    start = '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    return f"{start}<Name>bucket</Name><Prefix></Prefix>{more}{rows}</ListBucketResult>".encode()


def whole(headers: dict[str, Any], pages: list[bytes]) -> bytes:
    """Returns an input."""
    return PAGE.join([json.dumps(headers).encode(), *pages])


EMPTY = whole(HEADERS, [page([])])


def listing_with_damage(seeds: list[Seed], draw: random.Random) -> Seed:
    """Returns a list with strange keys, sizes, tokens, times or answers about its files."""
    headers, size = dict(HEADERS), str(len(CONTENT))
    if draw.random() < 0.3:
        headers["length"] = draw.choice((0, 1, len(CONTENT) - 1, len(CONTENT) + 1, 2**31, 2**40, 2**63, -1, "x"))
    if draw.random() < 0.15:
        headers["etag"] = draw.choice(TAGS)
    if draw.random() < 0.1:
        headers["modified"] = draw.choice(DATES)
    if draw.random() < 0.1:
        headers["status"] = draw.choice((204, 206, 301, 302, 304, 400, 403, 404, 412, 416))
    pages = []
    for number in range(count := draw.choice((1, 1, 2, 3))):
        # One key that the client refuses is enough for the whole list to be refused, so most keys are plain.
        some = (KEYS,) if draw.random() < 0.2 else (PLAIN, PLAIN, PLAIN, ODD)
        keys = [draw.choice(draw.choice(some)) for _ in range(draw.choice((1, 2, 3, 4)))]
        entries = [(key, size if draw.random() < 0.8 else draw.choice(SIZES)) for key in keys]
        token = None if number == count - 1 and draw.random() < 0.9 else draw.choice(TOKENS)
        tag, date = (draw.choice(some) if draw.random() < 0.1 else some[0] for some in (TAGS, DATES))
        made = page(entries if draw.random() < 0.9 else [], token, tag, date)
        if draw.random() < 0.1:
            made = draw.choice(_pages(made, draw))
        pages.append(made)
    return Seed("listing", "listing", ".xml", whole(headers, pages))


def _pages(made: bytes, draw: random.Random) -> tuple[bytes, ...]:
    entity = b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;"><!ENTITY c SYSTEM "file:///etc/passwd">]>'
    return (
        made[: draw.randrange(len(made))],
        b"",
        b"not xml",
        b"<Error><Code>InternalError</Code><Message>\x1b[31m</Message></Error>",
        made.replace(b"<ListBucketResult", entity + b"<ListBucketResult", 1).replace(b"<Key>", b"<Key>&b;&c;", 1),
        made.replace(b"UTF-8", b"UTF-16"),
        made.replace(b"<Key>", b"<Key><Key>" * 3),
        made.replace(b"<Contents>", b"<a>" * 20_000 + b"<Contents>", 1),
        made.replace(b"<Contents>", b"<CommonPrefixes><Prefix>../</Prefix></CommonPrefixes><Contents>"),
        made.replace(b"<Name>", b"<Name>" + b"x" * 500_000),
    )


class Listing:
    """What the server answers at the moment.

    Attributes:
        url: of the server.
    """

    def __init__(self) -> None:
        self.url = ""
        self._lock = threading.Lock()
        self.take(EMPTY)

    def take(self, content: bytes) -> None:
        """Answers with another input from here on, whose first line counts where it is as `HEADERS` are."""
        first, *pages = content.split(PAGE)
        try:
            found = json.loads(first)
            self.headers = HEADERS | (found if isinstance(found, dict) else {})
        except (ValueError, RecursionError):
            self.headers = HEADERS
        self._pages, self._asked = pages or [b""], 0

    def next(self, first: bool) -> bytes:
        """Returns the first page, or the next one."""
        with self._lock:
            self._asked = 1 if first else self._asked + 1
            return self._pages[min(self._asked, len(self._pages)) - 1]

    def head(self) -> list[tuple[str, str]]:
        """Returns the header lines about a file."""
        length = self.headers["length"]
        lines = [("ETag", self.headers["etag"]), ("Last-Modified", self.headers["modified"])]
        lines.append(("Content-Length", len(CONTENT) if length is None else length))
        return [
            (name, str(value).encode("latin-1", "replace").decode("latin-1").replace("\n", " "))
            for name, value in lines
        ]


def listing_server() -> Listing:
    """Starts the server, which ends with the process."""
    listing = Listing()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            query = parse_qs(asked.query)
            if "list-type" in query:
                self._answer(200, listing.next("continuation-token" not in query), [])
                return
            status, part = listing.headers["status"], CONTENT
            lines = listing.head()
            wanted = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
            if wanted[0].isdigit() and wanted[2].isdigit():
                start, stop = int(wanted[0]), int(wanted[2])
                total = dict(lines)["Content-Length"]
                lines[-1] = ("Content-Range", f"bytes {start}-{stop}/{total}")
                status, part = 206 if status == 200 else status, CONTENT[start : stop + 1]
                lines.append(("Content-Length", str(len(part))))
            self._answer(status, part, lines)

        def do_HEAD(self) -> None:
            self._answer(listing.headers["status"], b"", listing.head())

        def do_PUT(self) -> None:
            self._answer(403, b"", [])

        do_DELETE = do_POST = do_PUT

        def _answer(self, status: object, content: bytes, lines: list[tuple[str, str]]) -> None:
            # In one piece, because the rest would wait for an acknowledgement of the first one.
            code = status if isinstance(status, int) and 200 <= status < 500 else 200
            if not any(name == "Content-Length" for name, _ in lines):
                lines = [*lines, ("Content-Length", str(len(content)))]
            head = "".join(f"{name}: {value}\r\n" for name, value in lines)
            self.wfile.write(f"HTTP/1.1 {code} x\r\n{head}Connection: close\r\n\r\n".encode("latin-1") + content)

        def log_message(self, format: str, *values: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    listing.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return listing
