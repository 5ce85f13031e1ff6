"""A configuration made of sections, which is read from nested or flat keys and written as plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

from cggm_ray.config.parsing import coerce
from cggm_ray.core.errors import UsageError, short_repr
from cggm_ray.core.registry import nearest


class Sections:
    """Base of a dataclass whose fields are sections, or mappings of a name to a section.

    A section is a frozen dataclass whose fields are made by `config.fields.option`. Field names are unique over all
    sections.
    """

    def sections(self) -> dict[str, Any]:
        """Returns each section by its name."""
        found: dict[str, Any] = {}
        for each in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, each.name)
            found |= value if isinstance(value, Mapping) else {each.name: value}
        return found

    def fields(self) -> Iterator[tuple[str, dataclasses.Field[Any]]]:
        """Yields (section, field) for every field of every section."""
        for name, part in self.sections().items():
            for key in dataclasses.fields(part):
                yield name, key

    def merged(self, values: Mapping[str, Any], source: str) -> Self:
        """Returns a copy with values from nested sections or flat keys (aliases included).

        Args:
            values: section to mapping, or field to value, or both.
            source: named in messages.

        Raises:
            UsageError: an unknown key (the nearest one is named) or a value of the wrong type.
        """
        return self.replace(self.flat(values, source), source=source)

    def flat(self, values: Mapping[str, Any], source: str) -> dict[str, Any]:
        """Returns field (or alias) to value, from nested sections or flat keys.

        Raises:
            UsageError: a section is no mapping.
        """
        flat: dict[str, Any] = {}
        sections, names = self.sections(), {key.name for _, key in self.fields()}
        for key, value in values.items():
            if key in sections and isinstance(value, Mapping):
                flat |= value
            # A section may have a field of its own name: `optim: SGD` is the field.
            elif key in sections and key not in names:
                raise UsageError(f"{source}: section {key} holds {short_repr(value)}; expected a mapping")
            else:
                flat[key] = value
        return flat

    def names(self, keys: Iterable[str]) -> set[str]:
        """Returns the names of the fields that these names or aliases mean; unknown ones are left out."""
        owners = {name: key.name for _, key in self.fields() for name in (key.name, *key.metadata["aliases"])}
        return {owners[key] for key in keys if key in owners}

    def replace(self, values: Mapping[str, Any], source: str = "config") -> Self:
        """Returns a copy with other values, given by flat field name or alias.

        Raises:
            UsageError: an unknown key or a value of the wrong type.
        """
        sections = self.sections()
        owners = {
            name: (section, key) for section, key in self.fields() for name in (key.name, *key.metadata["aliases"])
        }
        changes: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            if name not in owners:
                raise UsageError(f"{source}: unknown key {short_repr(name)}{nearest(str(name), owners)}")
            section, key = owners[name]
            changes.setdefault(section, {})[key.name] = coerce(value, type(sections[section]), key, source)
        try:
            parts = {name: dataclasses.replace(sections[name], **change) for name, change in changes.items()}
            new: dict[str, Any] = {}
            for each in dataclasses.fields(self):  # type: ignore[arg-type]
                value = getattr(self, each.name)
                if isinstance(value, Mapping):
                    new[each.name] = {name: parts.get(name, part) for name, part in value.items()}
                elif each.name in parts:
                    new[each.name] = parts[each.name]
            return dataclasses.replace(self, **new)  # type: ignore[type-var]
        except UsageError as error:
            # The message names a file, but not the command line.
            raise error if source in ("config", "flag") else UsageError(f"{source}: {error}") from None
