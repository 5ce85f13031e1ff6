"""Tasks: the loss as additive sums, the utility of a guide, and the metrics of a split."""

from cggm_ray.tasks.base import Task
from cggm_ray.tasks.classification import Classification
from cggm_ray.tasks.multilabel import MultiLabel
from cggm_ray.tasks.regression import Regression
from cggm_ray.tasks.segmentation import Segmentation

__all__ = ["Classification", "MultiLabel", "Regression", "Segmentation", "Task"]
