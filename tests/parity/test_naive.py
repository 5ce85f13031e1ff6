"""The plain step that the benchmarks compare with computes what the released code computed."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from golden import Recording, recordings

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "speed"))
from naive import NaiveConfig, NaiveStep

NO_DROPOUT = {f"{kind}_dropout": 0.0 for kind in ("attn", "relu", "embed", "res", "out")}


@pytest.mark.parametrize("mode", ["none", "cggm"])
@pytest.mark.parametrize("file", [file for kind in ("mosi", "iemo") for file in recordings(f"{kind}_full.npz")])
def test_the_recorded_trajectory(file: Path, mode: str) -> None:
    recording = Recording(file)
    meta = recording.meta
    config = NaiveConfig(
        features=[recording.tensor(f"in.0.{name}").shape[-1] for name in recording.modalities],
        outputs=meta["out"],
        width=meta["proj"],
        heads=meta["heads"],
        layers=meta["layers"],
        guide_layers=meta["cls_layers"],
        rho=meta["rou"],
        lam=meta["lamda"],
        clip=meta["clip"],
        lr=meta["lr"],
        guide_lr=meta["cls_lr"],
        **NO_DROPOUT,
    )
    step = NaiveStep(config, cggm=mode == "cggm")
    for module, kind in ((step.net, "model"), (step.classifers, "cls")):
        prefix = f"init.{kind}."
        names = [key for key in recording.arrays.files if key.startswith(prefix)]
        state = {re.sub(r"^classifers\.", "", key[len(prefix) :]): recording.tensor(key) for key in names}
        state = {name: value for name, value in state.items() if not re.search(r"version$|_float_tensor$", name)}
        if len(module.state_dict()) > 0:
            module.load_state_dict(state)
    step.net.double()
    step.classifers.double()
    batches = len(meta["batches"])
    for number in range(min(meta["num_steps"], 12)):
        inputs = recording.inputs(f"in.{number % batches}")
        step(list(inputs.values()), recording.target(f"in.{number % batches}"))
        compared = [key for key in step.seen if f"{mode}.{key}" in recording]
        assert {"loss_task", "loss_total", "gnorm_total_clip"} <= set(compared)
        assert mode == "none" or {"cls_loss_sum", "acc2", "coeff", "cos", "l_gm"} <= set(compared)
        for key in compared:
            recording.check(f"{mode}.{key}", np.asarray(step.seen[key]), number)
