"""Reads the recorded trajectories of the released code, and rebuilds the model that they start from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cggm_ray import Classification, Regression, Task
from cggm_ray.engine.optim import build_optimizer
from cggm_ray.models.net import MultimodalNet
from cggm_ray.models.released import convert_released, net_name
from cggm_ray.models.sequence import SequenceNet, sequence_guides, sequence_net
from cggm_ray.models.settings import ModelConfig

FOLDER = Path(os.environ.get("CGGM_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))

ABSENT = "" if FOLDER.is_dir() or "CGGM_GOLDEN" in os.environ else f"{FOLDER} is not there (set CGGM_GOLDEN)"
"""Why tests that need the folder are skipped; empty where they are not."""


def arrays_of(name: str) -> dict[str, np.ndarray]:
    """The arrays of one file; skips the test where the folder is missing."""
    if ABSENT:
        pytest.skip(ABSENT)
    return dict(np.load(FOLDER / name, allow_pickle=False))


def recordings(pattern: str) -> list[Any]:
    """One pytest parameter a file; a single skipped one where the folder is missing.

    Raises:
        FileNotFoundError: the folder is there, or was asked for, without such a file: a renamed file must not skip its test.
    """
    if ABSENT:
        return [pytest.param(None, marks=pytest.mark.skip(reason=ABSENT))]
    files = sorted(FOLDER.glob(pattern))
    if not files:
        raise FileNotFoundError(f"no {pattern} in {FOLDER}")
    return [pytest.param(file, id=file.stem) for file in files]


class Recording:
    """One file of the folder."""

    modalities = ("text", "audio", "vision")
    floors = {torch.float64: (1e-5, 1e-7), torch.float32: (1e-4, 1e-5)}
    """By the type of the computation: the part of a value, and the number, that count as equal beside the noise."""

    def __init__(self, path: Path, dtype: torch.dtype = torch.float64) -> None:
        self.dtype = dtype
        self.arrays = np.load(path, allow_pickle=False)
        self.meta = json.loads(str(self.arrays["meta"]))

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def tensor(self, key: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.arrays[key]))

    def inputs(self, prefix: str) -> dict[str, Tensor]:
        return {name: self.tensor(f"{prefix}.{name}").to(self.dtype) for name in self.modalities}

    def target(self, prefix: str) -> Tensor:
        labels = self.tensor(f"{prefix}.labels")
        return labels.to(self.dtype).reshape(-1, 1) if self.meta["dataset"] == "mosi" else labels

    @property
    def task(self) -> Task:
        return Regression() if self.meta["dataset"] == "mosi" else Classification(self.meta["out"])

    def optimizer(self, parameters: Iterable[nn.Parameter], role: str = "model") -> torch.optim.Optimizer:
        """That of the released code for this dataset."""
        lr = self.meta["lr"] if role == "model" else self.meta["cls_lr"]
        return build_optimizer("Adam", parameters, lr=lr, weight_decay=0)

    def net_name(self, name: str) -> str:
        """Name in our model of a recorded parameter."""
        return str(net_name(name, self.modalities))

    def encoders(self, net: MultimodalNet) -> list[nn.Module]:
        """The encoders, none of which holds a parameter of another."""
        return list(net.encoders.values())

    @cached_property
    def model_config(self) -> ModelConfig:
        meta = self.meta
        return ModelConfig(
            nlevels=meta["layers"],
            cls_layers=meta["cls_layers"],
            num_heads=meta["heads"],
            proj_dim=meta["proj"],
            attn_dropout=0,
            relu_dropout=0,
            embed_dropout=0,
            res_dropout=0,
            out_dropout=0,
        )

    def build(self) -> tuple[SequenceNet, dict[str, nn.Module]]:
        """Model and guides with the recorded initial weights."""
        widths = dict(zip(self.modalities, self.meta["dims"], strict=True))
        net = sequence_net(self.model_config, widths, self.meta["out"])
        guides = sequence_guides(self.model_config, widths, self.meta["out"])
        net.load_state_dict(convert_released(self.state("model"), self.modalities))
        nn.ModuleDict(guides).load_state_dict(convert_released(self.state("cls"), self.modalities, guides=True))
        for module in (net, *guides.values()):
            module.to(self.dtype)
        return net, guides

    def state(self, role: str) -> dict[str, Tensor]:
        prefix = f"init.{role}."
        return {key[len(prefix) :]: self.tensor(key) for key in self.arrays.files if key.startswith(prefix)}

    def check(
        self, key: str, got: Any, step: int | None = None, *, only: np.ndarray | None = None, spread: float = 0.0
    ) -> None:
        """Compares with a recorded value within 20 times its rounding noise, as the folder's README suggests.

        That is for a computation in float64. In float32 a ReLU whose input lies within rounding of zero may open here and
        stay shut there, so the tolerance gets 1e-4 of the value on top.

        Args:
            key: for example 'cggm.coeff'; its tolerance is in 'noise.<key>'.
            got: the value to compare.
            step: row of a per-step array.
            only: bool mask of the last axis; entries outside are not compared.
            spread: tolerance in place of that of the recorded noise, where it is larger.
        """
        parts = key.split(".")
        noise_key = "noise." + (key.rsplit(".", 1)[0] if parts[-1].isdigit() else key)
        want, noise = np.asarray(self[key], dtype=np.float64), np.asarray(self[noise_key], dtype=np.float64)
        if step is not None:
            want = want[step] if not parts[-1].isdigit() else want
            noise = noise[step] if noise.ndim else noise
        got = np.asarray(torch.as_tensor(got).detach().double())
        if only is not None:
            want, got = want[..., only], got[..., only]
        assert got.shape == want.shape, f"{key}: shape {got.shape}, recorded {want.shape}"
        relative, absolute = self.floors[self.dtype]
        excess = np.abs(got - want) - (np.maximum(20 * noise, spread) + relative * np.abs(want) + absolute)
        if (excess > 0).any():
            worst = np.unravel_index(np.argmax(excess), excess.shape)
            raise AssertionError(
                f"{key} step {step}: {int((excess > 0).sum())} of {excess.size} values differ; at {worst} got "
                f"{got[worst]!r}, recorded {want[worst]!r}, noise {noise!r}, spread {spread!r}"
            )


class FoodRecording(Recording):
    """A recording on Food-101: both streams go through one projection, and a second one is there but never used."""

    modalities = ("image", "text")
    decay = {"model": 6e-3, "cls": 3e-3}

    def __init__(self, path: Path, dtype: torch.dtype = torch.float64) -> None:
        super().__init__(path, dtype)
        projection = self.arrays["init.model.projv.weight"]
        self.meta |= {"dims": [projection.shape[1]] * 2, "out": len(self.arrays["init.model.out_layer.bias"])}

    def inputs(self, prefix: str) -> dict[str, Tensor]:
        return {name: self.tensor(f"{prefix}.{name[0].replace('i', 'v')}").to(self.dtype) for name in self.modalities}

    def optimizer(self, parameters: Iterable[nn.Parameter], role: str = "model") -> torch.optim.Optimizer:
        lr = self.meta["lr"] if role == "model" else self.meta["cls_lr"]
        return build_optimizer(self.meta["optim"], parameters, lr=lr, weight_decay=self.decay[role])

    def net_name(self, name: str) -> str:
        stem, rest = name.split(".", 1)
        if stem == "projt":
            return f"unused.{rest}"
        indexed = {"projv": "proj.0", "vision_encoder": "encoders.0", "text_encoder": "encoders.1"}
        return super().net_name(f"{indexed.get(stem, stem)}.{rest}")

    def encoders(self, net: MultimodalNet) -> list[nn.Module]:
        return [encoder.body for encoder in net.encoders.values()]

    def build(self) -> tuple[SequenceNet, dict[str, nn.Module]]:
        widths = dict(zip(self.modalities, self.meta["dims"], strict=True))
        net = sequence_net(self.model_config, widths, self.meta["out"])
        net.encoders["text"].proj = net.encoders["image"].proj
        net.add_module("unused", nn.Linear(self.meta["dims"][1], self.meta["proj"]))
        state = {
            self.net_name(name): value.squeeze(-1) if name.startswith("proj") and value.ndim == 3 else value
            for name, value in self.state("model").items()
            if not name.endswith(("version", "_float_tensor"))
        }
        missing, unexpected = net.load_state_dict(state, strict=False)
        assert not unexpected
        assert missing == ["encoders.text.proj.weight", "encoders.text.proj.bias"], "shared with those of the image"
        guides = sequence_guides(self.model_config, widths, self.meta["out"])
        nn.ModuleDict(guides).load_state_dict(convert_released(self.state("cls"), self.modalities, guides=True))
        for module in (net, *guides.values()):
            module.to(self.dtype)
        return net, guides


def norms(parameters: Iterable[Tensor | None]) -> list[float]:
    """L2 norms; -1 where there is none."""
    return [-1.0 if p is None else float(p.detach().double().norm()) for p in parameters]
