"""Balancing strategies: tensors in, tensors out. This package knows no file, no dataset and no Ray."""

from cggm_ray.modulation.base import JointTraining, Strategy
from cggm_ray.modulation.cggm import CGGM

__all__ = ["CGGM", "JointTraining", "Strategy"]
