"""cggm-ray: multimodal training in which every modality gets to learn.

The names below are the library: a balancing strategy for a model and a loop of your own. They need torch and nothing else.
"""

from cggm_ray.core import workdir as workdir

# isort: split
from cggm_ray.core.batch import Batch, HeadOutput
from cggm_ray.core.errors import CggmError, DataError, UsageError
from cggm_ray.strategies import CGGM, JointTraining, Strategy
from cggm_ray.tasks import Classification, Regression, Segmentation, Task

__version__ = "0.1.0"

__all__ = [
    "CGGM",
    "Batch",
    "CggmError",
    "Classification",
    "DataError",
    "HeadOutput",
    "JointTraining",
    "Regression",
    "Segmentation",
    "Strategy",
    "Task",
    "UsageError",
]
