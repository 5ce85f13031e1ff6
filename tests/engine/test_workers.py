"""Several gloo processes against one, on the same global batches, through the product's own step."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from groups import in_group
from torch import Tensor, nn

from cggm_ray.core.batch import Batch, HeadOutput
from cggm_ray.data.loading.sampler import epoch_order, slices
from cggm_ray.engine.assembly import new_state
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.runtime import LocalRuntime, RunConfig, all_reduce
from cggm_ray.engine.step import TrainingStep, train_step
from cggm_ray.models.net import MultimodalNet
from cggm_ray.models.sequence import sequence_guides, sequence_net
from cggm_ray.tasks import Classification, Regression, Segmentation, Task

SAMPLES, BATCH, STEPS = 22, 5, 10
MODALITIES = {"text": 6, "audio": 4, "vision": 3}
RULES = [
    {"modulation": "cggm", "coefficients": coefficients, "direction": direction}
    for coefficients, direction in itertools.product(("stable", "paper", "released"), ("gradient", "released", "off"))
]
SCENARIOS = [("regression", rule) for rule in RULES] + [
    ("regression", {"modulation": "none"}),
    ("regression", {"modulation": "cggm-released"}),
    ("classification", {"modulation": "cggm"}),
    ("segmentation", {"modulation": "cggm"}),
]
# One of each rule, and the other tasks.
IN_PARTS = (0, 3, 7, *range(len(RULES), len(SCENARIOS)))


class MapEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).tanh()


class MapFusion(nn.Module):
    def forward(self, features: dict[str, Tensor]) -> Tensor:
        return torch.stack(list(features.values())).sum(0)


class MapGuide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(4, 4, 1)

    def forward(self, feature: Tensor) -> HeadOutput:
        return HeadOutput(self.head(feature), feature)


def problem(kind: str, config: Config) -> tuple[Task, MultimodalNet, dict[str, nn.Module], dict[str, Tensor], Tensor]:
    """Task, network, guides, inputs and targets in float64."""
    torch.manual_seed(11)
    if kind == "segmentation":
        net = MultimodalNet({name: MapEncoder() for name in MODALITIES}, MapFusion(), nn.Conv2d(4, 4, 1))
        inputs = {name: torch.randn(SAMPLES, 1, 5, 5) for name in MODALITIES}
        task, guides = Segmentation(), {name: MapGuide() for name in MODALITIES}
        target = torch.randint(4, (SAMPLES, 5, 5))
    else:
        outputs = 3 if kind == "classification" else 1
        net = sequence_net(config.model, MODALITIES, outputs)
        guides = sequence_guides(config.model, MODALITIES, outputs)
        inputs = {name: torch.randn(SAMPLES, 4, width) for name, width in MODALITIES.items()}
        task = Classification(3) if kind == "classification" else Regression()
        target = torch.randint(3, (SAMPLES,)) if kind == "classification" else torch.randn(SAMPLES, 1).double()
    for module in (net, *guides.values()):
        module.double()
    return task, net, guides, {name: values.double() for name, values in inputs.items()}, target


def run_scenario(kind: str, rule: dict[str, str], runtime: LocalRuntime, accumulate: int = 1) -> dict[str, Any]:
    """Ten steps; the parameters at the end and the coefficients of every step."""
    dropouts = {f"{name}_dropout": 0 for name in ("attn", "relu", "embed", "res", "out")}
    size = {"nlevels": 3, "cls_layers": 1, "num_heads": 2, "proj_dim": 8, "batch_size": BATCH, "accumulate": accumulate}
    config = Config().replace({**rule, **dropouts, **size})
    task, net, guides, inputs, target = problem(kind, config)
    state = new_state(config, net, guides, task, runtime)
    step = runtime.wrap(TrainingStep(net, state.strategy, "fp32"))
    coefficients = []
    while state.step < STEPS:
        order = epoch_order(SAMPLES, 1, state.epoch)
        for part in slices(order, BATCH, runtime.rank, runtime.world_size):
            batch = Batch(
                inputs={name: values[part.index] for name, values in inputs.items()},
                target=target[part.index],
                index=part.index,
                weight=part.weight,
            )
            values = train_step(state, step, batch, runtime, accumulate=config.train.accumulate, clip=config.optim.clip)
            coefficients.append(values.get("coefficient", torch.zeros(0)))
            state.step += 1
        state.epoch += 1
    parameters = {**net.state_dict(), **{f"guide.{k}": v for k, v in state.strategy.state_dict().items()}}
    return {
        "parameters": {name: value for name, value in parameters.items() if isinstance(value, Tensor)},
        "coefficients": torch.stack(coefficients),
    }


def what_is_reduced(runtime: LocalRuntime) -> dict[str, float]:
    """Largest deviation, by parameter, of what enters DDP's all-reduce from the modulated local gradient."""
    config = Config().replace({"nlevels": 3, "cls_layers": 1, "num_heads": 2, "proj_dim": 8, "attn_dropout": 0})
    config = config.replace({f"{name}_dropout": 0 for name in ("relu", "embed", "res", "out")})
    task, net, guides, inputs, target = problem("regression", config)
    state = new_state(config, net, guides, task, runtime)
    step = TrainingStep(net, state.strategy, "fp32")
    rows = torch.arange(runtime.rank, SAMPLES, runtime.world_size)
    batch = Batch(inputs={k: v[rows] for k, v in inputs.items()}, target=target[rows], index=rows)

    memory = {name: value.clone() for name, value in state.strategy.coefficients.named_buffers()}
    features, memo = state.strategy.transform(net.encode(batch.inputs), batch)
    task_loss, extra, _ = state.strategy.terms(net.fuse(features), batch, memo)
    scale_M = state.strategy.diagnostics["coefficient"]
    memo.gates.open(torch.ones_like(scale_M))
    named = dict(net.named_parameters())
    plain = torch.autograd.grad(task_loss + extra, list(named.values()))
    want = {}
    for name, grad in zip(named, plain, strict=True):
        owner = next((i for i, m in enumerate(MODALITIES) if name.startswith(f"encoders.{m}.")), None)
        want[name] = grad if owner is None else grad * scale_M[owner]

    for name, value in state.strategy.coefficients.named_buffers():
        value.copy_(memory[name])
    seen: dict[str, Tensor] = {}
    names = {id(parameter): name for name, parameter in named.items()}

    # DDP reads the annotations of a hook and wants its own types, not their names as text.
    def record(_, bucket):  # noqa: ANN001, ANN202
        for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
            if id(parameter) in names:
                seen[names[id(parameter)]] = gradient.clone()
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(all_reduce(bucket.buffer()) / runtime.world_size)
        return future

    ddp = runtime.wrap(step)
    ddp.register_comm_hook(None, record)
    task_loss, extra, _ = ddp(batch)
    (task_loss + extra).backward()
    assert seen.keys() == want.keys()
    return {name: float((seen[name] - want[name]).abs().max() / want[name].abs().max()) for name in want}


def worker(rank: int, world_size: int, folder: str) -> None:
    runtime = LocalRuntime(Path(folder), RunConfig(no_cuda=True))
    results: dict[str, Any] = {str(i): run_scenario(kind, rule, runtime) for i, (kind, rule) in enumerate(SCENARIOS)}
    if world_size < 3:
        results |= {f"parts {i}": run_scenario(*SCENARIOS[i], runtime, 2) for i in IN_PARTS}
    if world_size == 2:
        results["reduced"] = what_is_reduced(runtime)
    torch.save(results, Path(folder) / f"{world_size}-{rank}.pt")
    runtime.close()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], dict[str, Any]]:
    """Results of every scenario by (workers, rank)."""
    folder = tmp_path_factory.mktemp("workers")
    found = {}
    for world_size in (1, 2, 3):
        in_group(world_size, worker, str(folder))
        for rank in range(world_size):
            found[world_size, rank] = torch.load(folder / f"{world_size}-{rank}.pt")
    return found


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("scenario", range(len(SCENARIOS)), ids=[f"{k}-{'-'.join(r.values())}" for k, r in SCENARIOS])
def test_workers_follow_one(results: dict[tuple[int, int], dict[str, Any]], scenario: int, workers: int) -> None:
    one = results[1, 0][str(scenario)]
    first = results[workers, 0][str(scenario)]
    assert_equal(one, first)
    for rank in range(1, workers):
        other = results[workers, rank][str(scenario)]
        assert torch.equal(other["coefficients"], first["coefficients"]), "coefficients differ between ranks"
        for name, value in first["parameters"].items():
            assert torch.equal(other["parameters"][name], value), f"{name} differs between ranks"


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("scenario", IN_PARTS, ids=["-".join(SCENARIOS[i][1].values()) for i in IN_PARTS])
def test_a_batch_in_parts_is_the_whole_batch(
    results: dict[tuple[int, int], dict[str, Any]], scenario: int, workers: int
) -> None:
    assert_equal(results[1, 0][str(scenario)], results[workers, 0][f"parts {scenario}"])


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    off = {
        name: float((other["parameters"][name] - want).norm() / want.norm().clamp(min=1e-30))
        for name, want in one["parameters"].items()
        if not torch.allclose(other["parameters"][name], want, rtol=1e-9, atol=1e-9 * float(want.abs().max()))
    }
    assert not off, f"parameters that differ, with their relative distance: {off}"


def test_what_enters_the_all_reduce_is_modulated(results: dict[tuple[int, int], dict[str, Any]]) -> None:
    for rank in (0, 1):
        off = {name: value for name, value in results[2, rank]["reduced"].items() if value > 1e-9}
        # The key third of the packed bias has a zero gradient by definition; rounding is all there is in it.
        assert not off, f"parameters whose reduced gradient is not the modulated one: {off}"
