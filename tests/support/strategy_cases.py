"""What the tests of strategies share: a small problem in float64, a run, and the flags that a strategy cannot do without."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from groups import in_group
from safetensors.torch import save_file
from torch import Tensor, nn

from cggm_ray.commands.cli import main
from cggm_ray.core.batch import Batch, HeadOutput
from cggm_ray.data.loading.sampler import epoch_order, slices
from cggm_ray.data.loading.split import TensorSplit
from cggm_ray.engine.assembly import new_state
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.phases import measured_split, planned
from cggm_ray.engine.runtime import LocalRuntime, RunConfig
from cggm_ray.engine.state import VALUES, WEIGHTS
from cggm_ray.engine.step import TrainingStep, train_step
from cggm_ray.engine.tracking import read_metrics
from cggm_ray.models.net import MultimodalNet
from cggm_ray.models.sequence import sequence_guides, sequence_net
from cggm_ray.strategies.base import Strategy
from cggm_ray.strategies.registry import STRATEGIES
from cggm_ray.tasks import Classification, Regression, Task
from conftest import SMALL

ACTIVE: dict[str, dict[str, Any]] = {
    "amco": {"amco_sigma": 0.3},
    "greedy": {"greedy_start": 0, "greedy_window": 2},
    "opm": {"opm_warmup": 0, "opm_execute": 1.0},
    "relearning": {"relearning_every": 1, "relearning_samples": 16},
    "valuation": {"valuation_warmup": 1},
}
"""Settings with which a strategy acts within a few steps."""
WIDTHS = {"text": 6, "audio": 4, "vision": 3}
SAMPLES = 22
DROPOUTS = {f"{name}_dropout": 0 for name in ("attn", "relu", "embed", "res", "out")}
SIZE = {"nlevels": 3, "cls_layers": 1, "num_heads": 2, "proj_dim": 8, "batch_size": 5}
Prepare = Callable[[TrainingStep], None]
TIMES = {"seconds", "samples_per_second", "peak_memory"}


class Concatenation(nn.Module):
    """A fusion whose prediction from one modality alone can be written down."""

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        return torch.cat(list(features.values()), 1)


class LinearGuide(nn.Module):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, outputs)

    def forward(self, feature: Tensor, mask: Tensor | None = None) -> HeadOutput:
        return HeadOutput(self.head(feature), feature)


def linear_net(modalities: int = 2, outputs: int = 3, width: int = 4) -> MultimodalNet:
    """Linear encoders of 5 inputs each, a concatenation and a linear head, in float64."""
    torch.manual_seed(3)
    names = "abcdef"[:modalities]
    encoders = {name: nn.Linear(5, width) for name in names}
    return MultimodalNet(encoders, Concatenation(), nn.Linear(width * modalities, outputs)).double()


def linear_inputs(net: MultimodalNet, samples: int = 7) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs by modality and classes."""
    torch.manual_seed(4)
    inputs = {name: torch.randn(samples, 5, dtype=torch.float64) for name in net.encoders}
    return inputs, torch.randint(net.head.out_features, (samples,))


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def problem(kind: str, config: Config) -> tuple[Task, MultimodalNet, dict[str, nn.Module], dict[str, Tensor], Tensor]:
    """The sequence network of the package on random data, in float64."""
    torch.manual_seed(11)
    outputs = 3 if kind == "classification" else 1
    net, guides = (
        sequence_net(config.model, WIDTHS, outputs).double(),
        sequence_guides(config.model, WIDTHS, outputs),
    )
    for guide in guides.values():
        guide.double()
    inputs = {name: torch.randn(SAMPLES, 4, width).double() for name, width in WIDTHS.items()}
    if kind == "classification":
        return Classification(3), net, guides, inputs, torch.randint(3, (SAMPLES,))
    return Regression(), net, guides, inputs, torch.randn(SAMPLES, 1).double()


def begin(
    strategy: Strategy, net: MultimodalNet, split: TensorSplit, config: Config, runtime: LocalRuntime, epoch: int
) -> None:
    """Begins an epoch as the package's own loop does; the split is also the one for validation."""
    measures = strategy.measures(epoch).items()
    measured = {
        name: measured_split(config.train, net, strategy, split, runtime, most and most // (1 + (name == "valid")))
        for name, most in measures
    }
    strategy.begin_epoch(epoch, measured)


def steps(
    kind: str, values: dict[str, Any], runtime: LocalRuntime, number: int = 8, prepare: Prepare | None = None
) -> dict[str, Any]:
    """Steps of the package's own loop; some samples lack a modality. The parameters at the end, and all quantities.

    `prepare` gets the module of a step before the first one.
    """
    config = Config().replace({**DROPOUTS, **SIZE, **ACTIVE.get(values["modulation"], {}), **values})
    task, net, guides, inputs, target = problem(kind, config)
    present = {name: torch.ones(SAMPLES, dtype=torch.bool) for name in WIDTHS}
    present["text"][::5] = present["audio"][1::7] = False
    masks = {name: present[name][:, None].expand(-1, 4).clone() for name in WIDTHS}
    net = STRATEGIES.get(config.modulation.modulation).network_of(net, guides, config.strategy)
    state = new_state(config, net, guides, task, runtime)
    bare = TrainingStep(net, state.strategy, "fp32")
    if prepare is not None:
        prepare(bare)
    step = runtime.wrap(bare)
    seen = []
    split, size = TensorSplit(inputs, target, masks=masks), config.train.batch_size
    while state.step < number:
        begin(state.strategy, net, split, config, runtime, state.epoch)
        step.train()
        order, given = planned(state.strategy, epoch_order(SAMPLES, 1, state.epoch), state.epoch, 1, size)
        for part in slices(order, size, runtime.rank, runtime.world_size, given):
            batch = Batch(
                inputs={name: x[part.index] for name, x in inputs.items()},
                target=target[part.index],
                index=part.index,
                present={name: there[part.index] for name, there in present.items()},
                weight=part.weight,
                masks={name: mask[part.index] for name, mask in masks.items()},
                given=part.given,
            )
            seen.append(
                {
                    k: v.detach().clone()
                    for k, v in train_step(
                        state, step, batch, runtime, accumulate=config.train.accumulate, clip=config.optim.clip
                    ).items()
                }
            )
            state.step += 1
        state.epoch += 1
    parameters = {**net.state_dict(), **{f"strategy.{k}": v for k, v in state.strategy.state_dict().items()}}
    return {"parameters": {k: v for k, v in parameters.items() if isinstance(v, Tensor)}, "quantities": seen}


def _worker(rank: int, world_size: int, folder: str, cases: list[tuple[str, dict[str, Any]]]) -> None:
    runtime = LocalRuntime(Path(folder), RunConfig(no_cuda=True))
    torch.save([steps(kind, values, runtime) for kind, values in cases], Path(folder) / f"{world_size}-{rank}.pt")
    runtime.close()


def in_processes(folder: Path, cases: list[tuple[str, dict[str, Any]]], workers: int) -> list[list[dict[str, Any]]]:
    """`steps` of every case in that many gloo processes: results by rank, then by case."""
    in_group(workers, _worker, str(folder), cases)
    return [torch.load(folder / f"{workers}-{rank}.pt") for rank in range(workers)]


def assert_same(one: dict[str, Any], other: dict[str, Any], rtol: float = 1e-8, *, keys: bool = True) -> None:
    """Parameters and quantities are equal within rounding.

    The softmax of attention cancels the bias of the keys, so its gradient is zero but for rounding, which Adam turns into moves
    where the rounding is larger than its epsilon. `keys` False leaves that third of the bias out; a strategy that holds weights
    near those of the epoch's beginning gives it a gradient then, which is in the gradient norms.
    """
    off = {}
    for name, want in one["parameters"].items():
        # What was never measured is NaN.
        left, right = want.double(), other["parameters"][name].double()
        if not keys and name.endswith("in_proj_bias"):
            left, right = (torch.cat([bias.chunk(3)[0], bias.chunk(3)[2]]) for bias in (left, right))
        most = float(left.nan_to_num().abs().max())
        if not torch.allclose(right, left, rtol=rtol, atol=rtol * most, equal_nan=True):
            off[name] = float((right - left).norm() / left.norm().clamp(min=1e-30))
    assert not off, f"parameters that differ, with their relative distance: {off}"
    for number, (left, right) in enumerate(zip(one["quantities"], other["quantities"], strict=True)):
        for name, want in left.items():
            assert torch.allclose(right[name], want, rtol=1e-6 if keys else 1e-5, atol=1e-9), (
                number,
                name,
                want,
                right[name],
            )


def run(pickle: Path, storage: Path, name: str, *flags: str, recipe: Config | None = None) -> Path:
    """A small local run that must succeed."""
    places = ["--data_path", str(pickle), "--storage_path", str(storage), "--name", name]
    assert main(recipe or Config(), ["--local", *places, *SMALL, *flags]) == 0
    return storage / name


def lines(folder: Path) -> list[dict[str, float | None]]:
    """The records of a run, but for times."""
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(folder)]


def umt_flags(pickle: Path, storage: Path, recipe: Config | None = None, names: str = "text,audio,vision") -> list[str]:
    """Trains a teacher for each modality."""
    for name in names.split(","):
        run(pickle, storage, f"teacher-{name}", "--modalities", name, "--modulation", "none", recipe=recipe)
    return ["--umt_teachers", ",".join(f"teacher-{name}" for name in names.split(","))]


def mslr_flags(
    pickle: Path, storage: Path, recipe: Config | None = None, names: str = "text,audio,vision"
) -> list[str]:
    """A learning rate for each modality."""
    return ["--mslr_lrs", ",".join(f"{name}={1e-3 / (number + 1)}" for number, name in enumerate(names.split(",")))]


def own_rates(folder: Path) -> dict[str, Any]:
    """The same for the network of `problem`."""
    return {"mslr_lrs": [f"{name}={1e-3 / (number + 1)}" for number, name in enumerate(WIDTHS)]}


def drawn_teachers(folder: Path) -> dict[str, Any]:
    """Folders that look like finished runs, with weights that nobody trained, for the network of `problem`."""
    config = Config().replace({**DROPOUTS, **SIZE})
    torch.manual_seed(77)
    net = sequence_net(config.model, WIDTHS, 1).double()
    for name in WIDTHS:
        best = folder / f"teacher-{name}" / "best"
        best.mkdir(parents=True)
        save_file({k: v for k, v in net.state_dict().items() if k.startswith(f"encoders.{name}.")}, best / WEIGHTS)
        (best / VALUES).write_text(json.dumps({"config": config.replace({"modalities": [name]}).to_dict()}))
    return {"umt_teachers": [str(folder / f"teacher-{name}") for name in WIDTHS]}
