"""What columns of images, audio and video share: files below the folder of media, or their content, each looked at once."""

from __future__ import annotations

import io
import os
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cggm_ray.core.errors import CggmError, DataError, listed
from cggm_ray.core.optional import check_installed
from cggm_ray.data.datasets.food101.food101_records import ImageFinder
from cggm_ray.data.datasets.table.cells import Cells, is_media, is_text
from cggm_ray.data.datasets.table.kinds import MOSTLY, ColumnKind, Context, Facts
from cggm_ray.data.datasets.table.places import CellPlace, content_of, is_place
from cggm_ray.storage.places import as_path

SHOWN = 5
Content = str | bytes
"""Path of a file, what is in it, or the place of a cell that holds that (`places`)."""


class MediaKind(ColumnKind):
    """Files of a kind of media, by their paths or in the cells themselves.

    Attributes:
        what: one of them is called in messages.
        suffixes: of their files.
        marks: pattern of the beginning of their files.
        package, extra: that decodes them, and what installs it.
    """

    what: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    marks: ClassVar[re.Pattern[bytes]]
    package: ClassVar[str]
    extra: ClassVar[str]

    @abstractmethod
    def look(self, found: Sequence[Content | None], context: Context) -> list[str | None]:
        """Decodes files and returns why each cannot be read; None where it can, or is missing."""

    def recognises(self, facts: Facts) -> bool:
        """Returns whether the cells are names of such files, or begin as such files do."""
        if isinstance(facts.type, CellPlace):
            return self._marked(pa.array([content_of(one) for one in facts.known.storage.slice(0, 100).to_pylist()]))
        if is_text(facts.type):
            return self._named(facts.known) >= MOSTLY
        if is_media(facts.type):
            values, paths = (pc.struct_field(facts.known, [name]) for name in ("bytes", "path"))
            return self._marked(values) or self._named(paths.drop_null()) >= MOSTLY
        return (pa.types.is_binary(facts.type) or pa.types.is_large_binary(facts.type)) and self._marked(facts.known)

    def read(self, cells: Cells, context: Context) -> pa.Array:
        """Returns paths, or bytes; every file is decoded once, so that none fails half way.

        Raises:
            DataError: a path leads out of the folder, or more files than `skip_bad` cannot be read.
        """
        check_installed(self.package, extra=self.extra, purpose="table")
        kind = cells.values.type
        found: list[Any]
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            found = cells.values.to_pylist()
        elif isinstance(kind, CellPlace):
            found = cells.values.storage.to_pylist()
        elif is_text(kind) or is_media(kind):
            paths = _paths(cells)
            found = _found(cells, paths, context)
            lost = [row for row, (path, file) in enumerate(zip(paths, found, strict=True)) if path and file is None]
            reason = f"no such file below {context.media} (--media_path names another folder)"
            self._allow(cells, dict.fromkeys(lost, reason), context)
            if is_media(kind):
                given = [None if row is None else row["bytes"] for row in cells.values.to_pylist()]
                files = [None if file is None else as_path(file).read_bytes() for file in found]
                found = [file if one is None else one for one, file in zip(given, files, strict=True)]
        elif cells.there.any():
            raise cells.wrong(int(np.flatnonzero(cells.there)[0]), f"the path or the bytes of {self.what}")
        else:
            found = [None] * len(cells)
        problems = self.look(found, context)
        bad = {row: problem for row, problem in enumerate(problems) if problem is not None}
        self._allow(cells, bad, context)
        whole = [None if row in bad else one for row, one in enumerate(found)]
        return pa.array(whole, pa.binary() if any(isinstance(one, bytes) for one in whole) else pa.string())

    def media(self, cells: Cells, context: Context) -> list[str | None]:
        """Returns the files that the cells name."""
        return _found(cells, _paths(cells), context)

    def _named(self, paths: pa.Array) -> float:
        """Returns the share of texts that end as names of such files do."""
        ends = "|".join(suffix.replace(".", "[.]") for suffix in self.suffixes)
        found = pc.match_substring_regex(paths, rf"^[^\n]+({ends})\s*$", ignore_case=True)
        return float(pc.mean(found.cast(pa.float64())).as_py() or 0)

    def _marked(self, values: pa.Array) -> bool:
        known = values.drop_null().slice(0, 100).to_pylist()
        return bool(known) and sum(self.marks.match(value) is not None for value in known) >= MOSTLY * len(known)

    def _allow(self, cells: Cells, bad: Mapping[int, str | None], context: Context) -> None:
        """Notes files that cannot be read; raises a DataError where there are more than the options allow."""
        allowed = context.options.skip_bad - len(context.bad)
        lines = [f"{_shown(cells, row, f'a readable {self.what}')}: {reason}" for row, reason in bad.items()]
        if len(bad) <= allowed:
            context.bad.extend(lines)
        elif len(lines) == 1:
            raise DataError(f"{lines[0]} (or --skip_bad 1, and it counts as missing)")
        else:
            raise DataError(
                f"{len(lines)} files cannot be read; expected at most {context.options.skip_bad} (skip_bad): "
                f"{listed(lines, SHOWN, 400)}"
            )


def _shown(cells: Cells, row: int, expected: str) -> DataError:
    if isinstance(cells.values.type, CellPlace):
        return cells.wrong(row, expected, "bytes")
    value = cells.values[row].as_py()
    return cells.wrong(row, expected, value["path"] or "bytes" if isinstance(value, dict) else None)


def opened(one: Content) -> Path | io.BytesIO:
    """Returns what readers of media take, from a path or the content of a file."""
    if isinstance(one, str) and is_place(one):
        one = content_of(one)
    return io.BytesIO(one) if isinstance(one, bytes) else as_path(one)


def decoded(one: Content, what: str, read: Callable[[Path | io.BytesIO], Any]) -> Any:
    """Returns what a reader makes of a file that was read before.

    Raises:
        DataError: it can no longer be read.
    """
    try:
        return read(opened(one))
    except CggmError:
        raise
    # A damaged file can raise nearly anything from the code of its format.
    except Exception as error:
        where = one if isinstance(one, str) and not is_place(one) else "a cell"
        raise DataError(f"{where}: the {what} can no longer be read: {error}") from None


def problems(found: Sequence[Content | None], read: Callable[[Path | io.BytesIO], Any]) -> list[str | None]:
    """Returns why a reader cannot read each file; None where it can, or where there is none."""

    def problem(one: Content | None) -> str | None:
        if one is None:
            return None
        try:
            read(opened(one))
        except CggmError:
            raise
        except Exception as error:
            return str(error) or type(error).__name__
        return None

    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        return list(pool.map(problem, found))


def _found(cells: Cells, names: Sequence[str | None], context: Context) -> list[str | None]:
    """Returns the files below the folder of media that names lead to; None where there is none.

    Raises:
        DataError: a name leads out of the folder.
    """
    finders: dict[Path, ImageFinder] = {}
    found: list[str | None] = []
    for row, name in enumerate(names):
        if name is None:
            found.append(None)
            continue
        folder = cells.places.file(row).parent
        folder = folder if folder.is_relative_to(context.media) else context.media
        if folder not in finders:
            finders[folder] = ImageFinder(context.media, folder, None)
        _, file = finders[folder].find(name.strip(), cells.places.of(row), cells.name, None)
        found.append(None if file is None else str(file))
    return found


def _paths(cells: Cells) -> list[str | None]:
    """Returns the paths in cells of texts, or of structures without bytes."""
    rows: list[Any] = cells.values.to_pylist()
    if is_text(cells.values.type):
        return rows
    if not is_media(cells.values.type):
        return [None] * len(rows)
    return [None if row is None or row["bytes"] is not None else row["path"] for row in rows]
