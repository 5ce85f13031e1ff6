"""OGM and OGM-GE against the formulas of the paper, written out."""

from __future__ import annotations

import doctest
from collections.abc import Callable

import numpy as np
import pytest
import torch
from strategy_cases import linear_inputs, linear_net, softmax
from torch import Tensor

import cggm_ray.strategies.ogm
from cggm_ray import Classification, Regression, UsageError
from cggm_ray.core.batch import Batch, HeadOutput
from cggm_ray.models.net import MultimodalNet
from cggm_ray.strategies.base import Strategy
from cggm_ray.strategies.ogm import OGM

ALPHA = 0.4


def weights(net: MultimodalNet) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in net.state_dict().items()}


def alone(net: MultimodalNet, inputs: dict[str, Tensor], name: str) -> np.ndarray:
    """The prediction of a modality from its own block of the linear head."""
    w, index = weights(net), list(net.encoders).index(name)
    feature = inputs[name].numpy() @ w[f"encoders.{name}.weight"].T + w[f"encoders.{name}.bias"]
    return feature @ w["head.weight"][:, 4 * index : 4 * index + 4].T + w["head.bias"]


def oracle(score: dict[str, float]) -> dict[str, float]:
    """Equations 9 and 10 for any number of modalities."""
    k = {}
    for name, own in score.items():
        others = [value for other, value in score.items() if other != name]
        rho = own / (sum(others) / len(others))
        k[name] = 1 - np.tanh(ALPHA * rho) if rho > 1 else 1.0
    return k


def step(balance: OGM, net: MultimodalNet, inputs: dict[str, Tensor], target: Tensor, **more: object) -> None:
    net.zero_grad()
    features = balance.modulate(net.encode(inputs), target, **more)
    head: HeadOutput = net.fuse(features)
    (balance.task.loss(head.logits, target) + balance.loss(head.logits, head.hidden, target)).backward()


def plain(net: MultimodalNet, inputs: dict[str, Tensor], loss: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    net.zero_grad()
    loss(net(inputs)).backward()
    return {name: p.grad.clone() for name, p in net.named_parameters()}


@pytest.mark.parametrize("modalities", [2, 3, 4])
def test_coefficients_and_gradients(modalities: int) -> None:
    net, task = linear_net(modalities), Classification(3)
    inputs, target = linear_inputs(net)
    score = {
        name: sum(softmax(alone(net, inputs, name))[i, y] for i, y in enumerate(target.tolist())) / len(target)
        for name in net.encoders
    }
    want = oracle(score)
    joint = plain(net, inputs, lambda logits: task.loss(logits, target))
    balance = OGM(list(net.encoders), net.fuse, task=task, alpha=ALPHA)
    step(balance, net, inputs, target)
    assert np.allclose(balance.diagnostics["coefficient"], list(want.values()), rtol=1e-12)
    assert np.allclose(balance.diagnostics["score"], list(score.values()), rtol=1e-12)
    lowered = [name for name, k in want.items() if k < 1]
    assert max(score, key=score.__getitem__) in lowered
    assert min(score, key=score.__getitem__) not in lowered
    for name, parameter in net.named_parameters():
        factor = want.get(name.split(".")[1], 1.0) if name.startswith("encoders") else 1.0
        assert torch.allclose(parameter.grad, factor * joint[name], rtol=1e-12), name


def test_regression_scores_are_exp_of_minus_the_error() -> None:
    net, task = linear_net(2, outputs=1), Regression()
    inputs, _ = linear_inputs(net)
    target = torch.randn(7, 1, dtype=torch.float64)
    score = {name: float(np.exp(-np.abs(alone(net, inputs, name) - target.numpy()).mean())) for name in net.encoders}
    balance = OGM(list(net.encoders), net.fuse, task=task, alpha=ALPHA)
    step(balance, net, inputs, target)
    assert np.allclose(balance.diagnostics["coefficient"], list(oracle(score).values()), rtol=1e-12)


def test_a_score_is_that_of_the_samples_that_have_the_modality() -> None:
    net, task = linear_net(2), Classification(3)
    inputs, target = linear_inputs(net)
    there = torch.tensor([True, False, True, True, False, True, True])
    rows = {"a": there.nonzero()[:, 0].tolist(), "b": range(7)}
    score = {
        name: float(np.mean([softmax(alone(net, inputs, name))[i, int(target[i])] for i in rows[name]]))
        for name in rows
    }
    balance = OGM(list(net.encoders), net.fuse, task=task, alpha=ALPHA)
    step(balance, net, inputs, target, present={"a": there})
    assert np.allclose(balance.diagnostics["coefficient"], list(oracle(score).values()), rtol=1e-12)
    step(balance, net, inputs, target, present={"a": torch.zeros(7, dtype=torch.bool)})
    assert balance.diagnostics["coefficient"].tolist() == [1.0, 1.0]
    assert bool(torch.isfinite(net.encoders["a"].weight.grad).all())


def noises(net: MultimodalNet, seed: int, times: int) -> tuple[list[dict[str, Tensor]], dict[str, Tensor], OGM]:
    """What is left of each step's gradients of encoders without the scaled gradient, and the unscaled gradients."""
    task = Classification(3)
    inputs, target = linear_inputs(net)
    joint = plain(net, inputs, lambda logits: task.loss(logits, target))
    balance = OGM(list(net.encoders), net.fuse, task=task, alpha=ALPHA, noisy=dict(net.encoders), seed=seed)
    found = []
    for _ in range(times):
        step(balance, net, inputs, target)
        balance.adjust()
        balance.step()
        k = dict(zip(net.encoders, balance.diagnostics["coefficient"].tolist(), strict=True))
        left = {
            n: p.grad - k[n.split(".")[1]] * joint[n] for n, p in net.named_parameters() if n.startswith("encoders")
        }
        assert torch.equal(net.head.weight.grad, joint["head.weight"])
        found.append(left)
    return found, joint, balance


def test_noise_has_the_spread_of_the_gradient_that_it_joins() -> None:
    found, joint, _ = noises(linear_net(), 5, 600)
    for name in found[0]:
        noise = torch.stack([left[name] for left in found])
        want = float(joint[name].std())
        assert abs(float(noise.std()) / want - 1) < 0.05, name
        assert abs(float(noise.mean())) < 0.1 * want, name


def test_noise_is_that_of_its_seed_and_step() -> None:
    one, _, balance = noises(linear_net(), 5, 3)
    same, _, _ = noises(linear_net(), 5, 3)
    other, _, _ = noises(linear_net(), 6, 3)
    assert all(torch.equal(a[name], b[name]) for a, b in zip(one, same, strict=True) for name in a)
    assert not torch.allclose(one[0]["encoders.a.weight"], other[0]["encoders.a.weight"])
    assert not torch.allclose(one[0]["encoders.a.weight"], one[1]["encoders.a.weight"])
    assert balance.state_dict()["_extra_state"] == {"steps": 3}


def test_noise_that_was_forgotten_is_an_error() -> None:
    net = linear_net()
    balance = OGM(list(net.encoders), net.fuse, task=Classification(3), noisy=dict(net.encoders))
    step(balance, net, *linear_inputs(net))
    with pytest.raises(RuntimeError, match=r"call balance\.adjust\(\)"):
        balance.step()


def test_coefficients_go_with_the_memo_of_their_batch() -> None:
    """Two batches at once: the gradient is scaled by what was decided on the batch whose memo comes back."""
    net = linear_net()
    balance = OGM(list(net.encoders), net.fuse, task=Classification(3), alpha=ALPHA, noisy=dict(net.encoders))
    inputs, target = linear_inputs(net)
    memos, decided = [], []
    for part in (slice(0, 4), slice(4, None)):
        batch = Batch.of_loop(target[part], inputs={name: values[part] for name, values in inputs.items()})
        features, memo = balance.transform(net.encode(batch), batch)
        balance.terms(net.fuse(features), batch, memo)
        memos.append(memo)
        decided.append(balance.diagnostics["coefficient"])
    assert not torch.equal(*decided)
    left = []
    for memo, coefficient_M in zip(memos, decided, strict=True):
        for parameter in net.encoders.parameters():
            parameter.grad = torch.linspace(-1, 1, parameter.numel(), dtype=parameter.dtype).reshape_as(parameter)
        before = {n: p.grad.clone() for n, p in net.encoders.named_parameters()}
        balance.steps = 0
        balance.adjust_gradients(memo)
        k = dict(zip(net.encoders, coefficient_M.tolist(), strict=True))
        left.append({n: p.grad - k[n.split(".")[0]] * before[n] for n, p in net.encoders.named_parameters()})
    # What is left is the noise, which is drawn from seed and step.
    for name, noise in left[0].items():
        torch.testing.assert_close(noise, left[1][name])


def test_a_strategy_with_the_name_of_the_own_loop_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"Own\.adjust: expected the name adjust_gradients and the arguments \(self, memo\)"
    ):
        type("Own", (Strategy,), {"adjust": lambda self: None})


def test_one_modality_is_refused() -> None:
    with pytest.raises(UsageError, match="at least two modalities"):
        OGM(["a"], linear_net(1).fuse, task=Classification(3))


def test_its_example() -> None:
    result = doctest.testmod(cggm_ray.strategies.ogm)
    assert result.attempted > 10
    assert result.failed == 0
