"""The parameters of a search, and the points at which it begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cggm_ray.config.parsing import coerce
from cggm_ray.core.errors import UsageError, short_repr
from cggm_ray.core.registry import nearest
from cggm_ray.engine.configuration import Config

KINDS = ("choice", "uniform", "loguniform", "grid")
Values = dict[str, Any]
"""Field to value: what a trial changes in the configuration of the search."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One dimension of a space.

    Attributes:
        key: field of the configuration.
        kind: one of `KINDS`. 'grid' values are crossed with one another, the others are drawn.
        values: the choices, or the two bounds, both included.
        whole: draws are whole numbers.
        when: other keys with the values under which this one exists; elsewhere the configuration's own value holds.
    """

    key: str
    kind: str
    values: tuple[Any, ...]
    whole: bool = False
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def applies(self, values: Values) -> bool:
        """Whether the key exists beside `values`."""
        return all(name in values and values[name] in allowed for name, allowed in self.when.items())

    def holds(self, value: Any) -> bool:
        """Whether a value may be drawn."""
        if self.kind in ("choice", "grid"):
            return value in self.values
        return isinstance(value, int | float) and self.values[0] <= value <= self.values[1]


def plain_value(value: Any) -> Any:
    """Returns a list of names as one text, which files and tables can hold and which the configuration takes."""
    return ",".join(value) if isinstance(value, tuple) else value


def read_points(content: Any, space: Sequence[Parameter], base: Config, source: str) -> tuple[Values, ...]:
    """Returns the first trials of a search, each with a value for every parameter that applies.

    Args:
        content: of the key `points_to_evaluate`; a parameter that a point leaves out has the configuration's own value.
        space: the parameters, each after those that its `when` names.
        base: configuration that the trials change.
        source: named in messages.

    Raises:
        UsageError: a point is not in the space.
    """
    if not isinstance(content, list):
        raise UsageError(f"{source}: points_to_evaluate: found {short_repr(content)}; expected a list of mappings")
    sections = base.sections()
    specs = {key.name: (sections[section], key) for section, key in base.fields()}
    names = {name: p.key for p in space for name in (p.key, *specs[p.key][1].metadata["aliases"])}
    points = []
    for number, described in enumerate(content, start=1):
        where = f"{source}: points_to_evaluate: point {number}"
        given = {names[key]: value for key, value in mapping(described, where, list(names)).items()}
        point: Values = {}
        for p in space:
            if not p.applies(point):
                continue
            part, spec = specs[p.key]
            value = given.pop(p.key, getattr(part, p.key))
            value = plain_value(coerce(value, type(part), spec, where))
            if not p.holds(value):
                raise UsageError(f"{where}: {p.key} is {short_repr(value)}; expected a value of the space")
            point[p.key] = value
        if given:
            raise UsageError(f"{where}: {next(iter(given))}: leave it out; its 'when' does not hold")
        points.append(point)
    return tuple(points)


def mapping(content: Any, place: str, names: list[str]) -> Mapping[str, Any]:
    """Returns the content of a place in the file, if it is a mapping without other keys than these.

    Raises:
        UsageError: it is none, or has another key.
    """
    if not isinstance(content, Mapping):
        raise UsageError(f"{place}: found {short_repr(content)}; expected a mapping")
    for name in content:
        if name not in names:
            near = nearest(str(name), names)
            raise UsageError(f"{place}: unknown key {short_repr(name)}{near}; available: {', '.join(names)}")
    return content
