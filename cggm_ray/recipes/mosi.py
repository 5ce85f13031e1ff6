"""CMU-MOSI: sentiment regression from text, audio and vision.

Zadeh et al. 2016; CGGM as in "Classifier-guided Gradient Modulation" (NeurIPS 2024).

    cggm train mosi                          # a generated demonstration set
    cggm train mosi --data_path mosi_data_noalign.pkl --modulation cggm --batch_size 64 --rou 1.3 --lambda 0.2
    cggm train mosi --data_path mosi_data_noalign.pkl --workers 4 --use_gpu
    cggm train mosi --local                  # without Ray

Data: the released pickle, {'train' | 'valid' | 'test': {'text', 'audio', 'vision', 'labels'[, 'id']}}, or one of MMSA
and Self-MM (regression_labels, lengths), MulT or MAG-BERT.
"""

from cggm_ray.data.datasets.mosi import MosiOptions
from cggm_ray.data.settings import DataConfig
from cggm_ray.engine.configuration import Config
from cggm_ray.recipes.base import RECIPES, Recipe

# The defaults of the configuration are the hyper-parameters of the released code for MOSI.
RECIPE = Config(data=DataConfig(dataset="mosi"), options=MosiOptions())

RECIPES.register("mosi")(Recipe(config=RECIPE, description=__doc__))
