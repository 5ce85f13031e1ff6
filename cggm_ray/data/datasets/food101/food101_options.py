"""The section of the configuration for the encoders and features of Food-101."""

from __future__ import annotations

from dataclasses import dataclass

from cggm_ray.config.fields import option
from cggm_ray.core.errors import UsageError
from cggm_ray.data.datasets.food101.encoders import EXTRACT_PRECISIONS
from cggm_ray.data.formats.image_range import WIDEST
from cggm_ray.data.settings import DatasetOptions

IMAGE_FEATURES = ("cached", "online")
PADDINGS = ("released", "zero")


@dataclass(frozen=True, kw_only=True)
class Food101Options(DatasetOptions):
    """Encoders and features of Food-101."""

    vit: str | None = option(
        None, "ViT, a local folder or a hub name; default the folder vit beside the lists", resume=True, path=True
    )
    bert: str | None = option(
        None,
        "BERT with its tokenizer, a local folder or a hub name; default the folder bert beside the lists",
        resume=True,
        path=True,
    )
    image_features: str = option(
        "cached", "cached: extracted once; online: a fresh augmentation in every epoch, encoded while training"
    )
    views: int = option(1, "augmented views of a training image to cache; one is drawn in every epoch")
    text_length: int = option(50, "tokens of a text, special tokens included")
    text_padding: str = option(
        "released", "features of the padding of a text: released (what BERT gives for it) or zero"
    )
    valid_share: float = option(0.1, "part of train that becomes the validation set where there is no list of it")
    data_seed: int = option(0, "seed of the validation part and of cached views; seed does not touch them")
    skip_bad: int = option(0, "largest number of unreadable images to leave out", resume=True)
    image_bits: int | None = option(
        None, "bit depth, 9 to 16, of grey images of more than 8 bits; default see docs/datasets-food101.md"
    )
    exif_orientation: bool = option(False, "rotate images by their EXIF data; the released code does not")
    extract_precision: str = option(
        "fp32", "precision of ViT and BERT: fp32, bf16, fp16; the latter two are stored as fp16"
    )
    extract_batch: int = option(32, "samples that ViT or BERT encode at once", resume=True)

    def __post_init__(self) -> None:
        choices = {
            "image_features": IMAGE_FEATURES,
            "text_padding": PADDINGS,
            "extract_precision": tuple(EXTRACT_PRECISIONS),
        }
        for name, names in choices.items():
            if getattr(self, name) not in names:
                raise UsageError(f"{name}: unknown {getattr(self, name)!r}; available: {', '.join(names)}")
        for name, least in {"views": 1, "text_length": 2, "data_seed": 0, "skip_bad": 0, "extract_batch": 1}.items():
            if getattr(self, name) < least:
                raise UsageError(f"{name}: found {getattr(self, name)}; expected a whole number of at least {least}")
        if self.image_bits is not None and not 8 < self.image_bits <= WIDEST:
            raise UsageError(f"image_bits: found {self.image_bits}; expected a whole number of 9 to {WIDEST}")
        if not 0 < self.valid_share < 1:
            raise UsageError(f"valid_share: found {self.valid_share}; expected a number between 0 and 1")
        if self.image_features == "online" and self.views > 1:
            raise UsageError(
                f"views: {self.views} views are for image_features cached; online makes one in every epoch"
            )
