"""Training steps on random data of the shapes of the four datasets, for the benchmarks. Needs torch and no Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from naive import NaiveConfig, NaiveStep
from torch import Tensor, nn

from cggm_ray.core.arithmetic import choose_arithmetic
from cggm_ray.core.batch import Batch
from cggm_ray.engine import assembly
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.graph import DeviceRates, GraphStep
from cggm_ray.engine.runtime import LocalRuntime
from cggm_ray.engine.state import TrainState
from cggm_ray.engine.step import TrainingStep, train_step
from cggm_ray.models.deeplab import DeepLab, DeepLabConfig, deeplab_guides
from cggm_ray.models.net import MultimodalNet
from cggm_ray.models.resnet import BACKBONES, ResNetConfig
from cggm_ray.models.sequence import sequence_guides, sequence_net
from cggm_ray.strategies.registry import STRATEGIES as STRATEGY_TYPES
from cggm_ray.tasks import Classification, Regression, Segmentation, Task

NAIVE = "naive"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A dataset's shapes and the settings of its pipeline.

    Attributes:
        shapes: of a sample, by modality.
        outputs: C.
        batch: samples of a step.
        settings: of the configuration, by field.
        backbone: of the segmentation network; None for sequences.
        channels_last: memory format of that network.
    """

    shapes: Mapping[str, tuple[int, ...]]
    outputs: int
    batch: int = 64
    settings: Mapping[str, Any] = field(default_factory=dict)
    backbone: ResNetConfig | None = None
    channels_last: bool = False

    def networks(self, config: Config) -> tuple[MultimodalNet, dict[str, nn.Module]]:
        """Returns the network and its guides."""
        if self.backbone is not None:
            deeplab = DeepLabConfig(backbone=self.backbone)
            net, guides = (
                DeepLab(deeplab, self.shapes, self.outputs),
                deeplab_guides(deeplab, self.shapes, self.outputs),
            )
            if self.channels_last:
                for module in (net, *guides.values()):
                    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            return net, guides
        widths = {name: shape[-1] for name, shape in self.shapes.items()}
        return sequence_net(config.model, widths, self.outputs), sequence_guides(config.model, widths, self.outputs)

    def task(self) -> Task:
        """Returns the loss and utilities."""
        if self.backbone is not None:
            return Segmentation()
        return Regression() if self.outputs == 1 else Classification(self.outputs)

    def data(self) -> Batch:
        """Returns a batch of random numbers."""
        inputs = {name: torch.randn(self.batch, *shape) for name, shape in self.shapes.items()}
        if self.backbone is not None:
            target = torch.randint(self.outputs, (self.batch, *next(iter(self.shapes.values()))[1:]))
        elif self.outputs == 1:
            target = torch.randn(self.batch, 1)
        else:
            target = torch.randint(self.outputs, (self.batch,))
        return Batch(inputs=inputs, target=target, index=torch.arange(self.batch))


PROBLEMS = {
    "mosi": Problem(shapes={"text": (50, 300), "audio": (50, 5), "vision": (50, 20)}, outputs=1),
    "iemocap": Problem(
        shapes={"text": (22, 1024), "audio": (350, 130), "vision": (50, 342)},
        outputs=4,
        settings={"nlevels": 4, "res_dropout": 0.15, "out_dropout": 0.2},
    ),
    "food101": Problem(
        shapes={"image": (197, 768), "text": (50, 768)},
        outputs=101,
        settings={"nlevels": 4, "attn_dropout": 0.2, "res_dropout": 0.15, "lam": 0.05, "optim": {"optim": "AdamW"}},
    ),
    "brats": Problem(
        shapes=dict.fromkeys(("flair", "t1ce", "t1", "t2"), (1, 160, 160)),
        outputs=4,
        batch=2,
        settings={"rho": 1.0, "lam": 0.1, "optim": {"optim": "SGD", "lr": 1e-2, "clip": 0.0}},
        backbone=BACKBONES["resnet101"],
    ),
}

STRATEGIES: dict[str, dict[str, Any]] = {
    "none": {"modulation": "none"},
    "cggm": {"modulation": "cggm"},
    "cggm without direction": {"modulation": "cggm", "direction": "off"},
    "cggm-released": {"modulation": "cggm-released"},
}


@dataclass(frozen=True)
class Product:
    """The package's own step on one batch that lies on the device.

    Attributes:
        state: of the run.
        step: the forward half of the step.
        config: of the run.
        runtime: one process.
        batch: of every call.
    """

    state: TrainState
    step: TrainingStep
    config: Config
    runtime: LocalRuntime
    batch: Batch

    def __call__(self) -> Mapping[str, Tensor]:
        """Takes one optimizer step."""
        return self.eager(self.batch, None)

    def eager(self, batch: Batch, largest: int | None) -> dict[str, Tensor]:
        """Takes one optimizer step on another batch."""
        train, clip = self.config.train, self.config.optim.clip
        return train_step(self.state, self.step, batch, self.runtime, accumulate=train.accumulate, clip=clip)

    def taking(self, kind: str) -> Callable[[Batch], Mapping[str, Tensor]]:
        """Returns what takes steps on any batch, as the loop takes them on a GPU.

        Args:
            kind: 'eager' or 'graph'.
        """
        rates = DeviceRates([self.state.optimizer, self.state.strategy.own_optimizer()], self.runtime.device)
        if kind == "graph":
            return GraphStep(self.eager, self.state, rates)

        def take(batch: Batch) -> Mapping[str, Tensor]:
            with rates.applied():
                return self.eager(batch, None)

        return take


def product(
    problem: Problem,
    settings: Mapping[str, Any],
    batch: Batch | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    dropout: bool = True,
) -> Product:
    """Returns the package's own step, `cggm_ray.engine.step.train_step`; weights and batch depend on no other call.

    Teachers are finished runs, of which there are none here: networks with fresh weights take their place.
    """
    torch.manual_seed(0)
    config = Config.from_dict({"no_cuda": device == "cpu", **problem.settings, **settings})
    net, guides = problem.networks(config)
    net = STRATEGY_TYPES.get(config.modulation.modulation).network_of(net, guides, config.strategy)
    choose_arithmetic(tf32=config.train.precision == "tf32", benchmark=config.train.cudnn_benchmark)
    runtime = LocalRuntime(Path("unused"), config.run)
    fresh = ({name: problem.networks(config)[0].encoders[name] for name in problem.shapes}, {})
    with (
        patch.object(assembly, "find_teachers", lambda *args: {}),
        patch.object(assembly, "load_teachers", lambda *args: fresh),
    ):
        state = assembly.new_state(config, net, guides, problem.task(), runtime)
    if dtype == torch.float64:
        for module in (state.net, state.strategy):
            module.double()
    for part in () if dropout else [*state.net.modules(), *state.strategy.modules()]:
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    step = TrainingStep(state.net, state.strategy, config.train.precision).train()
    if config.train.compile:
        step.compile_whole(problem.batch, print)
    torch.manual_seed(1)
    data = batch or problem.data()
    data = dataclasses.replace(
        data,
        inputs={name: values.to(dtype) for name, values in data.inputs.items()},
        target=data.target.to(dtype) if data.target.is_floating_point() else data.target,
    )
    return Product(state, step, config, runtime, data.to(runtime.device))


def product_step(
    problem: Problem, settings: Mapping[str, Any], batch: Batch | None = None, device: str = "cpu"
) -> Callable[[], Mapping[str, Tensor]]:
    """Returns the package's own step on one batch that lies on the device."""
    return product(problem, settings, batch, device)


def naive_step(problem: Problem, device: str = "cpu") -> Callable[[], float]:
    """Returns the plain step of the released code on the same shapes; there is none for images."""
    torch.manual_seed(0)
    settings = Config.from_dict(dict(problem.settings))
    model = settings.model
    config = NaiveConfig(
        features=[shape[-1] for shape in problem.shapes.values()],
        outputs=problem.outputs,
        layers=model.nlevels,
        guide_layers=model.cls_layers,
        attn_dropout=model.attn_dropout,
        relu_dropout=model.relu_dropout,
        embed_dropout=model.embed_dropout,
        res_dropout=model.res_dropout,
        out_dropout=model.out_dropout,
        optimizer=torch.optim.AdamW if settings.optim.optim == "AdamW" else torch.optim.Adam,
    )
    step = NaiveStep(config)
    step.net.to(device)
    step.classifers.to(device)
    data = problem.data().to(torch.device(device))
    return lambda: step(list(data.inputs.values()), data.target)
