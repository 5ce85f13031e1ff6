"""How a field of the configuration says what it is: its default, its help, the names of its flag, and what it may hold."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from cggm_ray.core.errors import UsageError, shown
from cggm_ray.core.registry import nearest


def option(default: Any, text: str, *aliases: str, resume: bool = False, path: bool = False) -> Any:
    """A field with its help text and further flag names.

    Args:
        default: value of the field.
        text: help of the flag.
        aliases: other names, such as the released code's.
        resume: the field may differ when a run is continued.
        path: the field names files or folders, so a URL is refused.
    """
    return field(default=default, metadata={"help": text, "aliases": aliases, "resume": resume, "path": path})


def check(holds: bool, part: Any, name: str, expected: str) -> None:
    """Raises a UsageError that names the field, what it holds and what was expected, unless the condition holds."""
    if not holds:
        raise UsageError(f"{name}: found {shown(getattr(part, name))}; expected {expected}")


def at_least(part: Any, name: str, least: int) -> None:
    """See `check`."""
    check(getattr(part, name) >= least, part, name, f"a whole number of at least {least}")


def one_of(part: Any, name: str, names: tuple[str, ...]) -> None:
    """See `check`; the nearest name is suggested."""
    value = getattr(part, name)
    if value not in names:
        raise UsageError(f"{name}: unknown {shown(value)}{nearest(str(value), names)}; available: {', '.join(names)}")
