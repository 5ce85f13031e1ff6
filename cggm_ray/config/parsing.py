"""Converts texts of flags and yaml files to the types of the configuration's fields."""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path
from typing import Any

import yaml

from cggm_ray.core import workdir
from cggm_ray.core.errors import UsageError, short_repr

MOST_BYTES = 2**18
"""Largest size of a yaml file. Configurations and searches are a hundredth of it; the parser takes seconds for more."""
MOST_NODES = 10_000
"""Largest number of values in a yaml file, with those that aliases repeat, because a few aliases can stand for billions."""
LARGEST = 2**53
"""Largest whole number that is exact in every file that a run writes."""


SWITCH = {"true": True, "false": False, "on": True, "off": False}
URL = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]+:/")
r"""A scheme and a slash. A scheme has at least two characters, so `C:/data` and `C:\data` are no URLs."""


class _Loader(yaml.SafeLoader):
    """Yaml without its numbers to base 60, for which `workers: 2:8` would be 128, and with `on` and `off` as texts.

    They are values of `standardise`; a field that is true or false takes these texts too.
    """

    yaml_implicit_resolvers = {
        first: [
            (tag, re.compile(r"(?![^:]*:)" + pattern.pattern, pattern.flags) if tag.endswith(":int") else pattern)
            for tag, pattern in resolvers
            if not (tag.endswith(":bool") and first in "oO")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read_yaml(path: Path, field: str) -> dict[str, Any]:
    """Reads a yaml file that holds a mapping.

    Args:
        path: of the file.
        field: named in messages.

    Raises:
        UsageError: the file cannot be read, is not yaml, or holds something else.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise UsageError(f"{field}: {path} has more than {MOST_BYTES:,} bytes; expected a configuration file")
        loader = _Loader(text.decode())
        loader.name = path.name
        node = loader.get_single_node()
        _count(node, f"{field}: {path}", {})
        content = None if node is None else loader.construct_document(node)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{field}: {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except UsageError:
        raise
    except yaml.YAMLError as error:
        raise UsageError(f"{field}: {path} is not yaml: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UsageError(f"{field}: {path} is not yaml: nested too deeply") from None
    # A value that is not of its tag, such as a date in month 13, raises what its own constructor happens to raise.
    except Exception as error:
        raise UsageError(f"{field}: {path} is not yaml: a value that cannot be: {error}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{field}: {path} holds a {type(content).__name__}; expected a mapping of keys to values")
    return content


def check_path(field: str, path: str) -> None:
    """Raises a UsageError where a path leads nowhere: a URL would become a new folder with the scheme's name.

    Args:
        field: named in the message.
        path: as it was given, before `Path` joins its slashes.
    """
    if URL.match(path):
        raise UsageError(f"{field}: found the URL {path}; only local or mounted folders are taken so far")
    if workdir.GONE and not path.startswith(("/", "~")):
        raise UsageError(
            f"{field}: found the relative path {short_repr(path)}, and the working directory does not exist any more; expected "
            "an absolute path, or a start in a folder that is there"
        )


def whole(field: str, path: str) -> Path:
    """Returns the absolute path, with `~` replaced by the home folder.

    Raises:
        UsageError: there is no home folder for `~`, as in a container whose user has no name.
    """
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:
        raise UsageError(
            f"{field}: found {short_repr(path)}, and there is no home folder for ~; expected an absolute path, or "
            "HOME to be set"
        ) from None


def local_path(field: str, text: str) -> Path:
    """Checks and returns the path that a flag gives.

    Raises:
        UsageError: it is a URL, or relative to a working directory that is gone.
    """
    check_path(field, text)
    return Path(text)


def _count(node: Any, where: str, known: dict[int, int | None]) -> int:
    """Counts the values below a node, including those that aliases repeat.

    Args:
        node: of the parsed file, or None where it is empty.
        where: field and file.
        known: numbers of the nodes that were counted; None for those that are being counted.

    Raises:
        UsageError: there are more than `MOST_NODES`, a node holds itself, or a mapping has a key twice.
    """
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = None
        parts = node.value
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen and key.value != "<<":
                    line = key.start_mark.line + 1
                    raise UsageError(
                        f"{where}, line {line}: the key {short_repr(key.value)} is there twice; expected it once"
                    )
                seen.add(str(key.value) if isinstance(key, yaml.ScalarNode) else "")
            parts = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_count(part, where, known) for part in parts)
    values = known[id(node)]
    if values is None:
        raise UsageError(
            f"{where}, line {node.start_mark.line + 1}: found a value that holds itself; expected plain values"
        )
    if values > MOST_NODES:
        raise UsageError(f"{where} stands for more than {MOST_NODES:,} values; expected a configuration file")
    return values


def value_type(section: type, key: dataclasses.Field[Any]) -> tuple[type, bool]:
    """Returns the plain type of a field (`tuple` for a list of names), and whether it may be None."""
    hint = typing.get_type_hints(section)[key.name]
    members = [member for member in typing.get_args(hint) if member is not type(None)]
    optional = type(None) in typing.get_args(hint)
    plain = members[0] if optional else hint
    return typing.get_origin(plain) or plain, optional


def coerce(value: Any, section: type, key: dataclasses.Field[Any], source: str = "config") -> Any:
    """Converts a text of the command line, or a value of yaml or json, to the type of a field.

    Raises:
        UsageError: the value does not fit; the message names source, field, value and type.
    """
    kind, optional = value_type(section, key)
    if value is None and optional:
        return None
    text = value.strip() if isinstance(value, str) else value
    try:
        if kind is bool:
            return value if isinstance(value, bool) else SWITCH[str(text).lower()]
        if kind is tuple:
            names = text.split(",") if isinstance(text, str) else text
            if not isinstance(names, list | tuple) or not all(isinstance(name, str | int | float) for name in names):
                raise TypeError
            return tuple(str(name).strip() for name in names)
        if isinstance(value, bool) or (kind is int and isinstance(value, float) and not value.is_integer()):
            raise ValueError
        if kind in (int, float):
            number = kind(text)
            if number != number or number in (float("inf"), float("-inf")) or (kind is int and abs(number) > LARGEST):
                raise ValueError
            return number
        # A number stands for itself where a text is expected: `workers: 4`.
        if kind is str and isinstance(value, str | Path | int) and str(value).isprintable():
            return str(value)
        raise ValueError
    except (ValueError, TypeError, KeyError, OverflowError):
        expected = {int: "a whole number", float: "a number", bool: "true or false", tuple: "a list of names"}
        what = expected.get(kind, "a printable text")
        raise UsageError(f"{source}: {key.name}: found {short_repr(value)}; expected {what}") from None
