"""The former place of `cggm_ray.data.datasets.food101.augment`, for scripts that import it from here; see docs/migration.md."""

from __future__ import annotations

import warnings

from cggm_ray.data.datasets.food101.augment import resized

__all__ = ["resized"]

warnings.warn("cggm_ray.data.augment is now cggm_ray.data.datasets.food101.augment", DeprecationWarning, stacklevel=2)
