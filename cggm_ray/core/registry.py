"""Registries of names that a configuration can choose: datasets, networks and strategies.

A registry imports every module of its package at the first look-up, so a new entry needs no edit but its own file.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from cggm_ray.core.errors import UsageError, short_repr

T = TypeVar("T")
PACKAGE = __name__.partition(".")[0]


@dataclass(frozen=True)
class Place:
    """Where an entry was registered, outside this package.

    Attributes:
        module: dotted name that it can be imported by; None for a file that was started by itself.
        file: absolute path; None for a notebook or a prompt.
    """

    module: str | None
    file: str | None


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns ' (did you mean X?)' for the closest of `names`, or an empty text if none is close."""
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
        self._places: dict[str, Place] = {}
        self._replaceable: set[str] = set()
        self._filled = False

    def register(self, name: str) -> Callable[[T], T]:
        """Returns a decorator that enters its argument under `name`.

        Raises:
            ValueError: the name is taken.
        """
        place = _place(sys._getframe(1).f_globals)

        def enter(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            if place is not None:
                self._places[name] = place
            return entry

        return enter

    def adopt(self, name: str, entry: T, place: Place | None = None) -> None:
        """Enters an entry that another process registered at a place, unless the name is known here."""
        self._fill()
        if name not in self._entries and place is not None:
            self._places[name] = place
        self._entries.setdefault(name, entry)

    def replace(self, name: str, entry: T, place: Place | None) -> None:
        """Enters an entry in place of another of that name, which is not one of this package.

        Raises:
            UsageError: the name is taken by this package.
        """
        self._fill()
        if name in self._entries and name not in self._replaceable:
            raise UsageError(f"{self.kind}: {name!r} is taken; give yours another name")
        self._replaceable.add(name)
        self._entries[name] = entry
        if place is not None:
            self._places[name] = place

    def place(self, name: str) -> Place | None:
        """Returns the place where an entry was registered, or None for an entry of this package."""
        return self._places.get(name)

    def names(self) -> list[str]:
        """Returns all names, sorted."""
        self._fill()
        return sorted(self._entries)

    def get(self, name: str) -> T:
        """Returns the entry of that name.

        Raises:
            UsageError: no such entry; the message lists the names.
        """
        self._fill()
        if name not in self._entries:
            raise UsageError(
                f"unknown {self.kind} {short_repr(name)}{nearest(name, self._entries)}; available: {', '.join(self.names())}"
            )
        return self._entries[name]

    def _fill(self) -> None:
        if self._filled:
            return
        package = importlib.import_module(self._package)
        for module in pkgutil.walk_packages(package.__path__, f"{self._package}."):
            importlib.import_module(module.name)
        self._filled = True


def _place(module: Mapping[str, Any]) -> Place | None:
    """Returns the place that the globals of a module name, or None in this package."""
    spec = module.get("__spec__")
    name = module.get("__name__", "__main__") if spec is None else spec.name
    if name.partition(".")[0] == PACKAGE:
        return None
    file = module.get("__file__")
    return Place(module=None if name == "__main__" else name, file=None if file is None else str(Path(file).absolute()))
