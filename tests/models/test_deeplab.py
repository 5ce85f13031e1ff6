"""DeepLab: shapes, gates on both levels, the head's gradient through the resizing; volume metrics."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from cggm_ray import CGGM, DataError, Segmentation
from cggm_ray.core.batch import Batch
from cggm_ray.core.reduction import SINGLE_WORKER
from cggm_ray.models.batchnorm import share_global_batch
from cggm_ray.models.deeplab import DeepLab, DeepLabConfig, deeplab_guides
from cggm_ray.models.released import guide_name, net_name
from cggm_ray.models.resnet import BACKBONES, ResNetConfig
from cggm_ray.strategies.coefficients import CoefficientRule, Coefficients
from cggm_ray.strategies.direction import weight_gradient_sums
from cggm_ray.tasks.metrics import DiceMetrics, SliceDiceMetrics, VolumeDiceMetrics

SMALL = DeepLabConfig(
    backbone=ResNetConfig(blocks=(1, 1, 1, 2), bottleneck=False, width=4), channels=8, low_channels=4, rates=(1, 2)
)
NAMES = ("flair", "t1")


@pytest.mark.parametrize(("backbone", "low"), [("resnet18", 64), ("resnet50", 256), ("resnet101", 256)])
def test_shapes_at_output_stride_16(backbone: str, low: int) -> None:
    with torch.device("meta"):
        config = DeepLabConfig(backbone=BACKBONES[backbone])
        net, guides = DeepLab(config, NAMES, 4), deeplab_guides(config, NAMES, 4)
        features = net.encode({name: torch.empty(2, 1, 160, 240) for name in NAMES})
        for high_level, low_level in features.values():
            assert high_level.shape == (2, 256, 10, 15)
            assert low_level.shape == (2, low, 40, 60)
        for head in (net.fuse(features), *(guides[name](features[name]) for name in NAMES)):
            assert head.logits.shape == (2, 4, 160, 240)
            assert head.raw.shape == (2, 4, 40, 60)
            assert head.hidden.shape == (2, 256, 40, 60)


def test_an_input_that_cannot_be_restored_in_size() -> None:
    encoder = DeepLab(SMALL, NAMES, 4).encoders["t1"]
    with pytest.raises(DataError, match=r"images of \[18, 32\] pixels; expected multiples of 4"):
        encoder(torch.zeros(1, 1, 18, 32))


def small_step() -> tuple[DeepLab, CGGM, dict[str, torch.Tensor], torch.Tensor]:
    torch.manual_seed(0)
    net = DeepLab(SMALL, NAMES, 4).double()
    guides = {name: guide.double() for name, guide in deeplab_guides(SMALL, NAMES, 4).items()}
    for module in (net, *guides.values()):
        for part in module.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
    inputs = {name: torch.randn(2, 1, 32, 48, dtype=torch.float64) for name in NAMES}
    return net, CGGM(guides, task=Segmentation(), direction="off"), inputs, torch.randint(4, (2, 32, 48))


class Given(CoefficientRule):
    """A rule whose coefficients the test gives."""

    def __init__(self, scale: list[float]) -> None:
        super().__init__(len(scale), rho=1.0)
        self.scale_M = torch.tensor(scale, dtype=torch.float64)

    def forward(self, utility_M: torch.Tensor, seen_M: torch.Tensor) -> Coefficients:
        return Coefficients(self.scale_M, self.scale_M)


def encoder_gradients(scale: list[float]) -> dict[str, list[torch.Tensor]]:
    net, strategy, inputs, target = small_step()
    strategy.coefficients = Given(scale)
    head = net.fuse(strategy.modulate(net.encode(inputs), target))
    loss, extra = strategy.losses(head, target)
    (loss + extra).backward()
    return {name: [p.grad for p in encoder.parameters()] for name, encoder in net.encoders.items()}


def test_both_feature_levels_are_gated() -> None:
    """A gate scales the gradient of every parameter of its encoder, also of those that only low-level features reach."""
    plain, scaled = encoder_gradients([1.0, 1.0]), encoder_gradients([0.0, -2.5])
    for gradient in scaled["flair"]:
        assert not gradient.any()
    for before, after in zip(plain["t1"], scaled["t1"], strict=True):
        assert before.any()
        torch.testing.assert_close(after, -2.5 * before)


def test_head_gradient_in_closed_form_reaches_through_the_resizing() -> None:
    net, _, inputs, target = small_step()
    head, task = net.fuse(net.encode(inputs)), Segmentation()
    batch = Batch.of_loop(target)
    slopes = task.sum_slopes(task.sums(head.logits, batch))
    closed = torch.einsum("j,jcd->cd", slopes, weight_gradient_sums(task, head, batch))
    (want,) = torch.autograd.grad(task.loss(head.logits, target), net.head.weight, retain_graph=True)
    torch.testing.assert_close(closed, want.flatten(1))
    # The direction term differentiates it once more.
    assert all(
        gradient.any() for gradient in torch.autograd.grad(closed.square().sum(), [head.hidden, net.head.weight])
    )


def test_every_parameter_has_a_released_name() -> None:
    names = ("flair", "t1ce", "t1", "t2")
    assert net_name("backbone2.layer1.0.conv1.weight", names) == "encoders.t1ce.backbone.layer1.0.conv1.weight"
    assert net_name("aspp4.aspp3.bn.bias", names) == "encoders.t2.aspp.aspp3.bn.bias"
    assert net_name("decoder.last_conv.7.weight", names) == "head.weight"
    assert net_name("decoder.last_conv.3.weight", names) == "fusion.last_conv.3.weight"
    assert guide_name("decoder3.last_conv.7.bias", names) == "t1.head.bias"
    assert guide_name("decoder1.condconv1.weight", names) == "flair.decoder.condconv1.weight"


def one_hot(labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.one_hot(labels, 4).movedim(-1, 1).float()


def slices_of(target: torch.Tensor, group: torch.Tensor) -> Batch:
    return dataclasses.replace(Batch.of_loop(target), group=group)


def test_volume_dice_by_hand() -> None:
    """Slices of three volumes in two batches: a third of a region hit, an invented region, and nothing at all."""
    truth, said = torch.zeros(6, 2, 2, dtype=torch.long), torch.zeros(6, 2, 2, dtype=torch.long)
    truth[0, 0, :], truth[1, 0, 0], said[0, 0, 0] = 3, 3, 3
    said[2, 0, 0] = 2
    group = torch.tensor([0, 0, 1, 1, 2, 2])
    metrics = [VolumeDiceMetrics(3) for _ in range(2)]
    for part, rows in zip(metrics, ([0, 3, 4], [1, 2, 5]), strict=True):
        part.update(one_hot(said[rows]), slices_of(truth[rows], group[rows]))
    sums = metrics[0].sums + metrics[1].sums
    assert metrics[0].per_volume(sums).tolist() == [[0.5, 0.5, 0.5], [1, 1, 0], [1, 1, 1]]
    got = metrics[0].compute(sums)
    assert got["dice_et"] == pytest.approx(2.5 / 3)
    assert got["dice_wt"] == pytest.approx(1.5 / 3)
    assert got["dice_mean"] == pytest.approx(6.5 / 9)


def test_slice_dice_counts_every_volume_once() -> None:
    torch.manual_seed(0)
    truth, said = torch.randint(4, (2, 5, 8, 8))
    metrics = SliceDiceMetrics(3)
    weight = torch.tensor([1, 1, 1, 1, 0.0])
    metrics.update(one_hot(said), dataclasses.replace(slices_of(truth, torch.tensor([0, 0, 0, 2, 1])), weight=weight))
    volumes = []
    for rows in ([0, 1, 2], [3]):
        single = DiceMetrics()
        single.update(one_hot(said[rows]), Batch.of_loop(truth[rows]))
        volumes.append(single.compute(single.sums))
    for name, value in metrics.compute(metrics.sums).items():
        assert value == pytest.approx((volumes[0][name] + volumes[1][name]) / 2)


@pytest.mark.parametrize("metrics", [VolumeDiceMetrics(1), SliceDiceMetrics(1)])
def test_slices_need_the_number_of_their_volume(metrics: VolumeDiceMetrics | SliceDiceMetrics) -> None:
    with pytest.raises(DataError, match=r"expected Batch\.group"):
        metrics.update(torch.zeros(1, 4, 2, 2), Batch.of_loop(torch.zeros(1, 2, 2, dtype=torch.long)))


@pytest.mark.parametrize("weighted", [False, True])
def test_activations_that_are_computed_again_change_nothing(weighted: bool) -> None:
    weight = torch.tensor([1.0, 1.0, 0.0]) if weighted else None
    inputs = {name: torch.randn(3, 1, 32, 32, dtype=torch.float64) for name in NAMES}
    seen = []
    for recompute in (False, True):
        torch.manual_seed(0)
        net = DeepLab(dataclasses.replace(SMALL, recompute=recompute), NAMES, 4).double()
        with share_global_batch(SINGLE_WORKER, net).part(weight):
            loss = net.fuse(net.encode(inputs)).logits.square().mean()
        # The repetition comes when the context of the batch is left.
        loss.backward()
        seen.append((loss.detach(), {**dict(net.named_buffers()), **{n: p.grad for n, p in net.named_parameters()}}))
    (first, kept), (second, again) = seen
    assert torch.equal(first, second)
    for name, value in kept.items():
        # Sums are shifted by the running mean, which has moved meanwhile: equal but for rounding.
        torch.testing.assert_close(
            again[name],
            value,
            rtol=1e-8,
            atol=1e-10 * float(value.abs().max()),
            msg=lambda text, name=name: f"{name}: {text}",
        )
