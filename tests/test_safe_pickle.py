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

from cggm_ray.data.safe_pickle import load_pickle
from cggm_ray.errors import DataError
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
        (collections.OrderedDict, (), "collections.OrderedDict"),
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
@settings(max_examples=300, deadline=None)
def test_damaged_bytes_give_a_named_error_or_data(noise: bytes, position: int) -> None:
    whole = pickle.dumps(CONTENT)
    position %= len(whole)
    path = Path(tempfile.gettempdir()) / f"cggm-fuzz-{os.getpid()}.pkl"
    path.write_bytes(whole[:position] + noise + whole[position + len(noise) :])
    with contextlib.suppress(DataError):
        load_pickle(path)
    path.unlink()
