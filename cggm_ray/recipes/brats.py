"""BraTS 2021: tumour segmentation from four MRI sequences (flair, t1ce, t1, t2).

Baid et al. 2021; CGGM as in "Classifier-guided Gradient Modulation" (NeurIPS 2024).

    cggm train brats --backbone resnet18 --crop 64 --draws 4 --num_epochs 16 --warmup_epochs 1 --batch_size 4
                                                      # a generated demonstration set, minutes on a CPU
    cggm train brats --data_path BRATS_H5 --workers 4 --use_gpu
    cggm train brats --data_path BraTS2021_Training_Data --split_seed 0 --workers 4 --use_gpu
    cggm train brats --local                 # without Ray

Data: the released layout, <train|valid|test>/<case>.h5 with image [4, H, W, D] and label [H, W, D], or the challenge's case
folders, <case>/<case>_<flair|t1ce|t1|t2|seg>.nii.gz, which are z-scored and split by --split_seed.
"""

from cggm_ray.data.datasets.brats.brats import BratsOptions
from cggm_ray.data.settings import DataConfig
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.optim import OptimConfig
from cggm_ray.engine.settings import TrainConfig
from cggm_ray.recipes.base import RECIPES, Recipe
from cggm_ray.strategies.settings import ModulationConfig

# The hyper-parameters of the released code. It declares clipping at 0.8 and never clips.
RECIPE = Config(
    data=DataConfig(dataset="brats"),
    modulation=ModulationConfig(rho=1.0, lam=0.1),
    optim=OptimConfig(
        optim="SGD",
        lr=1e-2,
        cls_lr=6e-3,
        weight_decay=3e-4,
        cls_weight_decay=3e-4,
        schedule="cosine",
        warmup_epochs=10,
        warmup_lr=4e-4,
        final_lr=1e-3,
        clip=0.0,
    ),
    train=TrainConfig(batch_size=64, num_epochs=75),
    options=BratsOptions(),
)

RECIPES.register("brats")(Recipe(config=RECIPE, description=__doc__))
