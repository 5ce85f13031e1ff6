"""IEMOCAP: one of four emotions from text, audio and vision.

Busso et al. 2008; CGGM as in "Classifier-guided Gradient Modulation" (NeurIPS 2024), which reports an accuracy of 75.38.

    cggm train iemocap                       # a generated demonstration set
    cggm train iemocap --data_path IEMOCAP --cv 1
    cggm train iemocap --data_path IEMOCAP --cv all --workers 4 --use_gpu
    cggm train iemocap --data_path IEMOCAP --padding_mask
    cggm train iemocap --modalities text --modulation none

Data: the released layout: A/comparE.h5, A/comparE_mean_std.h5, V/denseface.h5, L/bert_large.h5 and
target/<fold>/<trn|val|tst>_{label,int2name}.npy. The run leaves the confusion matrix of the test split in confusion.csv.
"""

from cggm_ray.data.datasets.iemocap import IemocapOptions
from cggm_ray.data.settings import DataConfig
from cggm_ray.engine.configuration import Config
from cggm_ray.models.settings import ModelConfig
from cggm_ray.recipes.base import RECIPES, Recipe

# The hyper-parameters of the released code where they differ from the defaults, which are those for MOSI.
RECIPE = Config(
    data=DataConfig(dataset="iemocap"),
    model=ModelConfig(nlevels=4, res_dropout=0.15, out_dropout=0.2),
    options=IemocapOptions(),
)

RECIPES.register("iemocap")(Recipe(config=RECIPE, description=__doc__))
