"""CMU-MOSEI: sentiment regression from text, audio and vision.

Zadeh et al. 2018; read, trained and scored as CMU-MOSI.

    cggm train mosei                         # a generated demonstration set
    cggm train mosei --demonstration mmsa    # one in MMSA's layout; mult: in MulT's
    cggm train mosei --data_path mosei_senti_data_noalign.pkl --workers 4 --use_gpu
    cggm train mosei --data_path unaligned_50.pkl

Data: the pickles of the released code and MulT, {'train' | 'valid' | 'test': {'text', 'audio', 'vision', 'labels', 'id'}}, or
that of MMSA (regression_labels, lengths).
"""

from cggm_ray.data.datasets.mosi import MosiOptions
from cggm_ray.data.settings import DataConfig
from cggm_ray.engine.configuration import Config
from cggm_ray.recipes.base import RECIPES, Recipe

RECIPE = Config(data=DataConfig(dataset="mosei"), options=MosiOptions())

RECIPES.register("mosei")(Recipe(config=RECIPE, description=__doc__))
