"""CH-SIMS: sentiment regression from text, audio and vision, in Chinese.

Yu et al. 2020; read and trained as CMU-MOSI, and scored as in MMSA: accuracy in 2, 3 and 5 classes of [-1, 1].

    cggm train sims                          # a generated demonstration set
    cggm train sims --demonstration mmsa     # one in MMSA's layout, which is that of the set
    cggm train sims --data_path SIMS/unaligned_39.pkl
    cggm train sims --data_path SIMS/unaligned_39.pkl --target regression_labels_A

Data: the pickle of MMSA, {'train' | 'valid' | 'test': {'text', 'audio', 'vision', 'regression_labels', 'audio_lengths', ...}}.
"""

from cggm_ray.data.datasets.mosi import MosiOptions
from cggm_ray.data.settings import DataConfig
from cggm_ray.engine.configuration import Config
from cggm_ray.recipes.base import RECIPES, Recipe

RECIPE = Config(data=DataConfig(dataset="sims"), options=MosiOptions())

RECIPES.register("sims")(Recipe(config=RECIPE, description=__doc__))
