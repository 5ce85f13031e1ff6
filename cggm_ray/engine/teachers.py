"""Finished runs with one modality each, as teachers of a run with all of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cggm_ray.core.errors import UsageError, short_repr
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.state import BEST, VALUES, WEIGHTS
from cggm_ray.models.precision import Double
from cggm_ray.models.standardise import Standardise
from cggm_ray.storage.base import is_url
from cggm_ray.storage.mirror import mirror_of
from cggm_ray.storage.work import read_folder

FLAG = "umt_teachers"


def find_teachers(config: Config, runs: Sequence[str] | None, modalities: Sequence[str]) -> dict[str, Path]:
    """Returns the folder with the best checkpoint of every modality's teacher.

    Args:
        config: of the run that is to be taught.
        runs: folders or URLs of runs, or their names in `storage_path`, in any order. What is at a URL is fetched.
        modalities: of the run that is to be taught.

    Raises:
        UsageError: a run is not finished, not of one modality, of another dataset or size of network; or a modality has no
            teacher, or two.
    """
    if not runs:
        raise UsageError(
            f"{FLAG}: found none; expected a finished run for each of {', '.join(modalities)}, which --modalities NAME "
            "--modulation none trains"
        )
    found: dict[str, Path] = {}
    for run in runs:
        folder = read_folder(FLAG, run) if is_url(run) else config.run.storage / Path(run).expanduser()
        mirror_of(folder).pull()
        name = _modality(config, folder)
        if name in found:
            raise UsageError(f"{FLAG}: both {found[name].parent} and {folder} are of {name!r}; expected one of them")
        found[name] = folder / BEST
    if set(found) != set(modalities):
        raise UsageError(
            f"{FLAG}: found teachers of {', '.join(sorted(found))}; expected one for each of {', '.join(modalities)}"
        )
    return {name: found[name] for name in modalities}


def load_teachers(
    encoders: Mapping[str, nn.Module], teachers: Mapping[str, Path]
) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """Returns copies of the encoders with the weights of the teachers, and what standardises the inputs of those that have it.

    Args:
        encoders: by modality, of the network that is to be taught.
        teachers: folder of the best checkpoint by modality, as `find_teachers` returns them.

    Raises:
        UsageError: weights cannot be read, or do not fit the encoder.
    """
    loaded: dict[str, nn.Module] = {}
    inputs: dict[str, nn.Module] = {}
    for name, folder in teachers.items():
        try:
            weights = load_file(folder / WEIGHTS)
            teacher = copy.deepcopy(encoders[name])
            teacher.load_state_dict(_below(f"encoders.{name}.", weights))
            values = _below(f"inputs.{name}.", weights)
            if values:
                inputs[name] = Standardise(tuple(values["mean"].shape))
                inputs[name].load_state_dict(values)
            if any(part.dtype == torch.float64 for part in teacher.parameters()):
                inputs[name] = inputs[name].double() if name in inputs else Double()
        except (OSError, SafetensorError, RuntimeError, KeyError) as error:
            # torch lists every parameter on a line of its own.
            reason = " ".join(str(error).split())[:300]
            raise UsageError(
                f"{FLAG}: {folder / WEIGHTS} does not fit the encoder of {name!r} in this run: {reason}"
            ) from error
        loaded[name] = teacher
    return loaded, inputs


def _below(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors whose names begin with the prefix, under the rest of the names."""
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def _modality(config: Config, folder: Path) -> str:
    """Returns the modality of a finished run, after checking that its configuration otherwise matches this run."""
    try:
        of_run: Mapping[str, Any] = json.loads((folder / BEST / VALUES).read_text())["config"]
        dataset, modalities, model = of_run["data"]["dataset"], of_run["data"]["modalities"], of_run["model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{FLAG}: {folder / BEST} is not the best checkpoint of a finished run; expected the folder of a run, or its "
            f"name in {config.run.storage}"
        ) from error
    if dataset != config.data.dataset:
        raise UsageError(
            f"{FLAG}: {folder} was trained on {short_repr(dataset)}, this run is on {config.data.dataset!r}"
        )
    if not isinstance(modalities, list) or len(modalities) != 1:
        raise UsageError(
            f"{FLAG}: {folder} was trained with {'all modalities' if modalities is None else short_repr(modalities)}; expected "
            "one, given by --modalities"
        )
    # Dropouts and the size of the guides are no part of an encoder's shape.
    for field in ("nlevels", "num_heads", "proj_dim"):
        if model.get(field) != getattr(config.model, field):
            raise UsageError(
                f"{FLAG}: {folder} was trained with {field} {short_repr(model.get(field))}, this run has "
                f"{getattr(config.model, field)}; expected the same"
            )
    return str(modalities[0])
