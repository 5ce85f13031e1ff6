"""PMR: prototypes, factors and loss against plain loops, and the slow modality being the only one that is sped up."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from strategy_runs import assert_resumes, assert_workers_follow_one, lines, pipeline
from torch import Tensor

from cggm_ray import Classification, HeadOutput
from cggm_ray.commands.cli import main
from cggm_ray.core.batch import Batch
from cggm_ray.data.settings import DataConfig
from cggm_ray.engine.configuration import Config
from cggm_ray.strategies.pmr import PMR, coefficients, pooled


def strategy(mu: float = 0.3, epochs: int = 10) -> PMR:
    return PMR(["a", "b"], task=Classification(3), alpha=0.7, mu=mu, epochs=epochs, momentum=0.25)


def step(balance: PMR, features: dict[str, Tensor], target: Tensor, **given: dict[str, Tensor]) -> Tensor:
    balance.modulate(dict(features), target, given.get("present"))
    logits = torch.zeros(len(target), 3, dtype=torch.float64)
    return balance.losses(HeadOutput(logits, logits), target)[1]


def random_features(seed: int, spread: float = 1.0) -> tuple[dict[str, Tensor], Tensor]:
    torch.manual_seed(seed)
    target = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    a = torch.eye(3)[target] * 3 + 0.3 * torch.randn(7, 3)
    b = torch.randn(7, 4) * spread
    return {"a": a.double().requires_grad_(), "b": b.double().requires_grad_()}, target


def by_hand(
    features: dict[str, np.ndarray], target: list[int], prototypes: dict[str, np.ndarray], mu: float
) -> tuple[float, dict[str, float]]:
    """Term of the loss and scores, from loops over samples."""
    score, loss, entropy = {}, {}, {}
    for name, z in features.items():
        truth, losses, entropies = [], [], []
        for row, label in zip(z, target, strict=True):
            weights = [math.exp(-math.dist(row, center)) for center in prototypes[name]]
            p = [weight / sum(weights) for weight in weights]
            truth.append(p[label])
            losses.append(-math.log(p[label]))
            entropies.append(-sum(q * math.log(q) for q in p))
        score[name], loss[name], entropy[name] = (sum(v) / len(v) for v in (truth, losses, entropies))
    rho = score["a"] / score["b"]
    beta, gamma = min(max(1 / rho - 1, 0), 1), min(max(rho - 1, 0), 1)
    accelerated = 0.7 * (beta * loss["a"] + gamma * loss["b"])
    return accelerated - mu * (gamma * entropy["a"] + beta * entropy["b"]), score


@pytest.mark.parametrize("mu", [0.0, 0.3])
def test_loss_and_prototypes_against_plain_loops(mu: float) -> None:
    balance = strategy(mu)
    means = []
    for seed in (0, 1):
        features, target = random_features(seed)
        step(balance, features, target)
        arrays = {name: z.detach().numpy() for name, z in features.items()}
        means.append({name: np.stack([z[target.numpy() == k].mean(0) for k in range(3)]) for name, z in arrays.items()})
        balance.end_epoch({}, {}, torch.zeros(0))
    prototypes = {name: 0.25 * means[0][name] + 0.75 * means[1][name] for name in ("a", "b")}
    np.testing.assert_allclose(balance.prototype_0, prototypes["a"])
    np.testing.assert_allclose(balance.prototype_1, prototypes["b"])
    features, target = random_features(2)
    term = step(balance, features, target)
    want, score = by_hand({n: z.detach().numpy() for n, z in features.items()}, target.tolist(), prototypes, mu)
    assert float(term.detach()) == pytest.approx(want, rel=1e-9)
    assert balance.diagnostics["score"].tolist() == pytest.approx(list(score.values()))


def test_prototypes_of_the_paper() -> None:
    """Equation 12: before every epoch, from a pass that they have for themselves; training does not move them."""
    balance = PMR(["a", "b"], task=Classification(3), alpha=0.7, mu=0.3, momentum=0.25, reading="paper", samples=7)
    assert balance.measures(0) == {"train": 7}
    means = []
    for epoch in (0, 1, 2):
        features, target = random_features(epoch)
        found = {name: z.detach() for name, z in features.items()}
        batch = Batch(inputs={}, target=target, index=torch.arange(7))
        balance.begin_epoch(epoch, {"train": balance.measure(dict(found), batch)})
        arrays = {name: z.numpy() for name, z in found.items()}
        means.append({name: np.stack([z[target.numpy() == k].mean(0) for k in range(3)]) for name, z in arrays.items()})
        prototypes = means[0]
        for later in means[1:]:
            prototypes = {name: 0.25 * prototypes[name] + 0.75 * later[name] for name in prototypes}
        features, target = random_features(10 + epoch)
        term = step(balance, features, target)
        np.testing.assert_allclose(balance.prototype_0, prototypes["a"])
        np.testing.assert_allclose(balance.prototype_1, prototypes["b"])
        want, _ = by_hand({n: z.detach().numpy() for n, z in features.items()}, target.tolist(), prototypes, 0.3)
        assert float(term.detach()) == pytest.approx(want, rel=1e-9)
        balance.end_epoch({}, {}, torch.zeros(0))


def test_only_the_slow_modality_is_accelerated_and_only_the_fast_one_held_back() -> None:
    for mu, which in ((0.0, "b"), (0.3, "a")):
        balance = strategy(mu)
        step(balance, *random_features(0))
        balance.end_epoch({}, {}, torch.zeros(0))
        features, target = random_features(1)
        balance._alpha = 0.0 if mu else 0.7
        step(balance, features, target).backward()
        for name in ("a", "b"):
            moved = float(features[name].grad.abs().max())  # type: ignore[union-attr]
            assert (moved > 0) == (name == which), (mu, name)
    coefficient = balance.diagnostics["coefficient"]
    assert coefficient[0] == 0 < coefficient[1]


def test_accelerating_brings_features_nearer_to_their_prototypes() -> None:
    balance = strategy(mu=0.0)
    step(balance, *random_features(0))
    balance.end_epoch({}, {}, torch.zeros(0))
    features, target = random_features(1)
    step(balance, features, target).backward()
    before = (features["b"] - balance.prototype_1[target]).detach().norm()
    moved = features["b"].detach() - 0.5 * features["b"].grad
    other = balance.prototype_1.clone()
    assert (moved - other[target]).norm() < before


def test_entropy_ends_after_its_epochs() -> None:
    balance = strategy(epochs=1)
    step(balance, *random_features(0))
    balance.end_epoch({}, {}, torch.zeros(0))
    step(balance, *random_features(1))
    assert balance.diagnostics["entropy_coefficient"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("score", "faster", "held"),
    [
        ([0.3, 0.2, 0.1], [0, 0.5, 1], [0.5, 0, 0]),
        ([0.2, 0.2, 0.2], [0, 0, 0], [0, 0, 0]),
        ([0.9, 0.1, 0.0], [0, 1, 0], [1, 0, 0]),
    ],
)
def test_factors_of_three(score: list[float], faster: list[float], held: list[float]) -> None:
    scores = torch.tensor(score, dtype=torch.float64)
    got = coefficients(scores, scores > 0)
    assert got[0].tolist() == pytest.approx(faster)
    assert got[1].tolist() == pytest.approx(held)


def test_classes_without_a_prototype_and_samples_without_the_modality() -> None:
    balance = strategy()
    features, target = random_features(0)
    assert float(step(balance, features, target).detach()) == 0
    balance = strategy()
    first = {name: z[:2].detach() for name, z in features.items()}
    step(balance, first, target[:2])
    features, target = random_features(1)
    hole = {"a": torch.tensor([True, False, True, True, True, True, True])}
    with torch.no_grad():
        features["a"][1] = math.nan
    term = step(balance, features, target, present=hole)
    term.backward()
    assert bool(torch.isfinite(term))
    for z in features.values():
        assert z.grad is not None
        # The third class is not known yet.
        assert float(z.grad[2].abs().sum() + z.grad[5].abs().sum()) == 0
        assert bool(torch.isfinite(z.grad[0]).all())
    assert balance.epoch_count_MC.tolist() == [[4, 2, 2], [4, 3, 2]]


def test_pooling() -> None:
    x = torch.randn(2, 3, 4)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    torch.testing.assert_close(pooled(x), x.mean(1))
    torch.testing.assert_close(pooled(x, mask)[0], x[0, :2].mean(0))
    torch.testing.assert_close(pooled(x, mask)[1], x[1, 0])
    maps = (torch.randn(2, 5, 3, 3), torch.randn(2, 6, 2, 2))
    assert pooled(maps).shape == (2, 11)
    torch.testing.assert_close(pooled(maps)[:, :5], maps[0].mean((2, 3)))


@pytest.mark.slow
def test_workers_follow_one(tmp_path: Path) -> None:
    one = assert_workers_follow_one(tmp_path, {"modulation": "pmr", "pmr_mu": 0.2, "pmr_epochs": 2})
    assert any(bool((values["coefficient"] > 0).any()) for values in one["logged"])


def test_resume(tmp_path: Path) -> None:
    run = assert_resumes(tmp_path, "--modulation", "pmr", "--pmr_epochs", "2")
    assert any(line[f"coefficient/{name}"] for line in lines(run) for name in ("words", "age", "face"))


def test_bf16_in_parts(tmp_path: Path) -> None:
    run = pipeline(tmp_path, "run", "--modulation", "pmr", "--precision", "bf16", "--accumulate", "2")
    assert all(line["train/loss"] is not None for line in lines(run))


def test_regression_is_refused(tmp_path: Path, small_pickle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = ["--data_path", str(small_pickle), "--storage_path", str(tmp_path), "--local"]
    assert main(Config(data=DataConfig(dataset="mosi")), [*places, "--modulation", "pmr"]) == 2
    assert "modulation: 'pmr' is not defined for regression" in capsys.readouterr().err
