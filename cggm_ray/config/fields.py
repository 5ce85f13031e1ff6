"""Declares fields of the configuration: default, help text, names of the flag, and allowed values."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from cggm_ray.core.errors import UsageError, short_repr
from cggm_ray.core.registry import nearest


def option(
    default: Any,
    text: str,
    *aliases: str,
    resume: bool = False,
    path: bool = False,
    url: bool = False,
    repeat: bool = False,
) -> Any:
    """Declares a field of a section, with its help text and further flag names.

    Args:
        default: value of the field.
        text: help of the flag.
        aliases: other names, such as the released code's.
        resume: the field may differ when a run is continued.
        path: the field names files or folders.
        url: the field takes a URL too; otherwise it is refused.
        repeat: the field is a list of names, and its flag adds to it each time it is given.
    """
    return field(
        default=default,
        metadata={"help": text, "aliases": aliases, "resume": resume, "path": path, "url": url, "repeat": repeat},
    )


def check(holds: bool, part: Any, name: str, expected: str) -> None:
    """Raises a UsageError that names the field, its value and the expectation, unless the condition holds."""
    if not holds:
        raise UsageError(f"{name}: found {short_repr(getattr(part, name))}; expected {expected}")


def at_least(part: Any, name: str, least: int) -> None:
    """Raises a UsageError unless the field of the section is at least `least`."""
    check(getattr(part, name) >= least, part, name, f"a whole number of at least {least}")


def one_of(part: Any, name: str, names: tuple[str, ...]) -> None:
    """Raises a UsageError unless the field of the section holds one of `names`; the message suggests the nearest name."""
    value = getattr(part, name)
    if value not in names:
        raise UsageError(
            f"{name}: unknown {short_repr(value)}{nearest(str(value), names)}; available: {', '.join(names)}"
        )
