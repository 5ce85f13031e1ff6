"""Weights of the released code in the names of this package, for exact comparison and migration."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_INERT = re.compile(r"(\.|^)version$|_float_tensor$")
# `index` numbers the modalities from 0, `number` from 1.
_NET = (
    (re.compile(r"^proj\.(?P<index>\d+)\.(?P<rest>.*)$"), "encoders.{name}.proj.{rest}"),
    (re.compile(r"^encoders\.(?P<index>\d+)\.(?P<rest>.*)$"), "encoders.{name}.body.{rest}"),
    (re.compile(r"^fusion\.(?P<rest>.*)$"), "fusion.transformer.{rest}"),
    (re.compile(r"^(?P<rest>proj[12]\..*)$"), "fusion.{rest}"),
    (re.compile(r"^out_layer\.(?P<rest>.*)$"), "head.{rest}"),
    (re.compile(r"^backbone(?P<number>\d+)\.(?P<rest>.*)$"), "encoders.{name}.backbone.{rest}"),
    (re.compile(r"^aspp(?P<number>\d+)\.(?P<rest>.*)$"), "encoders.{name}.aspp.{rest}"),
    (re.compile(r"^decoder\.last_conv\.7\.(?P<rest>.*)$"), "head.{rest}"),
    (re.compile(r"^decoder\.(?P<rest>.*)$"), "fusion.{rest}"),
)
_GUIDES = (
    (re.compile(r"^classifers\.(?P<index>\d+)\.out_layer\.(?P<rest>.*)$"), "{name}.head.{rest}"),
    (re.compile(r"^classifers\.(?P<index>\d+)\.(?P<rest>.*)$"), "{name}.{rest}"),
    (re.compile(r"^decoder(?P<number>\d+)\.last_conv\.7\.(?P<rest>.*)$"), "{name}.head.{rest}"),
    (re.compile(r"^decoder(?P<number>\d+)\.(?P<rest>.*)$"), "{name}.decoder.{rest}"),
)


def net_name(released: str, modalities: Sequence[str]) -> str | None:
    """Name in `MultimodalNet` of a parameter of the released model; None for its inert buffers.

    Raises:
        KeyError: the name is not one of the released model.
    """
    return _translate(released, modalities, _NET)


def guide_name(released: str, modalities: Sequence[str]) -> str | None:
    """Name in a ModuleDict of guides of a parameter of the released guide classifiers (spelled `classifers`)."""
    return _translate(released, modalities, _GUIDES)


def convert_released(
    state: Mapping[str, Tensor], modalities: Sequence[str], *, guides: bool = False
) -> dict[str, Tensor]:
    """A state dict of the released model, or of its guides, for this package.

    Args:
        state: released names to tensors.
        modalities: names for the released indices 0, 1, ... (of DeepLab: 1, 2, ...).
        guides: the state is that of the guide classifiers.

    Returns:
        A state dict for `MultimodalNet`, or for `torch.nn.ModuleDict(guides)`. The 1x1 convolutions of the input
        projections [D, features, 1] become linear weights [D, features].
    """
    rename = guide_name if guides else net_name
    converted = {}
    for old, value in state.items():
        new = rename(old, modalities)
        if new is not None:
            converted[new] = (
                value.squeeze(-1) if new.endswith("proj.weight") and value.ndim == 3 else torch.as_tensor(value)
            )
    return converted


def _translate(released: str, modalities: Sequence[str], rules: Sequence[tuple[re.Pattern[str], str]]) -> str | None:
    if _INERT.search(released):
        return None
    for pattern, template in rules:
        match = pattern.match(released)
        if match:
            found = match.groupdict()
            place = int(found["index"]) if "index" in found else int(found.get("number") or 1) - 1
            return template.format(name=modalities[place], rest=found["rest"])
    raise KeyError(f"{released} is not a parameter of the released model")
