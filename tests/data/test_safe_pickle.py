"""The pickle reader: arrays and containers pass in every protocol, anything else does not, and nothing runs."""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cggm_ray.core.errors import DataError
from cggm_ray.data.formats.safe_pickle import load_pickle
from conftest import write_pickle

CONTENT = {
    "train": {
        "text": np.arange(12, dtype=np.float16).reshape(2, 3, 2),
        "labels": np.array([[[1.5]], [[-2.0]]], dtype=np.float32),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "id": np.array(["a", "b"]),
        "names": np.array(["x", None, ["nested"]], dtype=object),
        "scalar": np.float32(3),
        "other": [1, 2.5, "text", b"bytes", None, True, (1, 2), {3}, frozenset([4]), 1 + 2j, bytearray(b"z"), 10**40],
    }
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_containers_pass(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "data.pkl"
    path.write_bytes(pickle.dumps(CONTENT, protocol=protocol))
    loaded = load_pickle(path)["train"]
    for name, value in CONTENT["train"].items():
        if isinstance(value, np.ndarray):
            assert loaded[name].dtype == value.dtype
            assert np.array_equal(loaded[name], value)
        else:
            assert loaded[name] == value


class Evil:
    """Asks the reader to call something."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments", "refused"),
    [
        (os.system, ("touch {mark}",), "posix.system"),
        (eval, ("open('{mark}', 'w')",), "builtins.eval"),
        (exec, ("open('{mark}', 'w')",), "builtins.exec"),
        (getattr, ("text", "upper"), "builtins.getattr"),
        (functools.partial, (os.system, "touch {mark}"), "functools.partial"),
        (np.load, ("{mark}",), "numpy.load"),
        (collections.Counter, (), "collections.Counter"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_everything_else_is_refused_by_name(tmp_path: Path, function: Any, arguments: Any, refused: str) -> None:
    mark = tmp_path / "executed"
    filled = tuple(a.format(mark=mark) if isinstance(a, str) else a for a in arguments)
    path = write_pickle(tmp_path / "evil.pkl", {"train": [1, 2, Evil(function, *filled)]})
    with pytest.raises(DataError, match=rf"evil\.pkl: refused to load .*{refused.split('.')[-1]}"):
        load_pickle(path)
    assert not mark.exists()


def test_an_array_cannot_be_called_into_being(tmp_path: Path) -> None:
    """`numpy.ndarray` itself may be named, not called: a call could claim any amount of memory."""
    path = tmp_path / "huge.pkl"
    path.write_bytes(b"cnumpy\nndarray\n((I1000000000000\ntR.")
    with pytest.raises(DataError, match="not a readable pickle"):
        load_pickle(path)


def piece(value: Any, protocol: int = 3) -> bytes:
    """The instructions that push a value."""
    return pickle.dumps(value, protocol)[2:-1].replace(b"q\x00", b"")


def array_of(code: bytes, flags: int, shape: tuple[int, ...], data: bytes) -> bytes:
    """A pickle of an array, as numpy writes it, with every number free to choose."""
    kind = b"cnumpy\ndtype\n(V" + code + b"\nI00\nI01\ntR" + piece((3, "|", None, None, None, -1, -1, flags)) + b"b"
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\nt" + piece(b"b") + b"tR"
    return b"\x80\x03" + empty + b"(I1\n" + piece(shape) + kind + b"I00\n" + data + b"tb."


HOSTILE = {
    "numbers as addresses": (array_of(b"O8", 0, (2,), piece(b"A" * 16)), "an array of object from a bytes"),
    "objects that are not there": (
        array_of(b"O8", 63, (10**9,), b"]"),
        r"shape \(1000000000,\) of object from 0 items",
    ),
    "bytes that are not there": (array_of(b"f8", 0, (10**9,), piece(b"A" * 8)), "of float64 from 8 items"),
    "a structure": (array_of(b"V8", 0, (1,), piece(b"A" * 8)), "the array type 'V8'"),
    "no dimensions": (array_of(b"f8", 0, (0, 2**62), piece(b"")), "an array of shape"),
    "zeros": (b"cbuiltins\nbytearray\n(I3000000000\ntR.", "a bytearray of 3000000000"),
    "a long text": (b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b"x.", "ends too early"),
    "a long frame": (b"\x80\x04\x95" + (2**40).to_bytes(8, "little") + b"N.", "ends too early"),
    "a key of keys": (b"\x80\x02}N\x85" + b"2\x86" * 60 + b"Ns.", "expected texts or numbers as keys"),
    "a set of keys": (b"\x80\x04\x8f(N\x85" + b"2\x86" * 60 + b"\x90.", "expected texts or numbers as keys"),
    "an instruction for classes": (b"\x80\x02cnumpy\ndtype\n(Vf8\nt\x81.", "an object of a class"),
    "a method of another type": (b"\x80\x02cbuiltins\nbytearray\n(tRK\x01a.", "expected a list"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_numbers_in_a_pickle_are_not_believed(tmp_path: Path, case: str) -> None:
    """Each of them, given to pickle and numpy as it is, crashes the process, hangs, or takes memory without bounds."""
    content, message = HOSTILE[case]
    path = tmp_path / "hostile.pkl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"hostile\.pkl: .*{message}"):
        load_pickle(path)


def test_a_place_in_the_memo_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "memo.pkl"
    path.write_bytes(b"\x80\x02Nr\xff\xff\xff\xff.")
    assert load_pickle(path) is None


@pytest.mark.parametrize("kept", [0, 1, 10, 200, -1])
def test_truncated(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "short.pkl"
    path.write_bytes(pickle.dumps(CONTENT)[:kept])
    with pytest.raises(DataError, match=r"short\.pkl"):
        load_pickle(path)


def test_missing_and_unreadable(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        load_pickle(tmp_path / "none.pkl")
    with pytest.raises(DataError, match="directory"):
        load_pickle(tmp_path)


@given(st.binary(max_size=300), st.integers(0, 2000))
@settings(max_examples=300)
def test_damaged_bytes_give_a_named_error_or_data(noise: bytes, position: int) -> None:
    whole = pickle.dumps(CONTENT)
    position %= len(whole)
    path = Path(tempfile.gettempdir()) / f"cggm-fuzz-{os.getpid()}.pkl"
    path.write_bytes(whole[:position] + noise + whole[position + len(noise) :])
    with contextlib.suppress(DataError):
        load_pickle(path)
    path.unlink()
