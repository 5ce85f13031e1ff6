"""The weighted sum of a trained network and a linear model (`--linear_blend`): when there is one, and how it is stored.

The linear model is ridge regression, or logistic regression where classes are predicted. `runs.blending` fits it when the
network is trained. Training, and so every strategy, does not know of it.
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
from cggm_ray.models.linear import linear_net, numbers_of
from cggm_ray.models.net import MultimodalNet
from cggm_ray.models.standardise import OFF, ON
from cggm_ray.tasks import Classification, Regression

LINEAR, RIDGE = "linear.safetensors", "ridge.safetensors"
"""File beside the weights of the tested network, and its name in older runs; none where the network is tested alone."""
MOST_NUMBERS = 2048
"""Largest number of numbers of a sample for ridge regression, which takes memory with their square and time with their cube."""
MOST_PRODUCTS = 3 * 10**8
"""Largest product of samples, numbers and classes of logistic regression: some 20 seconds on one core, and 240 MB."""

Shares = tuple[float, float]
"""Weights of the network and of the linear model."""


def against_linear(dataset: Dataset, manifest: Manifest, modalities: Sequence[str]) -> str | None:
    """Returns why no linear model can be fitted to the modalities of a run; None where one can.

    Args:
        dataset: of the run.
        manifest: of its set.
        modalities: of the run.
    """
    task = dataset.task(manifest)
    if not isinstance(task, Classification | Regression):
        return "this task is neither a regression nor one of exclusive classes"
    kinds, shapes = dataset.kinds(manifest, tuple(modalities)), dataset.shapes(manifest, tuple(modalities))
    pretrained = dataset.pretrained(manifest, tuple(modalities))
    for name, kind in kinds.items():
        if kind not in (VECTOR, SEQUENCE) or name in pretrained:
            return f"{name} is neither a vector nor a sequence of numbers"
    numbers = sum(numbers_of(kind, tuple(shapes[name])) for name, kind in kinds.items())
    if isinstance(task, Regression) and numbers > MOST_NUMBERS:
        return f"a sample has {numbers:,} numbers, more than {MOST_NUMBERS:,}"
    products = manifest.rows("train") * numbers * max(task.outputs, 10)
    if isinstance(task, Classification) and products > MOST_PRODUCTS:
        return (
            f"{manifest.rows('train'):,} samples of {numbers:,} numbers and {task.outputs:,} classes are too many for logistic "
            "regression"
        )
    return None


def linear_name(*, classes: bool) -> str:
    """Returns what the linear model is called."""
    return "logistic regression" if classes else "ridge regression"


def check_linear(settings: TrainConfig, dataset: Dataset, manifest: Manifest, modalities: Sequence[str]) -> None:
    """Raises a UsageError if a linear model is wanted that cannot be; the arguments are those of `blends`."""
    wanted = settings.linear_blend == ON or settings.linear_given is not None
    reason = against_linear(dataset, manifest, modalities) if wanted else None
    if reason is not None:
        raise UsageError(f"linear_blend: found {settings.linear_blend}, but {reason}; expected auto or off")


def blends(settings: TrainConfig, dataset: Dataset, manifest: Manifest, modalities: Sequence[str]) -> bool:
    """Returns whether a run adds a linear model to its network.

    Args:
        settings: of the run.
        dataset: of the run.
        manifest: of its set.
        modalities: of the run.
    """
    if settings.refit and settings.linear_given is None:
        # Its strength and weight would be chosen on samples that the network was trained on.
        return False
    return settings.linear_blend != OFF and against_linear(dataset, manifest, modalities) is None


def linear_of(net: MultimodalNet, dataset: Dataset, manifest: Manifest, outputs: int) -> MultimodalNet:
    """Returns the network of a linear model on the inputs of a network, as that standardises them; it is to be filled.

    Args:
        net: a network that takes some modalities.
        dataset: of the run.
        manifest: of its set.
        outputs: number of predicted values.
    """
    modalities = tuple(net.encoders)
    kinds, shapes = dataset.kinds(manifest, modalities), dataset.shapes(manifest, modalities)
    linear = linear_net(
        kinds, {name: tuple(shape) for name, shape in shapes.items()}, outputs, dict(net.inputs.items())
    )
    # `--precision fp64` has a network of that type.
    linear.head.to(next(net.parameters()).dtype)
    return linear


def blended(net: MultimodalNet, linear: MultimodalNet, shares: Shares) -> AveragedNet:
    """Returns the sum of the values, or of the logits, of both with these weights."""
    return AveragedNet([net, linear], shares, tuple(net.encoders), classes=False)


def save_linear(folder: Path, linear: MultimodalNet, shares: Shares) -> None:
    """Writes a linear model and the weights of the sum into the folder of a checkpoint.

    Raises:
        OSError: it cannot be written.
    """
    values = {name: value.cpu().contiguous() for name, value in linear.head.state_dict().items()}
    save_file({"shares": torch.tensor(shares, dtype=torch.float64), **values}, folder / LINEAR)


def read_shares(folder: Path) -> Shares | None:
    """Returns the weights of network and linear model in the predictions of a checkpoint; None without a linear model."""
    found = _read(folder)
    return None if found is None else found[0]


def with_linear(net: MultimodalNet, folder: Path, dataset: Dataset, manifest: Manifest) -> MultimodalNet:
    """Returns the network with the linear model of its checkpoint; without one the network itself.

    Args:
        net: with the weights of the checkpoint.
        folder: of the checkpoint.
        dataset: of the run.
        manifest: of the set that it was trained on.

    Raises:
        TrainingError: the file is damaged, or of another network.
    """
    found = _read(folder)
    if found is None:
        return net
    shares, values = found
    linear = linear_of(net, dataset, manifest, dataset.task(manifest).outputs)
    try:
        linear.head.load_state_dict(values)
    except RuntimeError as error:
        raise TrainingError(f"{folder / LINEAR}: these weights cannot be used: {error}") from error
    return blended(net, linear, shares)


def _read(folder: Path) -> tuple[Shares, dict[str, torch.Tensor]] | None:
    path = next((folder / name for name in (LINEAR, RIDGE) if (folder / name).exists()), None)
    if path is None:
        return None
    try:
        values = load_file(path)
        if path.name == RIDGE:
            share = float(values.pop("share"))
            return (1 - share, share), values
        network, linear = values.pop("shares").tolist()
        return (network, linear), values
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise TrainingError(f"{path}: these weights cannot be used: {error}") from error
