"""The functions for notebooks and scripts: `train`, `compare`, `tune`, `load`, and the class `Run`."""

from cggm_ray.api.run import Run, load
from cggm_ray.api.start import compare, train, tune

__all__ = ["Run", "compare", "load", "train", "tune"]
