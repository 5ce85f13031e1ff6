"""Checks that all readers of raw files share, because a raw file may come from anywhere.

No code in a file runs, nothing outside its folder is read, and its declared size is compared with its real size before
memory is allocated for it.
"""

from __future__ import annotations

import codecs
import io
import json
import pickle
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from cggm_ray.core.errors import CggmError, DataError, short_repr
from cggm_ray.core.optional import require

UNBACKED_BYTES = 2**28
"""An array of at most so many bytes is read whatever the size of its file is."""
RATIO = 100
"""Largest ratio of a larger array to its file. Compressed arrays of real measurements stay far below."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Image formats that are decoded. Pillow knows others, and starts a program for some of them (EPS)."""
MOST_PIXELS = 89_478_485
"""Largest number of pixels of an image: 256 MiB in colour, the size from which Pillow warns."""
LARGE_PIXELS = 2**24
_LARGE_IMAGE = threading.Lock()
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
"""Byte order marks and their encodings."""


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turns any error that the code of a format raises for a damaged file into a DataError.

    Args:
        path: of the file, for messages.
        kind: of the file, such as 'h5 file'.

    Raises:
        DataError: the file cannot be read, or is not what it should be.
    """
    try:
        # What a library thinks of a damaged file would be lines beside the one that an error has.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except CggmError:
        raise
    except OSError as error:
        if error.errno is not None and error.strerror:
            raise DataError(f"{path}: cannot be read: {error.strerror}; expected a readable {kind}") from None
        raise DataError(f"{path}: not a readable {kind}: {error}") from None
    except EOFError:
        raise DataError(f"{path}: the {kind} ends too early; expected a complete file (a broken copy?)") from None
    except RecursionError:
        raise DataError(f"{path}: not a readable {kind}: nested too deeply") from None
    except (ValueError, pickle.UnpicklingError) as error:
        raise DataError(f"{path}: not a readable {kind}: {error}") from None
    # A damaged file can raise nearly anything from the code of its format, lack of memory included.
    except Exception as error:
        raise DataError(f"{path}: not a readable {kind}: {type(error).__name__}: {error}") from None


def check_size(declared: int, held: int, where: str, remedy: str = "a broken or hostile file?") -> None:
    """Raises a DataError if data is far larger than the bytes that it comes from.

    Args:
        declared: bytes in memory.
        held: bytes on disk.
        where: file and field.
        remedy: what to do about it.

    Raises:
        DataError: more than `UNBACKED_BYTES` and more than `RATIO` times `held`.
    """
    most = max(UNBACKED_BYTES, RATIO * held)
    if declared > most:
        raise DataError(
            f"{where}: found {declared:,} bytes of data in a file of {held:,}; expected at most {most:,} ({remedy})"
        )


def read_text(path: Path, kind: str) -> str:
    """Returns the content of a text file in UTF-8, or in the encoding of its byte order mark (UTF-8 or UTF-16).

    Args:
        path: of the file.
        kind: of it, such as 'JSON file', for messages.

    Raises:
        DataError: the file cannot be read, or is in another encoding.
    """
    return read_encoded(path, kind)[0]


def read_encoded(path: Path, kind: str, read: Callable[[Path], bytes] = Path.read_bytes) -> tuple[str, str]:
    """Returns what `read_text` returns, and the name of the encoding; `read` gives the bytes of a file."""
    with reading(path, kind):
        content = read(path)
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: found byte 0x{error.object[error.start]:02x}, which is not {encoding.removesuffix('-sig')}; "
            "expected a file in UTF-8, or in UTF-16 with a byte order mark (Excel: save as CSV UTF-8)"
        ) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise DataError(
            f"{path}, line {line}: found a zero character; expected a file in UTF-8, or in UTF-16 with a byte order mark"
        )
    return text, encoding.removesuffix("-sig").upper()


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file, read by `read_text` and `parse_json`.

    Raises:
        DataError: the file cannot be read, or is not JSON.
    """
    text = read_text(path, "JSON file")
    with reading(path, "JSON file"):
        return parse_json(text)


def parse_json(text: str) -> Any:
    """Parses JSON; numbers that JSON lacks and repeated keys are errors.

    Raises:
        ValueError: the text is not JSON.
        RecursionError: it is nested too deeply.
    """

    def constant(name: str) -> Any:
        raise ValueError(f"found {name}; expected a finite number")

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            names = [key for key, _ in pairs]
            twice = next(key for key in names if names.count(key) > 1)
            raise ValueError(f"the key {short_repr(twice)} is there twice in one object")
        return content

    return json.loads(text, parse_constant=constant, object_pairs_hook=mapping)


def is_text(value: Any) -> bool:
    """Returns whether a value is a text that can be encoded; lone surrogates cannot."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_texts(values: Iterable[Any], where: str) -> None:
    """Raises a DataError if texts cannot be encoded, or if they are too large as an array with rows of one length.

    Raises:
        DataError: names the row.
    """
    rows, longest = 0, 0
    held: dict[int, int] = {}
    for row, value in enumerate(values):
        if not is_text(value):
            raise DataError(f"{where}, row {row}: found {short_repr(value)}; expected a text")
        rows, longest = row + 1, max(longest, len(value))
        # One text may occur many times without making the file larger.
        held[id(value)] = 4 * len(value)
    check_size(4 * rows * longest, sum(held.values()), where, "one text is much longer than others")


def plain_array(value: Any, where: str) -> np.ndarray:
    """Returns numbers or texts as an array, from an array, a list or a single value.

    Raises:
        DataError: it holds other things, lists that make no array, or is too large for its file.
    """
    if isinstance(value, list | tuple):
        check_leaves(value, where)
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(f"{where}: found lists that make no array: {error}") from None
    if array.dtype.kind == "O":
        items = [decoded(item) for item in array.ravel().tolist()]
        if items and all(isinstance(item, bool | int | float | np.number | np.bool) for item in items):
            numbers = np.array(items)
            if numbers.dtype.kind in "biuf":
                return numbers.reshape(array.shape)
        if not all(isinstance(item, str) for item in items):
            raise DataError(f"{where}: found an array of objects; expected numbers or texts")
        check_texts(items, where)
        return np.array(items, dtype=str).reshape(array.shape)
    if array.dtype.kind == "S":
        check_size(4 * array.nbytes, 4 * array.nbytes, where)
        return np.char.decode(array, "utf-8", "replace")
    if array.dtype.kind == "U":
        _check_characters(array, where)
    elif array.dtype.kind not in "biufc":
        raise DataError(f"{where}: found an array of {array.dtype}; expected numbers or texts")
    return array


def finite(values: np.ndarray) -> np.ndarray:
    """Returns where numbers are finite, in float32 too, because they are converted to it."""
    if values.dtype.kind != "f" or values.dtype.itemsize <= 4:
        return np.isfinite(values)
    return np.abs(values) <= np.finfo(np.float32).max


def decoded(value: Any) -> Any:
    """Returns bytes as text, and anything else unchanged."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def check_leaves(value: Any, where: str) -> None:
    """Counts the leaves of nested lists, because a short list that holds other lists several times can stand for very many.

    Args:
        value: a list, a tuple or an array of objects, whose leaves are numbers, texts and arrays of them.
        where: file and field.

    Raises:
        DataError: it has far more leaves than its size allows, or contains itself.
    """

    def holds(part: Any) -> bool:
        return isinstance(part, list | tuple) or (isinstance(part, np.ndarray) and part.dtype.kind == "O")

    being_counted = -1
    sizes: dict[int, int] = {}
    held: dict[int, int] = {}
    # An array of objects makes new lists of them: they are kept, so that no two share an id.
    lists: dict[int, Any] = {}
    waiting: list[tuple[Any, bool]] = [(value, False)]
    while waiting:
        item, counted = waiting.pop()
        if id(item) not in lists:
            lists[id(item)] = item.ravel().tolist() if isinstance(item, np.ndarray) else item
        parts = lists[id(item)]
        nested = [part for part in parts if holds(part)]
        if counted:
            arrays = [part for part in parts if isinstance(part, np.ndarray) and not holds(part)]
            held.update({id(part): part.nbytes for part in arrays})
            size = sum(sizes[id(part)] for part in nested) + sum(part.size for part in arrays)
            sizes[id(item)] = len(parts) - len(nested) - len(arrays) + size
            check_size(8 * sizes[id(item)], sum(held.values()), where, "lists that hold the same list many times")
        elif sizes.get(id(item)) == being_counted:
            raise DataError(f"{where}: found a list that holds itself; expected numbers or texts")
        elif id(item) not in sizes:
            sizes[id(item)] = being_counted
            waiting.append((item, True))
            waiting += [(part, False) for part in nested]


def _check_characters(array: np.ndarray, where: str) -> None:
    """Raises a DataError for arrays of texts with numbers that are no characters, which numpy checks only when they are
    read.
    """
    if array.size and array.dtype.itemsize:
        native = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))
        codes = native.view(np.uint32)
        if codes.max() > 0x10FFFF or ((codes >= 0xD800) & (codes < 0xE000)).any():
            raise DataError(f"{where}: found texts with numbers that are no characters; expected Unicode")


def inside(path: str) -> bool:
    """Returns whether a path that a file names is relative and stays below the folder of the file.

    Links are followed, because the owner of the folder made them.
    """
    windows = PureWindowsPath(path)
    parts = {*PurePosixPath(path).parts, *windows.parts}
    return not (path.startswith(("/", "\\")) or windows.drive or ".." in parts or "\0" in path)


def open_image(path: Path | io.BytesIO) -> Any:
    """Opens a Pillow image of one of `FORMATS`; its size is checked, its pixels are not decoded.

    Args:
        path: of the file, or its content.

    Raises:
        OSError, ValueError, SyntaxError: what Pillow raises for a file that it cannot read.
        ValueError: it is too large.
    """
    images = require("PIL.Image", extra="images", purpose="images")

    if isinstance(path, Path) and not path.is_file():
        raise FileNotFoundError(2, "no such file" if not path.exists() else "not a regular file", str(path))
    # Sizes are checked below, and a warning would be a line beside the one that an error has.
    warnings.filterwarnings("ignore", module="PIL")
    try:
        image = images.open(path, formats=FORMATS)
    except images.DecompressionBombError:
        raise ValueError(f"found more than {2 * MOST_PIXELS:,} pixels; expected at most {MOST_PIXELS:,}") from None
    width, height = image.size
    if width * height > MOST_PIXELS:
        image.close()
        raise ValueError(f"found {width} x {height} pixels; expected at most {MOST_PIXELS:,}")
    if image.format == "TIFF":
        # Pillow maps an uncompressed TIFF into memory only where it knows a file name, and then takes the width of a turned one
        # for its height.
        image.filename = ""
    return image


@contextmanager
def image_memory(image: Any) -> Iterator[None]:
    """Lets one large image at a time be decoded, because several threads decode images."""
    if image.size[0] * image.size[1] <= LARGE_PIXELS:
        yield
    else:
        with _LARGE_IMAGE:
            yield
