"""Presets: what the settings of a run start from, before a file and flags change them.

`released` is the recipe as it is. `quick` works on most features without any choice by the user: inputs
standardised, a network by the shape of the samples, and a number of optimizer steps that fits the size of the set. `good` and
`best` search around `quick`: one trains what a search and several seeds found, the other an ensemble of those runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from cggm_ray.engine.configuration import Config
from cggm_ray.engine.own_code import adopt_network
from cggm_ray.models.registry import NETWORKS
from cggm_ray.models.settings import ModelConfig
from cggm_ray.models.standardise import AUTO
from cggm_ray.strategies.settings import CGGM_MULTILOSS

RELEASED, QUICK, GOOD, BEST = "released", "quick", "good", "best"
SEARCHED = (GOOD, BEST)
"""Presets that stand for a search."""
QUICK_NETWORK = "composed"
QUICK_VALUES: dict[str, object] = {
    # With few samples of a class, a loss for every modality counts more than any coefficient: docs/defaults.md.
    "modulation": CGGM_MULTILOSS,
    "standardise": AUTO,
    "clip_inputs": 5.0,
    "optim": "AdamW",
    "lr": 2e-3,
    "cls_lr": 2e-3,
    "weight_decay": 0.05,
    "cls_weight_decay": 0.05,
    "schedule": "cosine",
    "warmup_share": 0.1,
    "clip": 1.0,
    "label_smoothing": 0.1,
    "linear_path": AUTO,
    "linear_blend": AUTO,
    "batch_size": 0,
    "num_epochs": 20,
    "min_steps": 1500,
    "valid_interval": 50,
    "select_latest": True,
    "patience": 20,
}
STEPS = ("min_steps", "max_steps", "valid_interval")
"""Fields of a budget in steps."""


def with_preset(config: Config, name: str, given: Collection[str] = ()) -> Config:
    """Returns a recipe with the values of a preset.

    Args:
        config: the recipe.
        name: of the preset.
        given: fields that the user sets. A number of epochs takes the place of the preset's number of steps, and a size
            of the network keeps the network of the recipe, which has that size.
    """
    chosen = dataclasses.replace(config, train=dataclasses.replace(config.train, preset=name))
    if name == RELEASED:
        return chosen
    values = dict(QUICK_VALUES)
    if "num_epochs" in given:
        values = {key: value for key, value in values.items() if key not in STEPS}
    elif "max_steps" in given:
        del values["min_steps"]
    if sizes_among(given):
        # The network that has the size has no such option, and is tested as it is.
        del values["linear_path"], values["linear_blend"]
    else:
        chosen = dataclasses.replace(chosen, model=ModelConfig(network=QUICK_NETWORK))
    return chosen.replace(values)


def sizes_among(given: Collection[str]) -> list[str]:
    """Returns the fields of `ModelConfig` among those that the user sets; a network such as `composed` has none of them."""
    return [field.name for field in dataclasses.fields(ModelConfig) if field.name != "network" and field.name in given]


def configured(recipe: Config, *layers: tuple[Mapping[str, Any], str]) -> Config:
    """Returns a recipe with its preset, or the one that a layer names, and with the values of the layers.

    Args:
        recipe: what the layers change.
        layers: flat field (or alias) to value, and their source for messages; later ones go before earlier ones.

    Raises:
        UsageError: an unknown key, or an invalid value.
    """
    layers = tuple(
        ({**values, "network": adopt_network(values["network"])} if values.get("network") else values, source)
        for values, source in layers
    )
    name = recipe.train.preset
    for values, _ in layers:
        name = values.get("preset", name)
    # Checks the name as the field does.
    recipe = recipe.replace({"preset": name}, source="flag")
    config = with_preset(recipe, recipe.train.preset, recipe.names(key for values, _ in layers for key in values))
    network = next((values["network"] for values, _ in reversed(layers) if values.get("network")), None)
    if network in NETWORKS.names() and not NETWORKS.get(network).sized:
        # The recipe's sizes are those of another network.
        config = dataclasses.replace(config, model=ModelConfig(network=config.model.network))
    if network is not None and network != QUICK_NETWORK:
        # Nor has it the options of the preset's network, and it is tested as it is.
        config = dataclasses.replace(config, networks=recipe.networks).replace(
            {"linear_blend": recipe.train.linear_blend}
        )
    for values, source in layers:
        config = config.replace(values, source=source)
    return config
