"""Ray: the only package here that imports it. Data prepares, Train runs the loop on workers.

The import fails with a UsageError of one line where the installed Ray is not one that the tests pass with (docs/versions.md).
"""

import ray

from cggm_ray.core.errors import UsageError

FIRST, LAST = (2, 51), (2, 60)
"""Minor versions of Ray between which the tests pass; pyproject.toml has the same."""


def check_ray(version: str) -> None:
    """Raises a UsageError unless this version of Ray is one that is supported."""
    if not FIRST <= tuple(int(part) for part in version.split(".")[:2]) <= LAST:
        first, last = (".".join(map(str, each)) for each in (FIRST, LAST))
        raise UsageError(
            f"ray: found version {version}; expected {first} to {last}: pip install 'ray[data,train,tune]=={last}.*', or "
            "--local to train without Ray"
        )


check_ray(ray.__version__)
