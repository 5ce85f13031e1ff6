"""A table of your own: numbers, categories, texts, images and arrays in columns, one of which is predicted.

CGGM as in "Classifier-guided Gradient Modulation" (NeurIPS 2024), with an encoder for every modality.

    cggm train table                         # a generated demonstration set
    cggm train table --data_path products.csv --target category
    cggm train table --data_path products.csv --target category --text_model ./bert --image_model ./vit
    cggm train table --data_path patients.parquet --target risk --modality lab=crp,ldl --group_column patient

Data: CSV, JSON lines, parquet, a folder that save_to_disk of the library datasets wrote, or files of these named after splits.
What each column is taken for is printed first; --column name=kind changes it. docs/tables.md describes kinds and rules.
"""

from cggm_ray.data.datasets.table.options import TableOptions
from cggm_ray.data.settings import DataConfig
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.settings import TrainConfig
from cggm_ray.recipes.base import RECIPES, Recipe

RECIPE = Config(
    data=DataConfig(dataset="table"),
    train=TrainConfig(num_epochs=20, preset="quick"),
    options=TableOptions(),
)

RECIPES.register("table")(Recipe(config=RECIPE, description=__doc__))
