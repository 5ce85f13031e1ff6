"""Sets of sound and pictures as OGM-GE trains them: SGD, a step schedule, 100 epochs.

Peng et al. 2022, "Balanced Multimodal Learning via On-the-fly Gradient Modulation" (CVPR), whose settings for CREMA-D many
later papers share: SGD of rate .001 with momentum .9 and weight decay .0001, a tenth of the rate after 70 epochs, batches of
64, one picture a clip, no clipping. Inputs are standardised with the values of the training split, where that code has those of
ImageNet.

    cggm train av_ogm_ge                     # a generated demonstration set
    cggm train av_ogm_ge --data_path CREMA-D --modulation none
    cggm train av_ogm_ge --data_path CREMA-D --modulation ogm-ge --ogm_alpha 0.8

Data: as for the recipe av; docs/datasets-av.md describes the layouts.
"""

import dataclasses

from cggm_ray.engine.optim import OptimConfig
from cggm_ray.engine.settings import TrainConfig
from cggm_ray.recipes import av
from cggm_ray.recipes.base import RECIPES, Recipe
from cggm_ray.tasks.settings import LossConfig

RECIPE = dataclasses.replace(
    av.RECIPE,
    loss=LossConfig(),
    optim=OptimConfig(
        optim="SGD",
        lr=1e-3,
        cls_lr=1e-3,
        weight_decay=1e-4,
        cls_weight_decay=1e-4,
        schedule="step",
        decay_epochs=70,
        decay=0.1,
        clip=0.0,
    ),
    train=TrainConfig(batch_size=64, num_epochs=100),
)

RECIPES.register("av_ogm_ge")(Recipe(config=RECIPE, description=__doc__))
