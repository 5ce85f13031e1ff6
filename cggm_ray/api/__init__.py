"""What a notebook or a script calls: `train`, `compare`, `tune`, `load`, and the `Run` that they give."""

from cggm_ray.api.run import Run, load
from cggm_ray.api.start import compare, train, tune

__all__ = ["Run", "compare", "load", "train", "tune"]
