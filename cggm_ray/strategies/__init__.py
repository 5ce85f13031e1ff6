"""Balancing strategies: tensors in, tensors out. They know no dataset, no file and no Ray."""

from cggm_ray.strategies.agm import AGM
from cggm_ray.strategies.amco import AMCo
from cggm_ray.strategies.base import Strategy
from cggm_ray.strategies.cggm import CGGM
from cggm_ray.strategies.cml import CML
from cggm_ray.strategies.gblend import GBlending
from cggm_ray.strategies.greedy import Greedy
from cggm_ray.strategies.inforeg import InfoReg
from cggm_ray.strategies.joint import JointTraining
from cggm_ray.strategies.lfm import LFM
from cggm_ray.strategies.mbsd import MBSD
from cggm_ray.strategies.mla import MLA
from cggm_ray.strategies.mlb import MLB
from cggm_ray.strategies.mmcosine import MMCosine
from cggm_ray.strategies.mmpareto import MMPareto
from cggm_ray.strategies.modality_dropout import ModalityDropout
from cggm_ray.strategies.mslr import MSLR
from cggm_ray.strategies.multiloss import MultiLoss
from cggm_ray.strategies.ogm import OGM
from cggm_ray.strategies.opm import OPM
from cggm_ray.strategies.pmr import PMR
from cggm_ray.strategies.reconboost import ReconBoost
from cggm_ray.strategies.relearning import ReLearning
from cggm_ray.strategies.ume import UME
from cggm_ray.strategies.umt import UMT
from cggm_ray.strategies.valuation import Valuation

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
    "GBlending",
    "Greedy",
    "InfoReg",
    "JointTraining",
    "MMCosine",
    "MMPareto",
    "ModalityDropout",
    "MultiLoss",
    "ReLearning",
    "ReconBoost",
    "Strategy",
    "Valuation",
]
