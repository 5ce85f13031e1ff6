"""The ridge regression of `--ridge_blend` against scikit-learn's, and averages of averages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from cggm_ray.models.averaged import AveragedNet
from cggm_ray.models.net import MultimodalNet
from cggm_ray.models.ridge import RidgeSums, linear_net, numbers_of

KINDS = {"steps": "sequence", "age": "vector"}
SHAPES: dict[str, tuple[int, ...]] = {"steps": (4, 3), "age": (5,)}


def samples(count: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.randn(count, 6, generator=generator) * torch.tensor([1.0, 50, 0.01, 2, 1, 1]) + 3
    # A constant number, and one that another one repeats.
    x_ND[:, 4], x_ND[:, 5] = 7, x_ND[:, 0]
    return x_ND, torch.randn(count, 2, generator=generator) * 10 - 100 + x_ND[:, :1]


def filled_net(seed: int) -> MultimodalNet:
    torch.manual_seed(seed)
    return linear_net(KINDS, SHAPES, 2).eval()


@pytest.mark.parametrize("parts", [1, 3])
def test_every_strength_is_that_of_scikit_learn(parts: int) -> None:
    x_ND, y_NC = samples()
    strengths = [0.1, 10.0, 1000.0]
    sums = RidgeSums(6, 2)
    for x, y in zip(x_ND.chunk(parts), y_NC.chunk(parts), strict=True):
        sums.add(x, y, torch.ones(len(x)))
    # A sample without a label does not count.
    sums.add(x_ND[:1] + 5, y_NC[:1] * 100, torch.zeros(1))
    for weights_CD, bias_C, alpha in zip(*sums.solve(strengths), strengths, strict=True):
        model = make_pipeline(StandardScaler(), Ridge(alpha=alpha)).fit(x_ND.double().numpy(), y_NC.double().numpy())
        expected = model.predict(x_ND.double().numpy())
        np.testing.assert_allclose((x_ND.double() @ weights_CD.T + bias_C).numpy(), expected, rtol=1e-9)


def test_the_network_sees_what_is_there() -> None:
    net = filled_net(0)
    steps, age = torch.randn(2, 4, 3), torch.randn(2, 5)
    masks = {"steps": torch.tensor([[True, True, False, False], [False] * 4]), "age": torch.tensor([[True], [False]])}
    found = net({"steps": steps, "age": age}, masks)
    short = steps[0, :2]
    numbers = torch.cat([short.mean(0), short.amax(0), (short.var(0, correction=0) + 1e-6).sqrt() - 1e-3, age[0]])
    assert len(numbers) == sum(numbers_of(kind, SHAPES[name]) for name, kind in KINDS.items())
    assert isinstance(net.head, torch.nn.Linear)
    torch.testing.assert_close(found[0], net.head.weight @ numbers + net.head.bias)
    torch.testing.assert_close(found[1], net.head.bias)


def test_an_average_of_averages_is_the_average_of_all() -> None:
    first, second, third = map(filled_net, range(3))
    names = list(KINDS)
    inner = AveragedNet([first, second], [0.25, 0.75], names, classes=False)
    outer = AveragedNet([third, inner, first], [1, 2, 1], names, classes=False)
    inputs = {"steps": torch.randn(3, 4, 3), "age": torch.randn(3, 5)}
    expected = third(inputs) / 4 + first(inputs) * (0.125 + 0.25) + second(inputs) * 0.375
    torch.testing.assert_close(outer(inputs), expected)
    features = outer.encode(inputs)
    assert all(len(parts) == outer.size == 4 for parts in features.values())
    # What is left out is left out of all members.
    features["age"] = tuple(map(torch.zeros_like, features["age"]))
    torch.testing.assert_close(outer.fuse(features).logits, outer({**inputs, "age": torch.zeros(3, 5)}))
