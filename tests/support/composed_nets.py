"""Small networks `composed` of three kinds of input, and batches for them with samples that lack modalities and steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cggm_ray.core.batch import Batch
from cggm_ray.core.kinds import IMAGE, SEQUENCE, VECTOR
from cggm_ray.models.composed.network import ComposedOptions
from cggm_ray.models.net import MultimodalNet
from cggm_ray.models.registry import NETWORKS, NetworkPlan
from cggm_ray.models.settings import ModelConfig

SHAPES = {"audio": (5, 3), "age": (4,), "face": (8, 8)}
KINDS = {"audio": SEQUENCE, "age": VECTOR, "face": IMAGE}
CLASSES, SAMPLES = 3, 7
TINY = {"width": 8, "depth": 1, "inner_width": 8, "heads": 2}
OF_KIND = {
    SEQUENCE: ("segments", "pool", "transformer", "mlp", "linear"),
    VECTOR: ("mlp", "linear"),
    IMAGE: ("resnet", "patches", "resnet18", "mlp", "linear"),
}


def composed(
    encoders: dict[str, str] | None = None, fusion: str = "concat", **options: object
) -> tuple[MultimodalNet, dict[str, nn.Module]]:
    """A network for `SHAPES` with its guides."""
    torch.manual_seed(5)
    named = tuple(f"{name}:{encoder}" for name, encoder in (encoders or {}).items())
    plan = NetworkPlan(
        shapes=SHAPES,
        kinds=KINDS,
        outputs=CLASSES,
        sizes=ModelConfig(),
        options=ComposedOptions(encoders=named, fusion=fusion, **{**TINY, **options}),  # type: ignore[arg-type]
    )
    return NETWORKS.get("composed").build(plan)


def inputs(samples: int = SAMPLES, seed: int = 6) -> dict[str, Tensor]:
    """Numbers by modality."""
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(samples, *shape, generator=draw) for name, shape in SHAPES.items()}


def masks(samples: int = SAMPLES) -> dict[str, Tensor]:
    """Sample 0 lacks the audio, 1 the age, 2 the face; the other sequences have 1 to 5 steps."""
    lengths = torch.arange(samples) % 5 + 1
    lengths[0] = 0
    of_samples = {name: (torch.arange(samples) != number)[:, None] for number, name in enumerate(SHAPES)}
    return of_samples | {"audio": torch.arange(5) < lengths[:, None]}


def batch(masked: bool, samples: int = SAMPLES) -> Batch:
    """Samples with classes, some of them without a modality and with padded steps where `masked` says so."""
    found = masks(samples) if masked else None
    return Batch(
        inputs=inputs(samples),
        target=torch.arange(samples) % CLASSES,
        index=torch.arange(samples),
        present=None if found is None else {name: mask.any(1) for name, mask in found.items()},
        masks=found,
    )
