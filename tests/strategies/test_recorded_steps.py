"""Steps of strategies against those of official code, on a small model, by numbers that were recorded once.

The files of `tests/recorded` name the repository, the commit and the file whose functions took the steps. Both sides have
linear encoders, features side by side, plain gradient descent and the same numbers to begin with, which `Problem` draws. Where
official code reads the prediction of one modality off the fused layer, the guide here is a part of that layer.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from strategy_cases import Concatenation, LinearGuide
from torch import Tensor, nn

from cggm_ray import Classification, HeadOutput, Regression
from cggm_ray.core.batch import Batch
from cggm_ray.models.ensemble import ensemble_net
from cggm_ray.models.net import MultimodalNet
from cggm_ray.strategies import CML, LFM, MBSD, MLA, MLB, MMCosine, MultiLoss, Strategy
from cggm_ray.strategies.features import as_in_inference
from cggm_ray.strategies.mla import MLAOptions
from cggm_ray.strategies.mmcosine import MMCosineOptions
from cggm_ray.strategies.registry import STRATEGIES

STEPS, RATE = 6, 0.1
TASK = Classification(3)


def recorded(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(__file__).parents[1] / "recorded" / f"{name}.json").read_text())
    return found


class Part(nn.Module):
    """The guide that official code makes of the fused layer: the columns of one modality, and its share of the bias."""

    def __init__(self, head: nn.Linear, index: int, modalities: int) -> None:
        super().__init__()
        # In a tuple: the layer is the network's.
        self._head, self._index, self._modalities = (head,), index, modalities

    def forward(self, feature: Tensor) -> HeadOutput:
        (head,) = self._head
        weight = head.weight.chunk(self._modalities, 1)[self._index]
        return HeadOutput(nn.functional.linear(feature, weight, head.bias / self._modalities), feature)


class Problem:
    """Twelve samples, and the networks at the beginning, float64."""

    def __init__(self, modalities: int = 2, width: int = 4, classes: int = 3, *, values: bool = False) -> None:
        rng = np.random.default_rng(7)

        def draw(*shape: int) -> Tensor:
            return torch.from_numpy(rng.standard_normal(shape))

        names = "abc"[:modalities]
        self.inputs = {name: draw(12, 5) for name in names}
        self.target = draw(12)[:, None] if values else torch.from_numpy(rng.integers(classes, size=12))
        encoders = {name: linear(draw(width, 5) / 2, draw(width) / 2) for name in names}
        head = linear(draw(classes, width * modalities) / width**0.5, draw(classes) / 2)
        self.net = MultimodalNet(encoders, Concatenation(), head)
        self.guides: dict[str, nn.Module] = {}
        for name in names:
            guide = LinearGuide(width, classes)
            guide.head = linear(draw(classes, width) / 2, draw(classes) / 2)
            self.guides[name] = guide
        self.parts: dict[str, nn.Module] = {name: Part(head, i, modalities) for i, name in enumerate(names)}

    def take(self, balance: Strategy, net: MultimodalNet | None = None) -> list[float]:
        """Steps of a loop of one's own; their losses."""
        net = self.net if net is None else net
        optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
        losses = []
        for _ in range(STEPS * balance.turns):
            optimizer.zero_grad()
            head = net.fuse(balance.modulate(net.encode(self.inputs), self.target))
            task_loss, extra = balance.losses(head, self.target)
            loss = task_loss + extra
            loss.backward()
            balance.adjust()
            optimizer.step()
            balance.step()
            losses.append(loss.item())
        return losses

    def assert_like(self, want: Mapping[str, Any], net: MultimodalNet, guide: nn.Module | None = None) -> None:
        tensors = {"encoder_a": net.encoders["a"].weight, "head": getattr(net.head, "weight", None)}
        tensors["guide_a"] = None if guide is None else guide.head.weight
        compared = [name for name in tensors if name in want]
        for name in compared:
            found = tensors[name].detach().flatten()[: len(want[name])]
            np.testing.assert_allclose(found, want[name], rtol=1e-9, atol=1e-11, err_msg=name)
        assert compared


class Squares(Regression):
    """The mean squared error, as the official code of MLB has it."""

    def sums(self, logits: Tensor, batch: Batch) -> Tensor:
        w = batch.sample_weights()
        return torch.stack([w @ (logits - batch.target).square()[:, 0], w.sum()])


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0]).double()
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    # A part of the fused layer has no parameter of its own, and an optimizer must have one.
    return torch.optim.SGD([nn.Parameter(torch.zeros(1)), *parameters], lr=RATE)


@pytest.mark.parametrize("modalities", [2, 3])
def test_mbsd(modalities: int) -> None:
    problem, want = Problem(modalities), recorded(f"mbsd_{modalities}")
    losses = problem.take(MBSD(problem.parts, task=TASK, optimizer=sgd))
    np.testing.assert_allclose(losses, want["losses"], rtol=1e-9)
    problem.assert_like(want, problem.net)


@pytest.mark.parametrize("modalities", [2, 3])
def test_cml_of_the_benchmark(modalities: int) -> None:
    problem, want = Problem(modalities), recorded(f"cml_{modalities}")
    names = tuple(problem.inputs)

    def make(seed: int) -> CML:
        predict = as_in_inference(problem.net)
        return CML(names, predict, task=TASK, weight=want["lambda"], reading="benchmark", seed=seed)

    balance = next(one for one in map(make, range(100)) if one.removed == want["removed"])
    np.testing.assert_allclose(problem.take(balance), want["losses"], rtol=1e-9)
    problem.assert_like(want, problem.net)


def test_released_cml() -> None:
    """Its confidences are those of distances between samples; from there on it is the same rule."""
    want, rng = recorded("cml_released"), np.random.default_rng(11)
    target = torch.from_numpy(rng.integers(3, size=12))
    vectors = [torch.from_numpy(rng.standard_normal((12, 4)) * 1.5).requires_grad_() for _ in range(want["views"])]
    classes = nn.functional.one_hot(target, 3).double()
    logits = [((h @ h.T).fill_diagonal_(0) @ classes) / classes.sum(0) for h in vectors]
    balance = CML("abc", lambda *given: HeadOutput(logits[0], logits[0]), task=TASK, reading="released")
    loss = sum(balance._growth(one, other, target).sum() for one, other in itertools.pairwise(logits))
    loss.backward()
    assert loss.item() == pytest.approx(want["loss"], rel=1e-10)
    for vector, gradient in zip(vectors, want["gradients"], strict=True):
        np.testing.assert_allclose(vector.grad.flatten(), gradient, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("modalities", "kind"), [(2, "classes"), (3, "classes"), (3, "values")])
def test_mlb(modalities: int, kind: str) -> None:
    values = kind == "values"
    problem, want = Problem(modalities, classes=1 if values else 3, values=values), recorded(f"mlb_{modalities}_{kind}")
    balance = MLB(problem.guides, task=Squares() if values else TASK, alpha=want["alpha"], optimizer=sgd)
    problem.take(balance)
    assert float((balance.diagnostics["coefficient"] - 1).abs().max()) > 0.01
    problem.assert_like(want, problem.net, problem.guides["a"])


def test_multiloss() -> None:
    """Official code of MLB with its coefficients switched off."""
    problem, want = Problem(), recorded("multiloss")
    balance = MultiLoss(problem.guides, task=TASK, weights={"a": 1.0, "b": 1.0}, optimizer=sgd)
    np.testing.assert_allclose(problem.take(balance), want["losses"], rtol=1e-9)
    problem.assert_like(want, problem.net, problem.guides["a"])


def test_mmcosine() -> None:
    problem, want = Problem(width=512), recorded("mmcosine")
    columns = problem.net.head.weight.detach().chunk(2, 1)
    for guide, weight in zip(problem.guides.values(), columns, strict=True):
        guide.head = linear(weight, torch.zeros(3).double())
    info = STRATEGIES.get("mmcosine")
    net = info.network_of(problem.net, problem.guides, MMCosineOptions(mmcosine_scale=want["scale"]))
    np.testing.assert_allclose(problem.take(MMCosine(task=TASK), net), want["losses"], rtol=1e-9)
    problem.assert_like({"encoder_a": want["encoder_a"]}, net)
    weight = problem.guides["a"].head.weight.detach()
    np.testing.assert_allclose(weight.flatten()[:40], want["head"], rtol=1e-9)


def test_lfm() -> None:
    problem, want = Problem(), recorded("lfm")
    net = ensemble_net(problem.net, problem.guides, mean=True)
    problem.take(LFM(task=TASK, share=want["share"]), net)
    problem.assert_like(want, net, problem.guides["a"])
    balance = LFM(task=TASK)
    for epoch in range(200):
        if str(epoch) in want["fitted"]:
            share, alignment = want["fitted"][str(epoch)]
            assert float(balance.share) == pytest.approx(share, abs=1e-7)
            assert 1 - float(balance.share) == pytest.approx(alignment, abs=1e-7)
        balance.end_epoch({}, {}, torch.zeros(0))


@pytest.mark.parametrize(("name", "gradient"), [("mla", "benchmark"), ("mla_released", "released")])
def test_mla(name: str, gradient: str) -> None:
    problem, want = Problem(), recorded(name)
    net: Any = STRATEGIES.get("mla").network_of(problem.net, problem.guides, MLAOptions())
    balance = MLA(net, task=TASK, gradient=gradient)
    # The length of the epoch, as if there had been one.
    balance.taken[2] = STEPS * balance.turns
    np.testing.assert_allclose(problem.take(balance, net), want["losses"], rtol=1e-8)
    problem.assert_like(want, net)
    np.testing.assert_allclose(balance.P_DD.flatten(), want["matrix"], rtol=1e-8, atol=1e-10)
