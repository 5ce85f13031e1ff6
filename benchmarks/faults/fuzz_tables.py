"""Tables, lists and pickles of sentiment for `fuzz.py`: small whole files, and contents whose structure is damaged.

A CSV gets other quotes, encodings, zeros, huge cells and ragged rows; JSON lines get repeated keys, deep nesting, numbers that
JSON lacks and wrong types; a pickle gets fields that are missing, of other shapes or types.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fuzz_seeds import Seed, into

from cggm_ray.data.shards.shards import tensor_column

COLUMNS = ("id", "title", "price", "maker", "date", "split", "label")
IMAGE_TEXT = ("id", "title", "image", "label")
LISTED = {
    "lists": IMAGE_TEXT,
    "clips": ("id", "label"),
}
"""Columns of the CSV files that other readers than that of tables take."""
CELLS = (
    *(
        "",
        " ",
        "NA",
        "nan",
        "NaN",
        "inf",
        "-inf",
        "1e999",
        "1e-999",
        "0x1F",
        "1_000",
        "1,5",
        "-0",
        "9" * 400,
        "True",
        "None",
    ),
    *("2024-13-45", "1970-01-01T00:00:00Z", "../x.png", "/etc/passwd", "C:\\x.png", "a\\..\\..\\b.wav", "x.mp4"),
    *(
        '"',
        '""',
        'a"b',
        "a,b",
        "a\tb",
        "a\r\nb",
        "\r",
        "\n\n",
        "'",
        ";",
        "|",
        "\ufeff",
        "\0",
        "\x1b[31m",
        "\x1f/x\x1fc\x1f0",
    ),
    *(
        "\u202e",
        "\ud7ff",
        "\U0010ffff",
        "e\u0301",
        "x" * 40_000,
        "w " * 3000,
        "=1+1",
        "train",
        "valid",
        "test",
        "val",
        "dev",
    ),
)
VALUES: tuple[str, ...] = (
    *(
        "null",
        "true",
        "0",
        "-1",
        "1.5",
        "1e308",
        "1e999",
        "NaN",
        "Infinity",
        "-Infinity",
        "1" * 30,
        "9" * 5000,
        '"x"',
        '""',
    ),
    *('"\\ud800"', '"\\u0000"', '"\\u001f/x\\u001fc\\u001f0"', '"../x.png"', '"/etc/passwd"', "[]", "{}"),
    *(
        "[1, 2]",
        "[[1], [2, 3]]",
        '["a", 1]',
        '{"a": 1}',
        '{"a": [1]}',
        '{"a": 1, "a": 2}',
        '{"bytes": null, "path": "x"}',
    ),
    *("[null]", "01", "'x'", "undefined", "[" * 200 + "]" * 200, "[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000),
    *('"' + "x" * 40_000 + '"', "[" + "1," * 5000 + "1]"),
)
"""JSON, and what is nearly JSON."""
ENCODINGS = (
    "utf-8",
    "utf-8-sig",
    "utf-16",
    "utf-16-le",
    "utf-16-be",
    "utf-32",
    "windows-1252",
    "shift_jis",
    "utf-7",
    "cp037",
)


def rows(names: tuple[str, ...]) -> list[dict[str, str]]:
    """Returns some columns of a small table with a split and a class for every row."""
    whole = [
        {
            "id": f"n{number}",
            "title": f"{'red' if number % 2 else 'blue'} word{number}",
            "price": f"{number}.5",
            "maker": "ab"[number // 2 % 2],
            "date": f"2024-01-0{number + 1}",
            "split": ("train", "train", "train", "valid", "test", "test")[number],
            "label": "pq"[number % 2],
            "image": f"{number}.png",
        }
        for number in range(6)
    ]
    return [{name: row[name] for name in names} for row in whole]


def table_seeds() -> list[Seed]:
    """Whole tables and lists, in every format that has a text, and in those of Arrow."""
    seeds = [
        Seed("csv", "table", ".csv", _csv(rows(COLUMNS), COLUMNS, ",")),
        Seed("csv", "table", ".tsv", _csv(rows(COLUMNS), COLUMNS, "\t")),
        Seed("csv", "table", ".txt", _csv(rows(COLUMNS), COLUMNS, "|")),
        Seed("csv", "lists", "", _csv(rows(IMAGE_TEXT), IMAGE_TEXT, ",")),
        Seed("csv", "clips", "", b"a0,p\na1,q\na2,p\na3,q\n"),
        Seed("csv", "vgg", "", b"a0,0,p,train\na1,1,q,train\na2,2,p,val\na3,3,q,test\n"),
        Seed(
            "csv",
            "ave",
            "",
            b"Category&VideoID&Quality&StartTime&EndTime\np&a0&good&0&10\nq&a1&good&0&10\np&a2&bad&1&5\n",
        ),
        Seed("csv", "ucf", "", b"".join(b"%c/a%d.mp4 1\n" % (b"pq"[n % 2], n) for n in range(10))),
        Seed("jsonl", "table", ".jsonl", _lines(rows(COLUMNS))),
        Seed("jsonl", "table", ".ndjson", _lines(_typed())),
        Seed("jsonl", "table", ".json", json.dumps(_typed()).encode()),
        Seed("jsonl", "lines", "", _lines(rows(IMAGE_TEXT))),
    ]
    columns = {name: [row[name] for row in rows(COLUMNS)] for name in COLUMNS}
    features = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["p", "q"]}}}}
    table = pa.table(columns | {"price": [float(cell) for cell in columns["price"]], "label": [0, 1, 0, 1, -1, 1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    table = table.append_column("vector", tensor_column(np.arange(12, dtype=np.float32).reshape(6, 2)))
    table = table.append_column("list", pa.array([[1.0, 2.0]] * 6))
    seeds.append(Seed("arrow", "table", ".arrow", into(lambda file: _arrow(table, pa.ipc.new_stream, file))))
    seeds.append(Seed("arrow", "table", ".arrow", into(lambda file: _arrow(table, pa.ipc.new_file, file))))
    seeds.append(Seed("arrow", "table", ".parquet", into(lambda file: pq.write_table(table, file))))
    arrays = {name: np.array(cells) for name, cells in columns.items()} | {"vector": np.ones((6, 3), np.float32)}
    seeds.append(Seed("arrow", "table", ".npz", into(lambda file: np.savez(file, **arrays))))
    seeds.append(Seed("arrow", "saved", "", json.dumps({"_data_files": [{"filename": "data.arrow"}]}).encode()))
    seeds.append(Seed("arrow", "splits", "", json.dumps({"splits": ["train", "validation", "test"]}).encode()))
    return seeds


def csv_with_damage(seeds: list[Seed], draw: random.Random) -> Seed:
    """Returns a table or list with damaged cells, rows, quotes or encoding."""
    chosen = draw.choice(seeds)
    if chosen.role != "table" and chosen.role not in LISTED:
        cells = [line.split("&" if chosen.role == "ave" else ",") for line in chosen.content.decode().split("\n")]
        delimiter = "&" if chosen.role == "ave" else ","
    else:
        names = LISTED.get(chosen.role, COLUMNS)
        named = [{"id": f"a{n}", **{k: v for k, v in row.items() if k != "id"}} for n, row in enumerate(rows(names))]
        header = [list(names)] if chosen.role != "clips" or draw.random() < 0.3 else []
        cells = header + [[row[name] for name in names] for row in named]
        delimiter = "\t" if chosen.suffix == ".tsv" else draw.choice(",,,,;|\t")
    for _ in range(draw.choice((0, 1, 1, 2, 3))):
        draw.choice(_ROWS)(cells, draw)
    text, end = io.StringIO(newline=""), draw.choice(("\n", "\n", "\r\n", "\r"))
    if draw.random() < 0.3:
        # Nothing is quoted, so quotes, delimiters and line breaks in cells cut the rows elsewhere.
        text.write(end.join(delimiter.join(row) for row in cells))
    else:
        quoting = draw.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
        csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows(cells)
    return Seed(chosen.group, chosen.role, chosen.suffix, _encoded(text.getvalue(), draw))


def lines_with_damage(seeds: list[Seed], draw: random.Random) -> Seed:
    """Returns JSON lines, or a list of JSON, with damaged values, keys or lines."""
    chosen = draw.choice(seeds)
    content: list[Any] = rows(IMAGE_TEXT) if chosen.role == "lines" else draw.choice((_typed(), rows(COLUMNS)))
    records = [[(json.dumps(k), json.dumps(v)) for k, v in row.items()] for row in content]
    for _ in range(draw.choice((1, 1, 2, 3))):
        record = draw.choice(records)
        place = draw.randrange(len(record)) if record else 0
        kind = draw.random()
        if not record or kind < 0.1:
            record.append(
                (draw.choice(('"new"', '""', '"label"', '"a.b"', '"\\ud800"', "1", "'k'")), draw.choice(VALUES))
            )
        elif kind < 0.7:
            record[place] = (record[place][0], draw.choice(VALUES))
        elif kind < 0.8:
            # In every row: a whole column of one strange kind.
            value = draw.choice(VALUES)
            for number, other in enumerate(records):
                records[number] = [(k, value) if k == record[place][0] else (k, v) for k, v in other]
        elif kind < 0.9:
            del record[place]
        else:
            record.insert(place, draw.choice(record))
    whole = ["{" + ", ".join(f"{key}: {value}" for key, value in record) + "}" for record in records]
    for _ in range(draw.choice((0, 0, 1, 2))):
        place = draw.randrange(len(whole))
        cut = whole[place][: draw.randrange(40)]
        whole[place] = draw.choice((cut, draw.choice(VALUES), "", whole[place] * 2, "//", "\x1e"))
    end = draw.choice(("\n", "\n", "\r\n", "\n\n"))
    listed = chosen.suffix == ".json" and draw.random() < 0.7
    text = "[" + ",".join(whole) + draw.choice(("]", "]", "]", ",]", "")) if listed else end.join(whole) + end
    return Seed(chosen.group, chosen.role, chosen.suffix, _encoded(text, draw))


def _typed() -> list[dict[str, Any]]:
    return [
        row | {"price": float(row["price"]), "maker": n % 2, "vector": [1.0, n], "ok": True}
        for n, row in enumerate(rows(COLUMNS))
    ]


def _csv(content: list[dict[str, str]], names: tuple[str, ...], delimiter: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, delimiter=delimiter, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(content)
    return text.getvalue().encode()


def _lines(content: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in content)


def _arrow(table: pa.Table, open_writer: Callable[..., Any], file: io.BytesIO) -> None:
    with open_writer(file, table.schema) as writer:
        writer.write_table(table)


def _encoded(text: str, draw: random.Random) -> bytes:
    encoding = draw.choice(ENCODINGS) if draw.random() < 0.25 else "utf-8"
    content = bytearray(text.encode(encoding, "replace"))
    if draw.random() < 0.1 and content:
        content.insert(draw.randrange(len(content)), draw.choice((0, 0, 0xFF, 0x80, 0xC3, 0x1A)))
    return bytes(content)


def _cell(cells: list[list[str]], draw: random.Random) -> None:
    row = draw.choice(cells) if cells else []
    if row:
        row[draw.randrange(len(row))] = draw.choice(CELLS)


def _column(cells: list[list[str]], draw: random.Random) -> None:
    place, value = draw.randrange(8), draw.choice(CELLS)
    for row in cells[1:]:
        if place < len(row):
            row[place] = value


def _ragged(cells: list[list[str]], draw: random.Random) -> None:
    row = draw.choice(cells) if cells else []
    if row and draw.random() < 0.5:
        del row[draw.randrange(len(row)) :]
    else:
        # A row of huge cells many times over, repeated by another damage, is beyond what any reader should be given.
        cell, many = draw.choice(CELLS), draw.choice((1, 1, 3, 2000))
        row += [cell] * min(many, 1 + 10**6 // (1 + len(cell)))


def _name(cells: list[list[str]], draw: random.Random) -> None:
    if cells and cells[0]:
        cells[0][draw.randrange(len(cells[0]))] = draw.choice((*cells[0], *CELLS, "label", "id", "split", "index"))


def _order(cells: list[list[str]], draw: random.Random) -> None:
    kind = draw.random()
    if kind < 0.3:
        del cells[draw.randrange(len(cells) + 1) :]
    elif kind < 0.6:
        draw.shuffle(cells)
    else:
        cells[:] = cells[:1] + cells[1:] * draw.choice((2, 50))


_ROWS: tuple[Callable[[list[list[str]], random.Random], None], ...] = (
    _cell,
    _cell,
    _cell,
    _column,
    _ragged,
    _name,
    _order,
)
