"""Batch norm over the global batch: two processes must do what one does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from cggm_ray import CGGM, Batch, Segmentation
from cggm_ray.core.reduction import SINGLE_WORKER, Reduction
from cggm_ray.data.loading.sampler import slices
from cggm_ray.engine.runtime import all_reduce, data_parallel
from cggm_ray.engine.step import TrainingStep, backward
from cggm_ray.models.batchnorm import BatchNorm2d, share_global_batch
from cggm_ray.models.deeplab import DeepLab, DeepLabConfig, deeplab_guides
from cggm_ray.models.resnet import ResNetConfig

SMALL = DeepLabConfig(
    backbone=ResNetConfig(blocks=(1, 1, 1, 2), bottleneck=False, width=4), channels=8, low_channels=4, rates=(1, 2)
)
NAMES = ("flair", "t1ce")


def doubled(x: Tensor) -> Tensor:
    """The sum over two workers that hold the same."""
    return 2 * x


@pytest.mark.parametrize("shape", [(3, 5, 4, 6), (2, 3, 1, 1)])
def test_agrees_with_torch(shape: tuple[int, ...]) -> None:
    """Over two workers that hold the same half, values, gradients and running statistics are torch's for the whole."""
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64) * 3 + 2
    upstream = torch.randn(shape, dtype=torch.float64)
    ours, theirs = BatchNorm2d(shape[1]).double(), nn.BatchNorm2d(shape[1]).double()
    for norm in (ours, theirs):
        nn.init.uniform_(norm.weight, 0.5, 2, generator=torch.Generator().manual_seed(1))
    shared = share_global_batch(Reduction(doubled, 2), ours)
    half, whole = x.clone().requires_grad_(), torch.cat([x, x]).requires_grad_()
    for _ in range(2):
        with shared.part(None):
            got = ours(half)
        want = theirs(whole)
    torch.testing.assert_close(got, want[: len(x)])
    got.backward(upstream)
    want.backward(torch.cat([upstream, upstream]))
    torch.testing.assert_close(half.grad, whole.grad[: len(x)])
    torch.testing.assert_close(2 * ours.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(2 * ours.bias.grad, theirs.bias.grad)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))


def test_a_sample_that_only_fills_a_place_changes_nothing() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    counted, filled = BatchNorm2d(2).double(), BatchNorm2d(2).double()
    want = counted(x[:2])
    with share_global_batch(SINGLE_WORKER, filled).part(torch.tensor([1.0, 1.0, 0.0])):
        got = filled(x)
    torch.testing.assert_close(got[:2], want)
    torch.testing.assert_close(filled.running_var, counted.running_var)


def test_a_single_value_is_normalised_to_the_bias() -> None:
    norm = BatchNorm2d(2)
    nn.init.constant_(norm.bias, 0.25)
    assert norm(torch.tensor([[[[3.0]], [[-7.0]]]])).flatten().tolist() == [0.25, 0.25]
    assert torch.isfinite(norm.running_var).all()


CASES = ((1, 1), (3, 1), (3, 2))
"""Samples of the global batch, and the parts in which every worker takes its share."""


def two_steps(rank: int, world_size: int, samples: int, parts: int) -> dict[str, Tensor]:
    """Two optimizer steps on a global batch, divided over the workers; everything that the second one left."""
    torch.manual_seed(3)
    net, guides = DeepLab(SMALL, NAMES, 4).double(), deeplab_guides(SMALL, NAMES, 4)
    for module in (net, *guides.values()):
        module.double()
        for part in module.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
    inputs = {name: torch.randn(samples, 1, 32, 48, dtype=torch.float64) for name in NAMES}
    target = torch.randint(4, (samples, 32, 48))
    reduce = SINGLE_WORKER if world_size == 1 else all_reduce
    strategy = CGGM(guides, task=Segmentation(), reduce=reduce, lr=0.01)
    step: nn.Module = TrainingStep(net, strategy, "fp32")
    step = step if world_size == 1 else data_parallel(step, torch.device("cpu"))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    # Two workers take samples 0 and 2 in the first part, and sample 1 in the second one; so does the single process.
    order = torch.tensor([0, 2, 1]) if parts == 2 and world_size == 1 else torch.arange(samples)
    (part,) = slices(order, samples, rank, world_size)
    for _ in range(2):
        optimizer.zero_grad()
        batch = Batch(
            inputs={name: values[part.index] for name, values in inputs.items()},
            target=target[part.index],
            index=part.index,
            weight=part.weight,
        )
        loss, _, _ = backward(step, batch, parts, part.largest)
        gradients = {f"grad {name}": p.grad.clone() for name, p in net.named_parameters()}
        optimizer.step()
        strategy.step()
    state = {name: value for name, value in step.state_dict().items() if isinstance(value, Tensor)}
    return {
        "loss": loss,
        **gradients,
        **{name.removeprefix("module."): value for name, value in state.items()},
    }


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.set_num_threads(1)
    for samples, parts in CASES:
        torch.save(two_steps(rank, 2, samples, parts), f"{folder}/{samples}-{parts}-{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_follow_one(tmp_path: Path) -> None:
    """Three samples are divided into two and one; of a single sample the second worker has a copy of weight 0.

    So it has in the second part of its one sample, where the first worker has two.
    """
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)
    for samples, parts in CASES:
        want = two_steps(0, 1, samples, parts)
        for rank in range(2):
            got = torch.load(tmp_path / f"{samples}-{parts}-{rank}.pt")
            assert got.keys() == want.keys()
            for name, value in want.items():
                torch.testing.assert_close(got[name], value, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


def test_evaluation_mode_keeps_the_statistics_that_its_backward_pass_needs() -> None:
    """A strategy asks in evaluation mode before the pass in training mode that moves the statistics."""
    torch.manual_seed(0)
    norm = BatchNorm2d(3).double()
    norm.running_var.copy_(torch.tensor([0.5, 2.0, 3.0]))
    before = norm.running_var.clone()
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    watched = norm.eval()(x)
    norm.train()(10 * torch.randn(4, 3, 2, 2, dtype=torch.float64))
    assert not torch.allclose(norm.running_var, before)
    watched.sum().backward()
    torch.testing.assert_close(x.grad, (before + norm.eps).rsqrt()[:, None, None].expand(4, 3, 2, 2))
