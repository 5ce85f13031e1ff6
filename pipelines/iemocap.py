"""IEMOCAP: one of four emotions from text, audio and vision.

Busso et al. 2008; CGGM as in "Classifier-guided Gradient Modulation" (NeurIPS 2024), which reports an accuracy of 75.38.

    python pipelines/iemocap.py                       # a generated demonstration set
    python pipelines/iemocap.py --data_path IEMOCAP --cv 1
    python pipelines/iemocap.py --data_path IEMOCAP --cv all --workers 4 --use_gpu
    python pipelines/iemocap.py --data_path IEMOCAP --padding_mask
    python pipelines/iemocap.py --modalities text --modulation none

Data: the released layout: A/comparE.h5, A/comparE_mean_std.h5, V/denseface.h5, L/bert_large.h5 and
target/<fold>/<trn|val|tst>_{label,int2name}.npy. The run leaves the confusion matrix of the test split in confusion.csv.
"""

import sys

from cggm_ray.commands.cli import main
from cggm_ray.data.datasets.iemocap import IemocapOptions
from cggm_ray.data.settings import DataConfig
from cggm_ray.engine.configuration import Config
from cggm_ray.models.settings import ModelConfig

# The hyper-parameters of the released code where they differ from the defaults, which are those for MOSI.
RECIPE = Config(
    data=DataConfig(dataset="iemocap"),
    model=ModelConfig(nlevels=4, res_dropout=0.15, out_dropout=0.2),
    options=IemocapOptions(),
)

if __name__ == "__main__":
    sys.exit(main(RECIPE, description=__doc__))
