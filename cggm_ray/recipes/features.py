"""Features of your own: any modalities, for classification or regression.

CGGM as in "Classifier-guided Gradient Modulation" (NeurIPS 2024), with an encoder for every modality by its shape.

    cggm train features                      # a generated demonstration set
    cggm train features --data_path digits.npz --modalities image,audio --target label --split split
    cggm train features --data_path mosi_data_noalign.pkl --task regression --target labels
    cggm train features --data_path shards/ --modalities text

Data: a pickle as MOSI's, an .npz, .safetensors or .h5, a folder of .npy, or parquet (a file, or a folder). Sequences [T, D],
vectors [D] and images [H, W], [C, H, W] or [H, W, C] find their encoder by shape; two equal axes are an image unless --kinds
says otherwise. Splits come from the file (dicts, folders, a column --split, or row numbers such as train_idx), else they are
drawn. What a sample lacks is a null in parquet, or a False in the array <modality>_present.
"""

from cggm_ray.data.datasets.features import FeatureOptions
from cggm_ray.data.settings import DataConfig
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.settings import TrainConfig
from cggm_ray.models.settings import ModelConfig
from cggm_ray.recipes.base import RECIPES, Recipe

RECIPE = Config(
    data=DataConfig(dataset="features"),
    model=ModelConfig(nlevels=3, attn_dropout=0.1, relu_dropout=0.1, embed_dropout=0.1),
    train=TrainConfig(num_epochs=20, preset="quick"),
    options=FeatureOptions(),
)

RECIPES.register("features")(Recipe(config=RECIPE, description=__doc__))
