"""Sets of sound and pictures: CREMA-D, Kinetics-Sounds, VGGSound, AVE, and UCF-101 as pictures and optical flow.

CGGM as in "Classifier-guided Gradient Modulation" (NeurIPS 2024), with a ResNet-18 from scratch for every modality.

    cggm train av                            # a generated demonstration set
    cggm train av --data_path CREMA-D --workers 4 --use_gpu
    cggm train av --data_path UCF --modalities rgb,flow --workers 4 --use_gpu
    cggm train av --data_path VGGSound --frames 3 --skip_bad 20000
    cggm train av_ogm_ge --data_path CREMA-D # the recipe of OGM-GE: SGD, a step schedule, 100 epochs

Data: lists as CSV with sound files, videos or folders of frames below the same folder, the lists of AVE or UCF-101, or a folder
for every class. docs/datasets-av.md describes the layouts.
"""

from cggm_ray.data.datasets.av.options import AvOptions
from cggm_ray.data.settings import DataConfig
from cggm_ray.engine.configuration import Config, default_networks
from cggm_ray.engine.optim import OptimConfig
from cggm_ray.engine.settings import TrainConfig
from cggm_ray.models.composed.network import ComposedOptions
from cggm_ray.models.settings import ModelConfig
from cggm_ray.models.standardise import InputConfig
from cggm_ray.recipes.base import RECIPES, Recipe
from cggm_ray.tasks.settings import LossConfig

NETWORK = ComposedOptions(encoders=("*:resnet18",), width=512, dropout=0.0, fusion="concat")
"""Two ResNet-18 and a concatenation, as in the field."""

RECIPE = Config(
    data=DataConfig(dataset="av"),
    inputs=InputConfig(standardise="on"),
    model=ModelConfig(network="composed"),
    networks=default_networks() | {"composed": NETWORK},
    loss=LossConfig(label_smoothing=0.1),
    optim=OptimConfig(
        optim="AdamW",
        lr=1e-3,
        cls_lr=1e-3,
        weight_decay=0.05,
        cls_weight_decay=0.05,
        schedule="cosine",
        warmup_share=0.1,
        clip=1.0,
    ),
    train=TrainConfig(batch_size=64, num_epochs=50),
    options=AvOptions(),
)

RECIPES.register("av")(Recipe(config=RECIPE, description=__doc__))
