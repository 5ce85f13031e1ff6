"""The lines that a run begins with: what is trained, on what, and for how long."""

from __future__ import annotations

from torch import nn

from cggm_ray.engine.opening import Training

DEMONSTRATION = "demonstration data, which was generated: figures of this run say nothing about real data"


def header(training: Training) -> list[str]:
    """Returns a block of lines about a run that is open."""
    config, state, runtime, budget = training.config, training.state, training.runtime, training.budget
    network = config.model.network or training.dataset.network
    own = _parameters(state.strategy)
    size = f"{budget.batch_size} samples in a batch"
    parts = {
        "data": DEMONSTRATION if config.data.data_path is None else "",
        "strategy": config.modulation.modulation + (f", {own:,} parameters of its own" if own else ""),
        "network": f"{network}, {_parameters(state.net):,} parameters",
        "runs on": f"{runtime.device.type}, {runtime.world_size} worker{'s' if runtime.world_size > 1 else ''}; {size}",
        "length": f"{budget.epochs} epochs, {budget.total:,} steps",
        "folder": str(training.folder),
    }
    return [f"run: {training.folder.name}", *(f"  {what:<12}{text}" for what, text in parts.items() if text)]


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
