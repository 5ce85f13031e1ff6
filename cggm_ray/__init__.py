"""cggm-ray: training of multimodal models with strategies that balance the modalities.

The package has two parts. `CGGM` and the other strategies work with a model and a training loop of your own, and need only
torch. `train`, `compare`, `tune` and `load` make and read whole runs, as the console program does; they are imported at
their first use (`cggm_ray.api`).
"""

from typing import TYPE_CHECKING, Any

from cggm_ray.core import openmp as openmp
from cggm_ray.core import workdir as workdir

# isort: split
from cggm_ray.core.batch import Batch, HeadOutput
from cggm_ray.core.errors import CggmError, DataError, UsageError
from cggm_ray.models.wrapped import wrap
from cggm_ray.strategies import (
    AGM,
    CGGM,
    CML,
    LFM,
    MBSD,
    MLA,
    MLB,
    MSLR,
    OGM,
    OPM,
    PMR,
    UME,
    UMT,
    AMCo,
    GBlending,
    Greedy,
    InfoReg,
    JointTraining,
    MMCosine,
    MMPareto,
    ModalityDropout,
    MultiLoss,
    ReconBoost,
    ReLearning,
    Strategy,
    Valuation,
)
from cggm_ray.tasks import Classification, MultiLabel, Regression, Segmentation, Task

if TYPE_CHECKING:
    from cggm_ray.api import Run, compare, load, train, tune

__version__ = "0.1.0"
_API = ("Run", "compare", "load", "train", "tune")

__all__ = [
    "AGM",
    "CGGM",
    "CML",
    "LFM",
    "MBSD",
    "MLA",
    "MLB",
    "MSLR",
    "OGM",
    "OPM",
    "PMR",
    "UME",
    "UMT",
    "AMCo",
    "Batch",
    "CggmError",
    "Classification",
    "DataError",
    "GBlending",
    "Greedy",
    "HeadOutput",
    "InfoReg",
    "JointTraining",
    "MMCosine",
    "MMPareto",
    "ModalityDropout",
    "MultiLabel",
    "MultiLoss",
    "ReLearning",
    "ReconBoost",
    "Regression",
    "Run",
    "Segmentation",
    "Strategy",
    "Task",
    "UsageError",
    "Valuation",
    "compare",
    "load",
    "train",
    "tune",
    "wrap",
]


def __getattr__(name: str) -> Any:
    """Imports the names of `cggm_ray.api` when they are used: they need more than torch."""
    if name in _API:
        import cggm_ray.api

        return getattr(cggm_ray.api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
