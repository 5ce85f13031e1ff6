"""Inputs of `fuzz.py`: whole files, ways to damage them, and contents that a generator makes up.

Everything is a function of a seed.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import random
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from fuzz_files import generated, real
from fuzz_listings import listing_with_damage
from fuzz_media import with_damaged_parts
from fuzz_seeds import Seed, into
from fuzz_sentiment import sentiment_with_damage
from fuzz_tables import csv_with_damage, lines_with_damage
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cggm_ray.data.shards.shards import FORMAT
from cggm_ray.engine.configuration import Config

WEIGHTS = {"h5": 0.25}
"""Share of a format among the inputs: every h5 file is looked at by a process of its own first, which takes its time."""
NUMBERS = [0, 1, 0x7F, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
STRUCTURED: dict[str, Callable[[list[Seed], random.Random], Seed]] = {
    "audio": with_damaged_parts,
    "csv": csv_with_damage,
    "jsonl": lines_with_damage,
    "listing": listing_with_damage,
    "sentiment": sentiment_with_damage,
    "video": with_damaged_parts,
}
"""By format: what damages the structure of a file; two of three damaged inputs are made by it, the others by `DAMAGES`."""
WORDS = {
    "json": r"""[ { } ] " : , null true NaN Infinity 1e999 -0 \ud800 \u0000 "id" "img_path" "../x" "/etc/passwd" """,
    "yaml": r"""[ { } ] &a *a <<: - ? | > !!binary !!set !!python/name:os.system !!timestamp !!int .inf .nan 2001-99-99 0x1g
        1:60 ~ # % @ ` ' " --- ... rho: uniform: choice: when: trials: 1e400 null""",
    "arrow": r""""" "../x" "/etc/passwd" "\ud800" "\u0000" [ ] { } null 1 "filename" "splits" "train" "test" """,
    "csv": r"""" "" , ; | & ' \ NA nan inf 1e999 ../x /etc/passwd label id split train test 9999999999999999999999 ,, "," """,
    "jsonl": r"""[ { } ] " : , null true NaN Infinity 1e999 -0 \ud800 \u0000 "id" "label" "image" "../x" "/etc/passwd" """,
    "listing": r"""<Key> </Key> <Size> </Size> <Contents> </Contents> <IsTruncated> true &amp; &#0; ../ <![CDATA[ ]]> <!-- """,
}


def damaged(seeds: list[Seed], draw: random.Random) -> Seed:
    """Returns a whole file after one to three kinds of damage."""
    chosen = draw.choice(seeds)
    if chosen.group in _ARCHIVES and draw.random() < 0.5:
        return replace(chosen, content=_repacked(chosen.content, draw, chosen.group))
    content = bytearray(chosen.content)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        draw.choice(DAMAGES)(content, draw, draw.choice(seeds).content, chosen.group)
    return Seed(chosen.group, chosen.role, chosen.suffix, bytes(content))


_ARCHIVES = {"npz": zipfile.ZIP_DEFLATED, "torch": zipfile.ZIP_STORED}


def _repacked(content: bytes, draw: random.Random, group: str) -> bytes:
    """Returns an archive with a damaged member whose checksum is right, so that what lies behind the checksum is reached."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w", _ARCHIVES[group]) as new:
        members = {name: bytearray(old.read(name)) for name in old.namelist()}
        for name in draw.sample(sorted(members), draw.choice((1, 1, 2))):
            draw.choice(DAMAGES)(members[name], draw, bytes(draw.choice(list(members.values()))), group)
        for name, member in members.items():
            new.writestr(name, bytes(member))
    return out.getvalue()


def _place(content: bytearray, draw: random.Random) -> int:
    """Headers and footers are where the sizes are, so they are hit more often."""
    near = draw.choice((len(content), 400, -400))
    low, high = (0, min(len(content), near)) if near > 0 else (max(0, len(content) + near), len(content))
    return draw.randrange(low, max(low + 1, high))


def _flip(content: bytearray, draw: random.Random, other: bytes, group: str) -> None:
    for _ in range(draw.choice((1, 2, 8, 32))):
        if content:
            content[_place(content, draw) % len(content)] ^= 1 << draw.randrange(8)


def _cut(content: bytearray, draw: random.Random, other: bytes, group: str) -> None:
    del content[_place(content, draw) :]


def _drop(content: bytearray, draw: random.Random, other: bytes, group: str) -> None:
    place = _place(content, draw)
    del content[place : place + draw.choice((1, 4, 8, 100))]


def _splice(content: bytearray, draw: random.Random, other: bytes, group: str) -> None:
    place, start = _place(content, draw), draw.randrange(max(1, len(other)))
    piece = other[start : start + draw.choice((1, 8, 64, 1000))]
    content[place : place + draw.choice((0, len(piece)))] = piece


def _repeat(content: bytearray, draw: random.Random, other: bytes, group: str) -> None:
    place = _place(content, draw)
    content[place:place] = content[place : place + draw.choice((1, 8, 64))] * draw.choice((1, 3, 1000))


def _number(content: bytearray, draw: random.Random, other: bytes, group: str) -> None:
    """A size that is absurd, in the bytes or digits that a header has."""
    place, number = _place(content, draw), draw.choice(NUMBERS)
    if draw.random() < 0.3:
        digits = [p for p in range(len(content)) if chr(content[p]).isdigit()]
        if digits:
            place = draw.choice(digits)
            content[place : place + 1] = draw.choice((str(number), "9" * 5000, "-1", "1e999", "10" * 6)).encode()
        return
    width = draw.choice((1, 2, 4, 8))
    content[place : place + width] = (number % 2 ** (8 * width)).to_bytes(width, draw.choice(("little", "big")))


def _word(content: bytearray, draw: random.Random, other: bytes, group: str) -> None:
    words = WORDS.get(group, "").split()
    if not words:
        _flip(content, draw, other, group)
        return
    place = _place(content, draw)
    content[place:place] = draw.choice(
        (f"{draw.choice(words)}", f" {draw.choice(words)} ", draw.choice(words) * 3000)
    ).encode()


DAMAGES = (_flip, _cut, _drop, _splice, _repeat, _number, _number, _word)


class Calls:
    """Pickles to a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def programs(draw: random.Random) -> bytes:
    """Returns a pickle of random instructions, of the names that numpy needs and of some that nobody should call."""
    import pickletools

    names = [
        *("numpy dtype", "numpy ndarray", "numpy._core.multiarray _reconstruct", "numpy._core.multiarray scalar"),
        *(
            "numpy._core.numeric _frombuffer",
            "_codecs encode",
            "builtins set",
            "builtins bytearray",
            "builtins complex",
        ),
        *("builtins eval", "os system", "numpy load", "builtins getattr", "numpy._core.multiarray fromfile"),
    ]
    out = bytearray(b"\x80" + bytes([draw.choice((2, 3, 4, 5))]))
    values = [
        "f8",
        "O8",
        "b",
        (0,),
        (3, "<", None, None, None, -1, -1, 0),
        (10**9,),
        b"A" * 16,
        "touch executed",
        [],
        {},
        -1,
    ]
    for _ in range(draw.randrange(3, 25)):
        kind = draw.random()
        if kind < 0.3:
            out += b"c" + draw.choice(names).replace(" ", "\n").encode() + b"\n"
        elif kind < 0.6:
            out += pickle.dumps(draw.choice(values), 2)[2:-1]
        elif kind < 0.7:
            opcode = draw.choice(pickletools.opcodes)
            out += opcode.code.encode("latin-1") + draw.randbytes(draw.choice((0, 1, 4, 8)))
        else:
            out += draw.choice(
                (
                    b"R",
                    b"R",
                    b"b",
                    b"(",
                    b"t",
                    b"\x85",
                    b"\x86",
                    b"2",
                    b"0",
                    b"s",
                    b"u",
                    b"a",
                    b"e",
                    b"\x81",
                    b"\x94",
                    b"o",
                )
            )
    return bytes(out + b".")


PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([10**20, -1, 2**63, 1e308])
)
DOCUMENTS = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
DTYPES = hnp.scalar_dtypes() | hnp.array_dtypes(max_size=2)
ARRAYS = st.one_of(
    DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, SHAPES)), hnp.arrays(np.float32, (6, 3)), hnp.arrays(np.int64, 6)
)
NAMES = st.sampled_from(
    ["text", "audio", "vision", "labels", "label", "split", "id", "x", "x_present", "a/b"]
) | st.text(max_size=4)
TABLES = st.dictionaries(NAMES, ARRAYS, max_size=5)
RECORDS = st.lists(
    st.fixed_dictionaries(
        {
            "id": PLAIN,
            "text_tokens": st.lists(st.text(max_size=3), max_size=2) | DOCUMENTS,
            "img_path": st.text(max_size=6) | st.sampled_from(["../x", "/etc/passwd", "a\\..\\b"]),
            "label": st.text(max_size=2) | PLAIN,
        }
    )
    | DOCUMENTS,
    max_size=4,
)
FIELDS = sorted({name for _, key in Config().fields() for name in (key.name, *key.metadata["aliases"])})
SETTINGS = st.dictionaries(st.sampled_from(FIELDS) | PLAIN, DOCUMENTS, max_size=4)
SPACES = st.fixed_dictionaries(
    {
        "space": st.dictionaries(
            st.sampled_from(FIELDS),
            st.dictionaries(
                st.sampled_from(["choice", "uniform", "loguniform", "grid", "when"]),
                st.lists(PLAIN, max_size=3) | DOCUMENTS,
                max_size=2,
            ),
            max_size=3,
        )
        | DOCUMENTS
    },
    optional={"trials": PLAIN, "seed": PLAIN, "scheduler": DOCUMENTS, "metric": PLAIN, "resources": DOCUMENTS},
)
SPLITS = st.fixed_dictionaries(dict.fromkeys(("train", "valid", "test"), TABLES | DOCUMENTS))
MADE: dict[str, list[tuple[str, str, Any, Callable[[Any], bytes]]]] = {
    "pickle": [("mosi", ".pkl", SPLITS | TABLES | DOCUMENTS, pickle.dumps)],
    "json": [
        ("records", "", RECORDS | DOCUMENTS, lambda value: json.dumps(value).encode()),
        ("bert", "", DOCUMENTS, lambda value: json.dumps({"model_type": "bert", "hidden_size": value}).encode()),
        ("manifest", "", DOCUMENTS, lambda value: json.dumps({"format": FORMAT, "splits": value}).encode()),
    ],
    "yaml": [
        ("config", ".yaml", SETTINGS | DOCUMENTS, lambda value: yaml.safe_dump(value).encode()),
        ("search", ".yaml", SPACES | DOCUMENTS, lambda value: yaml.safe_dump(value).encode()),
    ],
    "npz": [("features", ".npz", TABLES, lambda value: into(lambda file: np.savez(file, **value)))],
    "torch": [("features", ".pt", SPLITS | TABLES, lambda value: into(lambda file: torch.save(_tensors(value), file)))],
    "npy": [(role, "", ARRAYS, lambda value: into(lambda file: np.save(file, value))) for role in ("labels", "names")],
    "parquet": [("features", ".parquet", TABLES, lambda value: into(lambda file: pq.write_table(_arrow(value), file)))],
    "h5": [
        (role, "", TABLES, lambda value: into(lambda file: _h5(value, file)))
        for role in ("volume", "text", "statistics")
    ],
}


def _tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tensors(one) for name, one in value.items()}
    kept = isinstance(value, np.ndarray) and value.dtype.kind in "biufc" and value.dtype.isnative
    return torch.as_tensor(value.copy()) if kept else None


def _arrow(table: dict[str, np.ndarray]) -> pa.Table:
    rows = min((len(values) for values in table.values() if values.ndim), default=0)
    return pa.table({name: pa.array(values[:rows].tolist()) for name, values in table.items() if values.ndim})


def _h5(table: dict[str, np.ndarray], file: io.BytesIO) -> None:
    with h5py.File(file, "w") as h5:
        for (name, values), key in zip(
            table.items(), ("image", "label", "Ses01F_impro00_F000", "1/mean", "1/std"), strict=False
        ):
            h5[key] = values
            h5.attrs["channels"] = name


def made(group: str, count: int, number: int) -> list[Seed]:
    """Returns the files with contents that hypothesis makes up; contents that the format cannot hold are left out.

    Args:
        group: format.
        count: of contents that are drawn.
        number: seed.
    """
    found: list[Seed] = []
    kinds = MADE.get(group, [])
    for role, suffix, strategy, write in kinds:

        def take(value: Any, kind: tuple[Any, ...] = (role, suffix, write)) -> None:
            role, suffix, write = kind
            try:
                found.append(Seed(group, role, suffix, write(value)))
            except (TypeError, ValueError, OverflowError, NotImplementedError):
                # The writer refuses what its format has no room for.
                return

        _drawn(strategy, take, max(1, count // len(kinds)), number)
    return found


def _drawn(strategy: st.SearchStrategy[Any], take: Callable[[Any], None], count: int, number: int) -> None:
    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def draw(value: Any) -> None:
        with warnings.catch_warnings():
            # numpy tells which version of its format it chose.
            warnings.simplefilter("ignore")
            take(value)

    draw()


def inputs(
    whole: Path, data: Path, count: int, number: int, only: Sequence[str] | None = None
) -> Iterator[tuple[str, Seed]]:
    """Yields how an input came about, and the input; about `count` in all, every format in its turn.

    Args:
        whole: folder of `whole_folder`.
        data: folder of real files, or one that is not there.
        count: of inputs.
        number: seed.
        only: formats that are wanted; None for all.
    """
    draw = random.Random(number)
    seeds = generated(whole) + real(data)
    groups = sorted({one.group for one in seeds if only is None or one.group in only})
    whole_share = count / sum(WEIGHTS.get(group, 1.0) for group in groups)
    for group in groups:
        share = math.ceil(whole_share * WEIGHTS.get(group, 1.0))
        mine = [one for one in seeds if one.group == group]
        yield from (("whole", one) for one in mine)
        strange = made(group, share // 3, number)
        yield from (("made up", one) for one in strange)
        if group == "pickle":
            evil = (
                Calls(os.system, "touch executed"),
                Calls(eval, "1"),
                Calls(open, "executed", "w"),
                Calls(exec, "x = 1"),
            )
            yield from (("whole", Seed(group, "mosi", ".pkl", pickle.dumps({"train": one}, 2))) for one in evil)
            for _ in range(share // 4):
                yield "program", Seed(group, "mosi", ".pkl", programs(draw))
        for _ in range(max(0, share - len(mine) - len(strange) - (share // 4 if group == "pickle" else 0))):
            if group in STRUCTURED and draw.random() < 2 / 3:
                yield "structure", STRUCTURED[group](mine, draw)
            else:
                yield "damaged", damaged(mine, draw)
