"""Names for the things that a configuration chooses: datasets and strategies.

A registry imports every module of its package the first time that a name is asked for, so a new file in the folder is
the only edit that a new entry needs.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from cggm_ray.core.errors import UsageError, shown

T = TypeVar("T")


def nearest(name: str, names: Iterable[str]) -> str:
    """' (did you mean X?)' for the closest of `names`, or an empty text when none is close."""
    # Its time grows with the square of the length, and no name is that long.
    close = difflib.get_close_matches(name[:80], list(names), n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


class Registry(Generic[T]):
    """Entries of one kind by name.

    Args:
        kind: what an entry is called in messages, for example 'strategy'.
        package: dotted name of the package whose modules register entries.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._entries: dict[str, T] = {}
        self._filled = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that enters its argument under `name`.

        Raises:
            ValueError: the name is taken.
        """

        def enter(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return enter

    def adopt(self, name: str, entry: T) -> None:
        """Enters what was registered in another process, unless the name is known here."""
        self._fill()
        self._entries.setdefault(name, entry)

    def names(self) -> list[str]:
        """All names, sorted."""
        self._fill()
        return sorted(self._entries)

    def get(self, name: str) -> T:
        """The entry of that name.

        Raises:
            UsageError: no such entry; the message lists the names.
        """
        self._fill()
        if name not in self._entries:
            raise UsageError(
                f"unknown {self.kind} {shown(name)}{nearest(name, self._entries)}; available: {', '.join(self.names())}"
            )
        return self._entries[name]

    def _fill(self) -> None:
        if self._filled:
            return
        package = importlib.import_module(self._package)
        for module in pkgutil.walk_packages(package.__path__, f"{self._package}."):
            importlib.import_module(module.name)
        self._filled = True
