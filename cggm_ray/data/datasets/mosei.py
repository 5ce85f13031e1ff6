"""CMU-MOSEI (Zadeh et al. 2018), read as CMU-MOSI is: from the pickles of the released code, MMSA and MulT."""

from __future__ import annotations

from cggm_ray.data.dataset import DATASETS
from cggm_ray.data.datasets.mosi import Mosi


@DATASETS.register("mosei")
class Mosei(Mosi):
    """CMU-MOSEI: a sentiment in [-3, 3] from text, audio and vision."""

    name = "mosei"
