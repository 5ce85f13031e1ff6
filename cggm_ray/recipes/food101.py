"""UPMC-Food-101: the dish from a photo and the text of its page, 101 classes.

Wang et al. 2015; CGGM as in "Classifier-guided Gradient Modulation" (NeurIPS 2024), whose hyper-parameters these are.

    cggm train food101                       # a generated demonstration set with small random encoders
    cggm train food101 --data_path UPMC_Food101 --vit google/vit-base-patch16-224 --bert bert-base-uncased
    cggm train food101 --data_path UPMC_Food101 --vit ./vit --bert ./bert --views 4 --extract_precision bf16
    cggm train food101 --data_path UPMC_Food101 --vit ./vit --bert ./bert --image_features online --use_gpu
    cggm train food101 --local               # without Ray

Data: lists of train, test and maybe validation (JSON, JSON lines or CSV) with id, text, image and label, and the images beside
them. docs/datasets-food101.md describes the layouts.
"""

from cggm_ray.data.datasets.food101.food101_options import Food101Options
from cggm_ray.data.settings import DataConfig
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.optim import OptimConfig
from cggm_ray.engine.settings import TrainConfig
from cggm_ray.models.settings import ModelConfig
from cggm_ray.recipes.base import RECIPES, Recipe
from cggm_ray.strategies.settings import ModulationConfig

RECIPE = Config(
    data=DataConfig(dataset="food101"),
    model=ModelConfig(
        nlevels=4,
        cls_layers=2,
        attn_dropout=0.2,
        relu_dropout=0.15,
        embed_dropout=0.2,
        res_dropout=0.15,
        out_dropout=0.1,
    ),
    modulation=ModulationConfig(rho=1.3, lam=0.05),
    optim=OptimConfig(optim="AdamW", lr=1e-3, cls_lr=5e-4, weight_decay=6e-3, cls_weight_decay=3e-3, clip=0.8),
    train=TrainConfig(batch_size=128, num_epochs=60),
    options=Food101Options(),
)

RECIPES.register("food101")(Recipe(config=RECIPE, description=__doc__))
