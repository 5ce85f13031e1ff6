"""What a recipe is: the configuration that runs of a dataset start from, under a name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cggm_ray.core.errors import UsageError
from cggm_ray.core.registry import Registry, nearest
from cggm_ray.engine.configuration import Config

SEARCHES = Path(__file__).parent / "searches"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Where runs of a dataset start from; a file, flags and presets change it.

    Attributes:
        config: the configuration.
        description: what the recipe is for, with its source, commands and the layout of the data. The help text begins with it.
    """

    config: Config
    description: str | None = None

    @property
    def title(self) -> str:
        """The first line of the description."""
        return (self.description or self.config.data.dataset).splitlines()[0]


RECIPES: Registry[Recipe] = Registry("recipe", "cggm_ray.recipes")
"""A recipe is one file in this folder, or in a file of `--import`, that calls `RECIPES.register`."""


def search_file(name: str) -> Path:
    """Returns the file of a search: a path, or the name of one that comes with the package, such as `mosi_asha`.

    Raises:
        UsageError: a name that is neither.
    """
    found = SEARCHES / f"{name}.yaml"
    if Path(name).exists() or "/" in name or Path(name).suffix:
        return Path(name)
    if found.exists():
        return found
    names = sorted(path.stem for path in SEARCHES.glob("*.yaml"))
    raise UsageError(
        f"tune: no file {name!r}, and no search of that name{nearest(name, names)}; there are {', '.join(names)}"
    )
