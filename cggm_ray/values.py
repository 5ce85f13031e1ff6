"""Values as people write them, in flags and yaml, in the types of the configuration's fields."""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path
from typing import Any

import yaml

from cggm_ray.errors import UsageError


class _Loader(yaml.SafeLoader):
    """Yaml without its numbers to base 60, for which `workers: 2:8` would be 128."""

    yaml_implicit_resolvers = {
        first: [
            (tag, re.compile(r"(?![^:]*:)" + pattern.pattern, pattern.flags) if tag.endswith(":int") else pattern)
            for tag, pattern in resolvers
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read_yaml(path: Path, field: str) -> dict[str, Any]:
    """A yaml file that holds a mapping.

    Args:
        path: of the file.
        field: named in messages.

    Raises:
        UsageError: the file cannot be read, is not yaml, or holds something else.
    """
    try:
        content = yaml.load(path.read_text(), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{field}: {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{field}: {path} is not yaml: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{field}: {path} holds a {type(content).__name__}; expected a mapping of keys to values")
    return content


def value_type(section: type, key: dataclasses.Field[Any]) -> tuple[type, bool]:
    """The plain type of a field (`tuple` for a list of names), and whether it may be None."""
    hint = typing.get_type_hints(section)[key.name]
    members = [member for member in typing.get_args(hint) if member is not type(None)]
    optional = type(None) in typing.get_args(hint)
    plain = members[0] if optional else hint
    return typing.get_origin(plain) or plain, optional


def coerce(value: Any, section: type, key: dataclasses.Field[Any], source: str = "config") -> Any:
    """`value` in the type of its field: texts of the command line, or values of yaml and json.

    Raises:
        UsageError: the value does not fit; the message names source, field, value and type.
    """
    kind, optional = value_type(section, key)
    if value is None and optional:
        return None
    text = value.strip() if isinstance(value, str) else value
    try:
        if kind is bool:
            return value if isinstance(value, bool) else {"true": True, "false": False}[str(text).lower()]
        if kind is tuple:
            names = text.split(",") if isinstance(text, str) else text
            return tuple(str(name).strip() for name in names)
        if isinstance(value, bool) or (kind is int and isinstance(value, float) and not value.is_integer()):
            raise ValueError
        if kind in (int, float):
            number = kind(text)
            if number != number or number in (float("inf"), float("-inf")):
                raise ValueError
            return number
        # A number stands for itself where a text is expected: `workers: 4`.
        if kind is str and isinstance(value, str | Path | int):
            return str(value)
        raise ValueError
    except (ValueError, TypeError, KeyError):
        expected = {int: "a whole number", float: "a number", bool: "true or false", tuple: "a list of names"}
        raise UsageError(f"{source}: {key.name}: found {value!r}; expected {expected.get(kind, 'a text')}") from None
