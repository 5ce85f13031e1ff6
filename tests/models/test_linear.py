"""The linear models of `--linear_blend` against scikit-learn's, and averages of averages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from cggm_ray.models.averaged import AveragedNet
from cggm_ray.models.linear import linear_net, numbers_of
from cggm_ray.models.logistic import PRIOR, classifier_weights, fit_logistic
from cggm_ray.models.net import MultimodalNet
from cggm_ray.models.ridge import RidgeSums

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


@pytest.mark.parametrize("balanced", [False, True])
def test_logistic_regression_of_every_strength_is_that_of_scikit_learn(balanced: bool) -> None:
    x_ND, _ = samples(120)
    target = (x_ND[:, 2] * 80 + x_ND[:, 3] + torch.arange(120) % 7).long() % 4
    counts = target.bincount(minlength=4).double()
    weight_N = (120 / (4 * counts))[target] if balanced else torch.ones(120)
    strengths = [0.001, 0.1, 10.0]
    # A sample without a label does not count.
    more = [torch.cat(parts) for parts in ((x_ND, x_ND[:1] + 5), (target, target[:1]), (weight_N, torch.zeros(1)))]
    for weights_CD, bias_C, strength in zip(*fit_logistic(*more, 4, strengths), strengths, strict=True):
        rows = x_ND.double().numpy()
        scaled = rows - np.average(rows, 0, weight_N.numpy())
        scaled[:, 4] = 0
        scaled /= np.sqrt(np.average(scaled**2, 0, weight_N.numpy()) + (np.arange(6) == 4))
        model = LogisticRegression(C=strength, tol=1e-8, max_iter=5000)
        model.fit(scaled, target.numpy(), sample_weight=weight_N.numpy())
        found = (x_ND.double() @ weights_CD.T + bias_C).softmax(1).numpy()
        np.testing.assert_allclose(found, model.predict_proba(scaled), atol=2e-4)


def test_numbers_with_one_scale_are_only_centred() -> None:
    x_ND, y_NC = samples(120)
    x_ND = x_ND / x_ND.abs().amax(0) * torch.arange(1, 7)
    target, own_D = torch.arange(120) % 3, torch.zeros(6, dtype=torch.bool)
    rows = x_ND.double().numpy()
    ((weights_CD,), (bias_C,)) = fit_logistic(x_ND, target, torch.ones(120), 3, [0.1], own_D=own_D)
    model = LogisticRegression(C=0.1, tol=1e-8, max_iter=5000).fit(rows - rows.mean(0), target.numpy())
    found = (x_ND.double() @ weights_CD.T + bias_C).softmax(1).numpy()
    np.testing.assert_allclose(found, model.predict_proba(rows - rows.mean(0)), atol=2e-4)
    sums = RidgeSums(6, 2)
    sums.add(x_ND, y_NC, torch.ones(120))
    ((weights_CD,), (bias_C,)) = sums.solve([10.0], own_D)
    expected = Ridge(alpha=10.0).fit(rows, y_NC.double().numpy()).predict(rows)
    np.testing.assert_allclose((x_ND.double() @ weights_CD.T + bias_C).numpy(), expected, rtol=1e-8, atol=1e-8)


def test_logistic_regression_of_two_workers_is_that_of_one() -> None:
    x_ND, _ = samples(60)
    target, weight_N = torch.arange(60) % 3, torch.ones(60)
    # Both workers hold the same samples, so a sum over them is twice that of one.
    found = fit_logistic(x_ND, target, weight_N, 3, [0.1], lambda sums: 2 * sums)
    expected = fit_logistic(x_ND.repeat(2, 1), target.repeat(2), weight_N.repeat(2), 3, [0.1])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_weights_of_classifiers_are_those_of_least_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(200) % 3
    right = torch.nn.functional.one_hot(target, 3) * 2.0
    logits_MNC = torch.stack([4 * (right + torch.randn(200, 3, generator=generator)), right / 2, -right])
    logits_MNC[1] += 0.4 * torch.randn(200, 3, generator=generator)
    weight_N = 1 + (target == 1).double()

    def loss(weights_M: Tensor) -> Tensor:
        total_NC = torch.einsum("m,mnc->nc", weights_M, logits_MNC[: len(weights_M)].double())
        entropy_N = torch.nn.functional.cross_entropy(total_NC, target, reduction="none")
        alone_M = torch.eye(len(weights_M), dtype=torch.float64)[0]
        return entropy_N @ weight_N / weight_N.sum() + PRIOR / 2 * (weights_M - alone_M).square().sum()

    found = classifier_weights(logits_MNC[:2], target, weight_N)
    assert found[0] < 1
    assert found[1] > 0.1
    least = loss(found)
    for move in torch.tensor([[0.01, 0], [-0.01, 0], [0, 0.01], [0, -0.01]]):
        assert loss(found + move) > least
    # What says the opposite gets a negative weight, and so is left out by the caller.
    assert classifier_weights(logits_MNC[[1, 2]] * torch.tensor([1.0, 0.1])[:, None, None], target, weight_N)[1] < 0


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
    outer = AveragedNet([third, inner, first], [0.25, 0.5, 0.25], names, classes=False)
    inputs = {"steps": torch.randn(3, 4, 3), "age": torch.randn(3, 5)}
    expected = third(inputs) / 4 + first(inputs) * (0.125 + 0.25) + second(inputs) * 0.375
    torch.testing.assert_close(outer(inputs), expected)
    features = outer.encode(inputs)
    assert all(len(parts) == outer.size == 4 for parts in features.values())
    # What is left out is left out of all members.
    features["age"] = tuple(map(torch.zeros_like, features["age"]))
    torch.testing.assert_close(outer.fuse(features).logits, outer({**inputs, "age": torch.zeros(3, 5)}))
