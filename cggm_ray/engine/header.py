"""The lines that a run begins with: what is trained, on what, and for how long.

What the configuration says is printed at once by whoever started the run. The rest is known when the run is open, on Ray by a
worker, and follows then.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from cggm_ray.core.mirrored import in_urls
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.opening import Training
from cggm_ray.engine.refit import TRAINED_ON

FEW = 20
"""Samples of a split below which a line says so: one of them is then more than .05 of an accuracy."""
DEMONSTRATION = "demonstration data, which was generated: figures of this run say nothing about real data"


def opening(config: Config, folder: Path, strategies: str | None = None) -> str:
    """Returns the first lines of a run or a study, which need neither the data nor Ray.

    Args:
        config: of the run, or of all runs of the study.
        folder: of the run or the study.
        strategies: of a comparison; None for that of the configuration.
    """
    return _block(
        {
            "data": config.data.data_path or DEMONSTRATION,
            "strategy": strategies or config.modulation.modulation,
            "runs on": _where(config),
            "folder": in_urls(str(folder)),
        },
        f"run: {folder.name}",
    )


def header(training: Training) -> str:
    """Returns the lines about a run that only an open one knows."""
    config, state, runtime, budget = training.config, training.state, training.runtime, training.budget
    network = config.model.network or training.dataset.network
    own = _parameters(state.strategy)
    samples = ", ".join(f"{len(split):,} {name}" for name, split in training.splits.items())
    few = [f"{len(training.splits[name])} {name}" for name in ("valid", "test") if len(training.splits[name]) < FEW]
    workers = f"{runtime.world_size} worker{'s' if runtime.world_size > 1 else ''}"
    return _block(
        {
            "samples": f"{samples}; {budget.batch_size} in a batch",
            "few samples": f"{' and '.join(few)}: so few that choices and metrics may be chance" if few else "",
            "network": f"{network}, {_parameters(state.net):,} parameters",
            "strategy": f"{own:,} parameters of its own" if own else "",
            "device": f"{runtime.device.type}, {workers}",
            "length": f"{budget.epochs} epochs, {budget.total:,} steps",
            "refit": TRAINED_ON if config.train.refit else "",
        }
    )


def _block(parts: Mapping[str, str], *head: str) -> str:
    return "\n".join([*head, *(f"  {what:<12}{text}" for what, text in parts.items() if text)])


def _where(config: Config) -> str:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return f"torchrun, {os.environ.get('WORLD_SIZE', 1)} processes"
    if config.run.local:
        gpu = torch.cuda.is_available() and not config.run.no_cuda
        return f"this process, {'GPU' if gpu else 'CPU'}"
    workers = f"{config.run.workers} worker{'s' if config.run.workers != '1' else ''}"
    return f"Ray, {workers}, {'a GPU each' if config.run.use_gpu else 'CPU'}"


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
