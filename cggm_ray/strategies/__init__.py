"""Balancing strategies: tensors in, tensors out. They know no dataset and no Ray; `cggm_ray.strategies.teachers` reads UMT's files."""

from cggm_ray.strategies.agm import AGM
from cggm_ray.strategies.base import JointTraining, Strategy
from cggm_ray.strategies.cggm import CGGM
from cggm_ray.strategies.mmpareto import MMPareto
from cggm_ray.strategies.modality_dropout import ModalityDropout
from cggm_ray.strategies.ogm import OGM
from cggm_ray.strategies.umt import UMT

__all__ = ["AGM", "CGGM", "OGM", "UMT", "JointTraining", "MMPareto", "ModalityDropout", "Strategy"]
