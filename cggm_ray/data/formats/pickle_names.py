"""Stand-ins for the names in pickles of arrays and containers. Each checks its arguments and can only make data."""

from __future__ import annotations

import codecs
import math
import pickle
import re
from typing import Any

import numpy as np

from cggm_ray.core.errors import short_repr

MOST_AXES = 32


class _ArrayKind:
    """Stands for `numpy.ndarray`, which a pickle only names and never has to call."""

    __slots__ = ()


_NDARRAY = _ArrayKind()


class TypeStandIn:
    """Stands for a `numpy.dtype`, whose own `__setstate__` would let a file call numbers addresses of objects."""

    __slots__ = ("dtype",)
    CODES = re.compile(r"[biufcSUO]\d{0,9}|\?")

    def __init__(self, code: Any, align: Any = False, copy: Any = True) -> None:
        if not isinstance(code, str) or not self.CODES.fullmatch(code):
            raise pickle.UnpicklingError(f"the array type {short_repr(code)}; expected numbers or texts")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        """Sets the byte order; every other part of the state must agree with the type."""
        order, *parts = state[1:]
        if order not in ("<", ">", "|", "=") or parts[:3] != [None, None, None]:
            raise pickle.UnpicklingError(f"an array type with the state {short_repr(state)}")
        if parts[3] not in (-1, self.dtype.itemsize):
            raise pickle.UnpicklingError(f"the array type {self.dtype} with items of {short_repr(parts[3])} bytes")
        if order in "<>":
            self.dtype = self.dtype.newbyteorder(order)


def _type(value: Any) -> np.dtype[Any]:
    if not isinstance(value, TypeStandIn):
        raise pickle.UnpicklingError(f"an array whose type is {short_repr(value)}")
    return value.dtype


def _plain_type(value: Any) -> np.dtype[Any]:
    dtype = _type(value)
    if dtype.hasobject:
        raise pickle.UnpicklingError("a buffer of objects")
    return dtype


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > MOST_AXES or not all(type(n) is int and n >= 0 for n in value):
        raise pickle.UnpicklingError(f"an array of shape {short_repr(value)}")
    return value


class _Reconstruct:
    """numpy's `_reconstruct`, for plain empty arrays: `fill_array` fills them."""

    __slots__ = ()

    def __call__(self, kind: Any, shape: Any, typecode: Any) -> np.ndarray:
        if kind is not _NDARRAY or shape != (0,):
            raise pickle.UnpicklingError(f"an array of kind {short_repr(kind)} and shape {short_repr(shape)}")
        return np.ndarray.__new__(np.ndarray, (0,), "b")


def fill_array(array: np.ndarray, state: Any) -> None:
    """Fills an array as numpy's `__setstate__` does, after checking that the data is as long as shape and type say.

    Raises:
        pickle.UnpicklingError: the length differs.
    """
    shape, kind, fortran, data = state[-4:]
    shape, dtype = _shape(shape), _type(kind)
    size = math.prod(shape)
    if isinstance(data, str):
        # Python 2 wrote bytes, which arrive as the text of the same numbers.
        data = data.encode("latin-1")
    if not isinstance(data, list if dtype.hasobject else bytes | bytearray):
        raise pickle.UnpicklingError(f"an array of {dtype} from a {type(data).__name__}")
    held = len(data) if dtype.hasobject else len(data) // max(1, dtype.itemsize)
    if held != size or (not dtype.hasobject and len(data) != size * dtype.itemsize):
        raise pickle.UnpicklingError(
            f"an array of shape {short_repr(shape)} of {dtype} from {len(data)} items or bytes"
        )
    if math.prod(max(1, n) for n in shape) >= 2**60:
        raise pickle.UnpicklingError(f"an array of shape {short_repr(shape)}")
    content: Any = (1, shape, dtype, bool(fortran), data if dtype.hasobject else bytes(data))
    array.__setstate__(content)


class _Scalar:
    """numpy's `scalar`, for fixed-size types."""

    __slots__ = ()

    def __call__(self, kind: Any, data: Any = b"") -> Any:
        dtype = _plain_type(kind)
        if isinstance(data, str):
            data = data.encode("latin-1")
        if not isinstance(data, bytes):
            raise pickle.UnpicklingError("a numpy scalar that is not made of bytes")
        return np.frombuffer(data, dtype=dtype, count=1)[0]


class _FromBuffer:
    """numpy's `_frombuffer`, which pickles of protocol 5 use."""

    __slots__ = ()

    def __call__(self, data: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
        return np.frombuffer(data, dtype=_plain_type(kind)).reshape(_shape(shape), order=order)


class _Encode:
    """`_codecs.encode`, by which protocols 0 to 2 write bytes: only latin-1 is what pickle itself writes."""

    __slots__ = ()

    def __call__(self, text: Any, encoding: Any = "latin1") -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"text in the encoding {short_repr(encoding)}")
        return codecs.encode(text, "latin-1")


class _Collect:
    """`set` or `frozenset`, of keys that can be compared at once."""

    __slots__ = ("_kind",)

    def __init__(self, kind: type) -> None:
        self._kind = kind

    def __call__(self, items: Any = ()) -> Any:
        if not isinstance(items, list | tuple):
            raise pickle.UnpicklingError(f"a set from a {type(items).__name__}")
        return self._kind(checked_keys(items))


class _Ordered:
    """`OrderedDict` as a dict, which keeps the order too, and `defaultdict`, whose factory is never called."""

    __slots__ = ("_factory",)

    def __init__(self, *, factory: bool) -> None:
        self._factory = factory

    def __call__(self, *arguments: Any) -> dict[Any, Any]:
        if self._factory:
            arguments = arguments[1:]
        items = arguments[0] if arguments else ()
        pairs = isinstance(items, list | tuple) and all(isinstance(p, list | tuple) and len(p) == 2 for p in items)
        if len(arguments) > 1 or not pairs:
            raise pickle.UnpicklingError(f"a dict from {short_repr(arguments)}")
        return dict(zip(checked_keys([key for key, _ in items]), [value for _, value in items], strict=True))


class _Inert:
    """Stands for a type that is only named, as the factory of a `defaultdict`, and cannot be called."""

    __slots__ = ()


class _ByteArray:
    """`bytearray` of bytes; of a number it would be as many zeros."""

    __slots__ = ()

    def __call__(self, data: Any = b"", encoding: Any = "latin-1") -> bytearray:
        if not isinstance(data, str | bytes):
            raise pickle.UnpicklingError(f"a bytearray of {short_repr(data)}")
        return bytearray(data if isinstance(data, bytes) else _Encode()(data, encoding))


class _Complex:
    """`complex` of two numbers."""

    __slots__ = ()

    def __call__(self, real: Any, imaginary: Any = 0.0) -> complex:
        if type(real) is not float or type(imaginary) is not float:
            raise pickle.UnpicklingError("a complex number that is not made of two numbers")
        return complex(real, imaginary)


def checked_keys(items: Any) -> Any:
    """Returns the keys of a dict or the items of a set, after checking that they are texts or numbers.

    Their hash is found at once, and a file cannot make many of them share one.
    """
    for key in items:
        plain = isinstance(key, str | bytes | float | np.number | np.str_ | np.bool) or key is None
        if not plain and not (isinstance(key, int) and -(2**63) <= key < 2**64):
            raise pickle.UnpicklingError(f"the key {short_repr(key)}; expected texts or numbers as keys")
    return items


_ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_BUILTINS = {
    "bytearray": _ByteArray(),
    "complex": _Complex(),
    "frozenset": _Collect(frozenset),
    "set": _Collect(set),
}
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): TypeStandIn,
    ("_codecs", "encode"): _Encode(),
    ("collections", "OrderedDict"): _Ordered(factory=False),
    ("collections", "defaultdict"): _Ordered(factory=True),
    **{(module, "_reconstruct"): _Reconstruct() for module in _ARRAY_MODULES},
    **{(module, "scalar"): _Scalar() for module in _ARRAY_MODULES},
    **{(module, "_frombuffer"): _FromBuffer() for module in ("numpy.core.numeric", "numpy._core.numeric")},
    **{(module, name): kind for module in ("builtins", "__builtin__") for name, kind in _BUILTINS.items()},
    **{(module, name): _Inert() for module in ("builtins", "__builtin__") for name in ("dict", "float", "int", "list")},
}
