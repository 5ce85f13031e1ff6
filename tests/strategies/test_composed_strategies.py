"""Every strategy trains every encoder, and every fusion, of the network `composed`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from composed_nets import CLASSES, KINDS, OF_KIND, SHAPES, batch, composed
from safetensors.torch import save_file

from cggm_ray.engine.assembly import new_state
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.runtime import LocalRuntime, RunConfig
from cggm_ray.engine.state import VALUES, WEIGHTS
from cggm_ray.engine.step import TrainingStep, train_step
from cggm_ray.models.composed.registry import ENCODERS, FUSIONS, encoders_for
from cggm_ray.models.net import MultimodalNet
from cggm_ray.strategies.registry import STRATEGIES
from cggm_ray.tasks import Classification

ROUNDS = max(map(len, OF_KIND.values()))
CHOICES = [
    {name: OF_KIND[kind][number % len(OF_KIND[kind])] for name, kind in KINDS.items()} for number in range(ROUNDS)
]
"""Encoders by modality, so that each is there once at least."""
PAIRS = [*((choice, "concat") for choice in CHOICES), *((CHOICES[0], fusion) for fusion in FUSIONS.names())]
"""Every encoder, and every fusion."""


def needed(name: str, net: MultimodalNet, folder: Path) -> dict[str, Any]:
    """Options that a strategy cannot do without."""
    if name in ("cggm-paper", "cggm-released"):
        # Their coefficients are quotients, which are infinite where no accuracy changes; the likelihood always changes.
        return {"utility": "likelihood"}
    if name == "mslr":
        return {"mslr_lrs": [f"{modality}=0.001" for modality in SHAPES]}
    if name != "umt":
        return {}
    for modality in SHAPES:
        best = folder / f"teacher-{modality}" / "best"
        best.mkdir(parents=True, exist_ok=True)
        weights = {k: v.clone() + 0.1 for k, v in net.state_dict().items() if k.startswith(f"encoders.{modality}.")}
        save_file(weights, best / WEIGHTS)
        (best / VALUES).write_text(json.dumps({"config": Config().replace({"modalities": [modality]}).to_dict()}))
    return {"umt_teachers": [str(folder / f"teacher-{modality}") for modality in SHAPES]}


def test_the_choices_have_all_encoders() -> None:
    for kind, names in OF_KIND.items():
        assert sorted(names) == encoders_for(kind)
    assert {name for choice in CHOICES for name in choice.values()} == set(ENCODERS.names())


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_every_strategy_trains_every_encoder_and_every_fusion(tmp_path: Path, name: str) -> None:
    runtime, info = LocalRuntime(tmp_path, RunConfig(no_cuda=True)), STRATEGIES.get(name)
    for choice, fusion in PAIRS:
        net, guides = composed(choice, fusion, linear_path="on" if choice is CHOICES[0] else "off")
        config = Config().replace({"modulation": name, **needed(name, net, tmp_path)})
        net = info.network_of(net, guides, config.strategy)
        state = new_state(config, net, guides, Classification(CLASSES), runtime)
        step = TrainingStep(net, state.strategy, "fp32").train()
        moved = set()
        for masked in (True, False, True):
            found = train_step(state, step, batch(masked), runtime, accumulate=1, clip=0.8)
            assert all(torch.isfinite(value).all() for value in found.values()), (choice, fusion, masked, found)
            state.step += 1
            for modality, encoder in net.encoders.items():
                gradients = [parameter.grad for parameter in encoder.parameters()]
                if all(grad is not None and torch.isfinite(grad).all() for grad in gradients):
                    moved |= {modality} if any(bool(grad.any()) for grad in gradients if grad is not None) else set()
        # In the first epoch of ReconBoost only one learner moves; the last turn of a step of MLA leaves gradients of one.
        alone = {"reconboost": {"audio"}, "mla": {list(SHAPES)[-1]}}
        assert moved == alone.get(name, set(SHAPES)), (choice, fusion)
        # Without clipping the limit of a standardised value is infinite.
        weights = {key: values for key, values in net.state_dict().items() if not key.endswith(".limit")}
        assert all(torch.isfinite(values).all() for values in weights.values()), (choice, fusion)
        step.eval()
        if state.strategy.observes:
            with torch.no_grad():
                part = batch(True)
                assert torch.isfinite(state.strategy.observe(net.encode(part.inputs, part.masks), part)).all()
        state.strategy.end_epoch({}, {"loss": 1.0}, torch.ones(len(SHAPES) * (state.strategy.task.n_sums + 2)).double())
