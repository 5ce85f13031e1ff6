"""The statistics that standardise the inputs of a run: found once for a set, kept in a file, and put into the network.

A run keeps its own copy, which all of its workers read. Beside the sets lies another one, so that the runs of a search or a
comparison, and later runs on the same set, do not read the split again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from cggm_ray.core.errors import UsageError
from cggm_ray.data.dataset import Dataset
from cggm_ray.data.loading.sampler import epoch_order, slices
from cggm_ray.data.loading.split import Split
from cggm_ray.data.shards.shards import Manifest
from cggm_ray.data.statistics import MapShards, Moments, Statistics, map_shards_here, training_statistics
from cggm_ray.engine.settings import TrainConfig
from cggm_ray.models.net import MultimodalNet
from cggm_ray.models.standardise import MODALITY, InputConfig, Standardise, standardisers
from cggm_ray.storage.locks import holding
from cggm_ray.storage.places import new_file

STATISTICS = "statistics.safetensors"
"""File in the folder of a run: count, mean and m2 (see `Moments`) of every modality."""
MOST_RATIO = 10.0
"""Ratio of two encoders' first gradient norms above which a run says so."""
LONG = 2**28
"""Bytes of a training split above which a line says that it is read."""
SHARED = "statistics"
"""Folder beside the sets, with a file for a set and the kinds of its modalities."""
CALIBRATION = 4096
"""Largest number of training samples from which statistics inside encoders are taken."""


def check_inputs(config: InputConfig, dataset: Dataset, manifest: Manifest, modalities: tuple[str, ...]) -> None:
    """Raises a UsageError if inputs cannot be standardised because they are not what the shards hold."""
    if not config.standardises:
        return
    modalities = tuple(name for name in modalities if name not in dataset.pretrained(manifest, modalities))
    for name, shape in dataset.shapes(manifest, modalities).items():
        stored = manifest.modalities[name].shape
        if tuple(shape) != tuple(stored):
            raise UsageError(
                f"standardise: found {config.standardise!r}, but the run computes the features of {name}, {list(shape)}, from "
                f"stored values {list(stored)}, so their mean is not known before training; expected off"
            )


def write_statistics(
    folder: Path,
    shards: Path,
    manifest: Manifest,
    kinds: Mapping[str, str],
    map_shards: MapShards = map_shards_here,
) -> None:
    """Writes the statistics of a set into the folder of a run, unless they are there.

    Args:
        folder: of the run.
        shards: folder of the set.
        manifest: of the set.
        kinds: of the modalities of the run.
        map_shards: reads the shards, if nobody has done so.

    Raises:
        DataError: a shard cannot be read, or a modality has values that are not finite.
        OSError: the file cannot be written.
    """
    if _read(folder / STATISTICS, shards, kinds) is None:
        _write(folder / STATISTICS, shared_statistics(shards, manifest, kinds, map_shards), shards, kinds)


def shared_statistics(
    shards: Path, manifest: Manifest, kinds: Mapping[str, str], map_shards: MapShards = map_shards_here
) -> Statistics:
    """Returns the statistics of a set, and keeps them beside it where that folder can be written.

    Who comes while another process finds them waits.

    Args:
        shards: folder of the set.
        manifest: of the set.
        kinds: of the modalities that are wanted.
        map_shards: reads the shards, if nobody has done so.

    Raises:
        DataError: a shard cannot be read, or a modality has values that are not finite.
    """
    mark = hashlib.sha256(json.dumps(dict(kinds), sort_keys=True).encode()).hexdigest()[:8]
    path = shards.parent / SHARED / f"{shards.name}-{mark}.safetensors"
    found = _read(path, shards, kinds)
    if found is not None:
        return found
    with ExitStack() as stack:
        kept = True
        try:
            path.parent.mkdir(exist_ok=True)
            stack.enter_context(holding(path.with_name(f".{path.name}.lock"), lambda holder: None))
        except OSError:
            # A set may be on storage that only its maker writes.
            kept = False
        found = _read(path, shards, kinds)
        if found is None:
            size = sum(shard.bytes for shard in manifest.splits["train"])
            if size > LONG:
                print(f"reading the training split once, {size / 2**30:.1f} GiB, for means and deviations", flush=True)
            found = training_statistics(shards, manifest, kinds, map_shards)
            if kept:
                try:
                    _write(path, found, shards, kinds)
                except OSError as error:
                    print(
                        f"{path} cannot be written: {error.strerror or error}; the next run reads the set again",
                        flush=True,
                    )
    return found


def fill_inputs(
    config: InputConfig,
    net: MultimodalNet,
    folder: Path,
    shards: Path,
    manifest: Manifest,
    kinds: Mapping[str, str],
) -> None:
    """Puts the statistics into a network that is to be trained, from the file of the run if it is there.

    Args:
        config: of the run.
        net: with a `Standardise` for each modality, or without any.
        folder: of the run.
        shards: folder of the set.
        manifest: of the set.
        kinds: of the modalities of the run.
    """
    if not config.standardises:
        return
    found = _read(folder / STATISTICS, shards, kinds)
    for name, moments in (shared_statistics(shards, manifest, kinds) if found is None else found).items():
        fill: Callable[..., None] = net.inputs[name].fill  # type: ignore[assignment]
        mean, scale = torch.from_numpy(moments.mean), torch.from_numpy(moments.scale)
        fill(mean, scale, config.clip_inputs, moments.whole_scale)
    if config.standardise == MODALITY:
        share_scales(net)


def share_scales(net: MultimodalNet) -> None:
    """Has every modality divided by one standard deviation, and nothing standardised again inside the encoders.

    Args:
        net: with filled inputs.
    """
    for module in net.inputs.values():
        if isinstance(module, Standardise):
            module.share_scale()
    for encoder in net.encoders.values():
        for module in standardisers(encoder).values():
            module.disable()


def unequal_gradients(config: InputConfig, modalities: Sequence[str], norms_M: Tensor) -> str | None:
    """Returns the line about the first step of a run whose encoders get gradients of very different size; else None.

    An encoder without any gradient does not count, because a strategy may train one after the other.

    Args:
        config: of the run.
        modalities: their names.
        norms_M: L2 norm of the gradient of each encoder.
    """
    norms = dict(zip(modalities, norms_M.tolist(), strict=True))
    positive = [norm for norm in norms.values() if 0 < norm < math.inf]
    if not positive or max(positive) <= MOST_RATIO * min(positive):
        return None
    found = ", ".join(f"{name} {norm:.2g}" for name, norm in norms.items())
    advice = (
        "" if config.standardises else "; inputs in other units are a frequent cause, which --standardise on removes"
    )
    return f"the first gradient norms of the encoders differ by more than {MOST_RATIO:.0f} times: {found}{advice}"


@torch.no_grad()
def calibrate(config: InputConfig, net: MultimodalNet, split: Split, settings: TrainConfig) -> None:
    """Fills the `Standardise` modules inside encoders, such as those of single steps, from samples of the training split.

    The samples are the first `CALIBRATION` of the order of the first epoch, in whole batches, the same on every worker.

    Args:
        config: of the run.
        net: with filled inputs, to be trained.
        split: of the training samples.
        settings: batch size and seed of the run.
    """
    if not config.standardises or config.standardise == MODALITY:
        return
    inner = {
        f"encoders.{modality}.{name}": (modality, module)
        for modality, encoder in net.encoders.items()
        for name, module in standardisers(encoder).items()
    }
    if not inner:
        return
    net.eval()
    found: dict[str, Moments] = {}
    order = epoch_order(len(split), settings.seed, 0)[:CALIBRATION]
    for batch in split.batches(list(slices(order, settings.batch_size, 0, 1)), 0):
        with ExitStack() as hooks:
            for name, (modality, module) in inner.items():
                there = None if batch.present is None else batch.present.get(modality)
                hooks.enter_context(module.register_forward_pre_hook(partial(_note, found, name, there)))
            net.encode(batch)
    for name, (_, module) in inner.items():
        module.fill(torch.from_numpy(found[name].mean), torch.from_numpy(found[name].scale), config.clip_inputs)


def _note(
    found: dict[str, Moments], name: str, there: Tensor | None, module: Standardise, inputs: tuple[Tensor]
) -> None:
    """Adds the moments of what a module receives, without the samples that lack the modality."""
    valid = None if there is None else there[:, None].cpu().numpy()
    new = Moments.of(inputs[0].cpu().numpy(), valid, tuple(module.mean.shape))
    found[name] = found[name].merge(new) if name in found else new


def _read(path: Path, shards: Path, kinds: Mapping[str, str]) -> Statistics | None:
    """Returns the statistics in a file; None where it is missing, damaged, or of another set or other modalities."""
    try:
        with safe_open(path, framework="numpy") as file:
            if file.metadata() != _origin(shards, kinds):
                return None
            return {
                name: Moments(**{what: file.get_tensor(f"{what}/{name}") for what in ("count", "mean", "m2")})
                for name in kinds
            }
    except (OSError, SafetensorError):
        return None


def _write(path: Path, statistics: Statistics, shards: Path, kinds: Mapping[str, str]) -> None:
    tensors = {f"{what}/{name}": values for name, m in statistics.items() for what, values in vars(m).items()}
    with new_file(path, ".safetensors") as partial:
        save_file(tensors, partial, metadata=_origin(shards, kinds))


def _origin(shards: Path, kinds: Mapping[str, str]) -> dict[str, str]:
    # One entry, because the library writes several in any order.
    return {"origin": json.dumps({"set": shards.name, "kinds": dict(kinds)}, sort_keys=True)}
