"""Balancing strategies: tensors in, tensors out. They know no dataset and no Ray; `cggm_ray.teachers` reads UMT's files."""

from cggm_ray.modulation.agm import AGM
from cggm_ray.modulation.base import JointTraining, Strategy
from cggm_ray.modulation.cggm import CGGM
from cggm_ray.modulation.mmpareto import MMPareto
from cggm_ray.modulation.modality_dropout import ModalityDropout
from cggm_ray.modulation.ogm import OGM
from cggm_ray.modulation.umt import UMT

__all__ = ["AGM", "CGGM", "OGM", "UMT", "JointTraining", "MMPareto", "ModalityDropout", "Strategy"]
