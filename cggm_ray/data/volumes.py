"""The former place of `cggm_ray.data.datasets.brats.volumes`, for scripts that import it from here; see docs/migration.md."""

from __future__ import annotations

import warnings

from cggm_ray.data.datasets.brats.layouts import case_files
from cggm_ray.data.datasets.brats.volumes import check_nifti, geometry, read_nifti

__all__ = ["case_files", "check_nifti", "geometry", "read_nifti"]

warnings.warn("cggm_ray.data.volumes is now cggm_ray.data.datasets.brats.volumes", DeprecationWarning, stacklevel=2)
