"""The average of a trained network and a ridge regression (`--ridge_blend`): when there is one, and how it is stored.

`runs.blending` fits it when the network is trained. Training, and so every strategy, does not know of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cggm_ray.core.errors import TrainingError, UsageError
from cggm_ray.core.kinds import SEQUENCE, VECTOR
from cggm_ray.data.dataset import Dataset
from cggm_ray.data.shards.shards import Manifest
from cggm_ray.engine.settings import TrainConfig
from cggm_ray.models.averaged import AveragedNet
from cggm_ray.models.net import MultimodalNet
from cggm_ray.models.ridge import linear_net, numbers_of
from cggm_ray.models.standardise import OFF, ON
from cggm_ray.tasks import Regression

RIDGE = "ridge.safetensors"
"""File beside the weights of the tested network; there is none where the network is tested alone."""
MOST_NUMBERS = 2048
"""Largest number of numbers of a sample: the fit takes memory with their square and time with their cube."""


def against_ridge(dataset: Dataset, manifest: Manifest, modalities: Sequence[str]) -> str | None:
    """Returns why no ridge regression can be fitted to the modalities of a run; None where one can.

    Args:
        dataset: of the run.
        manifest: of its set.
        modalities: of the run.
    """
    if not isinstance(dataset.task(manifest), Regression):
        return "this task is no regression"
    kinds, shapes = dataset.kinds(manifest, tuple(modalities)), dataset.shapes(manifest, tuple(modalities))
    pretrained = dataset.pretrained(manifest, tuple(modalities))
    for name, kind in kinds.items():
        if kind not in (VECTOR, SEQUENCE) or name in pretrained:
            return f"{name} is neither a vector nor a sequence of numbers"
    numbers = sum(numbers_of(kind, tuple(shapes[name])) for name, kind in kinds.items())
    return f"a sample has {numbers:,} numbers, more than {MOST_NUMBERS:,}" if numbers > MOST_NUMBERS else None


def check_ridge(settings: TrainConfig, dataset: Dataset, manifest: Manifest, modalities: Sequence[str]) -> None:
    """Raises a UsageError if a ridge regression is wanted that cannot be; the arguments are those of `blends`."""
    wanted = settings.ridge_blend == ON or settings.ridge_given is not None
    reason = against_ridge(dataset, manifest, modalities) if wanted else None
    if reason is not None:
        raise UsageError(f"ridge_blend: found {settings.ridge_blend}, but {reason}; expected auto or off")


def blends(settings: TrainConfig, dataset: Dataset, manifest: Manifest, modalities: Sequence[str]) -> bool:
    """Returns whether a run averages its network with a ridge regression.

    Args:
        settings: of the run.
        dataset: of the run.
        manifest: of its set.
        modalities: of the run.
    """
    if settings.refit and settings.ridge_given is None:
        # Its strength and share would be chosen on samples that the network was trained on.
        return False
    return settings.ridge_blend != OFF and against_ridge(dataset, manifest, modalities) is None


def ridge_net(net: MultimodalNet, dataset: Dataset, manifest: Manifest, outputs: int) -> MultimodalNet:
    """Returns the network of a ridge regression on the inputs of a network, as that standardises them; it is to be filled.

    Args:
        net: a network that takes some modalities.
        dataset: of the run.
        manifest: of its set.
        outputs: number of predicted values.
    """
    modalities = tuple(net.encoders)
    kinds, shapes = dataset.kinds(manifest, modalities), dataset.shapes(manifest, modalities)
    ridge = linear_net(kinds, {name: tuple(shape) for name, shape in shapes.items()}, outputs, dict(net.inputs.items()))
    # `--precision fp64` has a network of that type.
    ridge.head.to(next(net.parameters()).dtype)
    return ridge


def blended(net: MultimodalNet, ridge: MultimodalNet, share: float) -> AveragedNet:
    """Returns the average of both, in which the ridge regression has that share."""
    return AveragedNet([net, ridge], [1 - share, share], tuple(net.encoders), classes=False)


def save_ridge(folder: Path, ridge: MultimodalNet, share: float) -> None:
    """Writes a ridge regression and its share into the folder of a checkpoint.

    Raises:
        OSError: it cannot be written.
    """
    values = {name: value.cpu().contiguous() for name, value in ridge.head.state_dict().items()}
    save_file({"share": torch.tensor(share, dtype=torch.float64), **values}, folder / RIDGE)


def read_share(folder: Path) -> float | None:
    """Returns the share of the ridge regression in the predictions of a checkpoint; None where there is none."""
    return _read(folder)[0] if (folder / RIDGE).exists() else None


def with_ridge(net: MultimodalNet, folder: Path, dataset: Dataset, manifest: Manifest) -> MultimodalNet:
    """Returns the network with the ridge regression of its checkpoint; without one the network itself.

    Args:
        net: with the weights of the checkpoint.
        folder: of the checkpoint.
        dataset: of the run.
        manifest: of the set that it was trained on.

    Raises:
        TrainingError: the file is damaged, or of another network.
    """
    if not (folder / RIDGE).exists():
        return net
    share, values = _read(folder)
    ridge = ridge_net(net, dataset, manifest, dataset.task(manifest).outputs)
    try:
        ridge.head.load_state_dict(values)
    except RuntimeError as error:
        raise TrainingError(f"{folder / RIDGE}: these weights cannot be used: {error}") from error
    return blended(net, ridge, share)


def _read(folder: Path) -> tuple[float, dict[str, torch.Tensor]]:
    try:
        values = load_file(folder / RIDGE)
        return float(values.pop("share")), values
    except (OSError, SafetensorError, KeyError) as error:
        raise TrainingError(f"{folder / RIDGE}: these weights cannot be used: {error}") from error
