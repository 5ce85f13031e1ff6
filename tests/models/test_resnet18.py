"""ResNet-18: torch's own layers, frames one by one, missing modalities, and two processes against one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

from cggm_ray import CGGM, Batch, Classification
from cggm_ray.core.kinds import FRAMES, IMAGE, feature_shape
from cggm_ray.core.reduction import SINGLE_WORKER
from cggm_ray.data.loading.sampler import slices
from cggm_ray.engine.runtime import all_reduce, data_parallel
from cggm_ray.engine.step import TrainingStep, backward
from cggm_ray.models.batchnorm import share_global_batch
from cggm_ray.models.composed.network import ComposedOptions
from cggm_ray.models.composed.registry import EncoderPlan
from cggm_ray.models.composed.resnet18 import ResNet18Encoder
from cggm_ray.models.net import MultimodalNet
from cggm_ray.models.registry import NETWORKS, NetworkPlan
from cggm_ray.models.settings import ModelConfig

SIZES = {"depth": 2, "heads": 1, "dropout": 0.0, "input_dropout": 0.0, "linear_path": False}
SHAPES = {"audio": (33, 20), "vision": (2, 3, 24, 24)}
SAMPLES = 5


def encoder(shape: tuple[int, ...], kind: str, inner: int = 4, width: int = 32) -> ResNet18Encoder:
    torch.manual_seed(1)
    plan = EncoderPlan(shape=shape, kind=kind, inner_width=inner, width=width, **SIZES)  # type: ignore[arg-type]
    return ResNet18Encoder(plan).double()


def by_hand(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """The network of the paper, written with torch's functions."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.batch_norm(x, None, None, weights[f"{name}.weight"], weights[f"{name}.bias"], training=True)

    x = F.relu(norm(F.conv2d(x, weights["conv1.weight"], stride=2, padding=3), "bn1"))
    x = F.max_pool2d(x, 3, 2, 1)
    for number in range(8):
        name, stride = f"blocks.{number}", 2 if number in (2, 4, 6) else 1
        h = F.relu(norm(F.conv2d(x, weights[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn1"))
        h = norm(F.conv2d(h, weights[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
        if stride == 2:
            x = norm(F.conv2d(x, weights[f"{name}.downsample.0.weight"], stride=2), f"{name}.downsample.1")
        x = F.relu(x + h)
    return x.mean((2, 3))


def test_is_the_network_of_the_paper() -> None:
    net = encoder((3, 40, 56), IMAGE)
    x = torch.randn(3, 3, 40, 56, dtype=torch.float64)
    torch.testing.assert_close(net(x)[:, 0], by_hand(x, dict(net.named_parameters())))
    whole = ResNet18Encoder(EncoderPlan(shape=(3, 224, 224), kind=IMAGE, inner_width=64, width=512, **SIZES))  # type: ignore[arg-type]
    # 11,689,512 of torchvision's resnet18, without the 513,000 of its layer for 1,000 classes.
    assert sum(parameter.numel() for parameter in whole.parameters()) == 11_176_512


def test_frames_are_seen_one_by_one_and_averaged() -> None:
    net = encoder((2, 3, 24, 24), FRAMES)
    x = torch.randn(3, 2, 3, 24, 24, dtype=torch.float64)
    expected = by_hand(x.flatten(0, 1), dict(net.named_parameters())).unflatten(0, (3, 2)).mean(1)
    torch.testing.assert_close(net(x)[:, 0], expected)
    assert feature_shape(FRAMES, (2, 3, 24, 24)) == (1, 3, 1, 1)


@pytest.mark.parametrize(("shape", "kind"), [((3, 24, 24), IMAGE), ((2, 3, 24, 24), FRAMES)])
def test_samples_without_the_modality_do_not_count(shape: tuple[int, ...], kind: str) -> None:
    """Statistics are those of the others; a batch in which no sample has the modality moves nothing."""
    alone, among = encoder(shape, kind), encoder(shape, kind)
    x = torch.randn(5, *shape, dtype=torch.float64)
    there = torch.tensor([[True], [False], [True], [True], [True]])
    shared = share_global_batch(SINGLE_WORKER, among)
    # The last one fills a place.
    with shared.part(torch.tensor([1.0, 1, 1, 1, 0])):
        found = among(x * there.reshape(-1, *[1] * len(shape)), there)
    torch.testing.assert_close(found[[0, 2, 3]], alone(x[[0, 2, 3]]))
    before = {name: value.clone() for name, value in among.named_buffers() if "running" in name}
    torch.testing.assert_close(before, {name: v for name, v in alone.named_buffers() if "running" in name})
    none = among(torch.zeros_like(x), torch.zeros(5, 1, dtype=torch.bool))
    assert torch.isfinite(none).all()
    for name, value in among.named_buffers():
        if name in before:
            assert torch.equal(value, before[name])


def network() -> tuple[MultimodalNet, dict[str, nn.Module]]:
    torch.manual_seed(3)
    options = ComposedOptions(encoders=("*:resnet18",), width=32, inner_width=4, heads=1, dropout=0.0)
    net, guides = NETWORKS.get("composed").build(
        NetworkPlan(
            shapes=SHAPES, kinds={"audio": IMAGE, "vision": FRAMES}, outputs=3, sizes=ModelConfig(), options=options
        )
    )
    return net.double(), {name: guide.double() for name, guide in guides.items()}


def two_steps(rank: int, world_size: int) -> dict[str, Tensor]:
    """Two optimizer steps on a global batch that is divided over the workers; everything that they left."""
    net, guides = network()
    inputs = {name: torch.randn(SAMPLES, *shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    # Samples that lack a modality; the second worker has none of the first step's sounds.
    there = {"audio": torch.arange(SAMPLES) < 3, "vision": torch.arange(SAMPLES) != 1}
    target = torch.randint(3, (SAMPLES,))
    reduce = SINGLE_WORKER if world_size == 1 else all_reduce
    strategy = CGGM(guides, task=Classification(3), reduce=reduce, lr=0.01)
    step: nn.Module = TrainingStep(net, strategy, "fp32")
    step = step if world_size == 1 else data_parallel(step, torch.device("cpu"))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    (part,) = slices(torch.arange(SAMPLES), SAMPLES, rank, world_size)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        masks = {name: flags[part.index, None] for name, flags in there.items()}
        batch = Batch(
            inputs={name: values[part.index] for name, values in inputs.items()},
            target=target[part.index],
            index=part.index,
            weight=part.weight,
            masks=masks,
            present={name: mask[:, 0] for name, mask in masks.items()},
        )
        loss, _, _ = backward(step, batch, 1, part.largest)
        optimizer.step()
        strategy.step()
        losses.append(loss)
    state = {name.removeprefix("module."): value for name, value in step.state_dict().items()}
    return {"losses": torch.stack(losses), **{k: v for k, v in state.items() if isinstance(v, Tensor)}}


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.save(two_steps(rank, 2), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_follow_one(tmp_path: Path) -> None:
    """In double precision to 1e-9, weights and running statistics, with samples that lack modalities."""
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)
    want = two_steps(0, 1)
    for rank in range(2):
        got = torch.load(tmp_path / f"{rank}.pt")
        assert got.keys() == want.keys()
        for name, value in want.items():
            torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
