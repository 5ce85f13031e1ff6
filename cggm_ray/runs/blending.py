"""Averages a trained network with a ridge regression on the same inputs (`--ridge_blend`).

On a small and noisy set a linear model is often as good as a network, and their errors differ, so the average may be better
than both (stacked regressions, Breiman 1996). The regression is fitted to the training split. Its strength, and then its share
of the average, are those with the best validation metric; a share of 0 leaves the network alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cggm_ray.core.batch import Batch
from cggm_ray.data.loading.sampler import InOrder, Plan
from cggm_ray.engine.evaluation import Predictions, evaluate, predicted
from cggm_ray.engine.opening import Training
from cggm_ray.engine.ridge import ridge_net
from cggm_ray.engine.state import Best
from cggm_ray.models.net import MultimodalNet
from cggm_ray.models.ridge import RidgeSums

STRENGTHS = (0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
"""alpha of ridge regression."""
SHARES = tuple(tenth / 10 for tenth in range(11))


@dataclass(frozen=True, kw_only=True)
class Blend:
    """A ridge regression and what it brings.

    Attributes:
        ridge: the regression.
        strength: alpha of it.
        share: its share of the average.
        values: validation metric by share; empty where the share is given.
        metric: its name.
    """

    ridge: MultimodalNet
    strength: float
    share: float
    values: dict[float, float]
    metric: str

    def line(self) -> str:
        """Returns what was decided, with the validation metrics of network, regression and average."""
        if not self.values:
            return f"predictions are averaged with those of ridge regression, which has the weight {self.share:g}, as given"
        alone = f"{self.metric} of the network {self.values[0.0]:.4g}, of ridge regression {self.values[1.0]:.4g}"
        if not self.share:
            return f"the network is tested without ridge regression, which brings nothing on validation: {alone}"
        return (
            f"predictions are averaged with those of ridge regression, which has the weight {self.share:g}, chosen on "
            f"validation: {self.metric} {self.values[self.share]:.4g}, {alone} (--ridge_blend off leaves it out)"
        )


def fit_blend(training: Training) -> Blend:
    """Fits a ridge regression and chooses its strength and its share. All workers call it.

    Args:
        training: whose network has the weights that are tested.
    """
    net, split, best = training.state.net, training.splits["valid"], training.state.best
    given = training.config.train.ridge_given
    if given is not None:
        weights_KCD, biases_KC = fitted(training).solve([given[1]])
        ridge = _ridge(training, weights_KCD[0], biases_KC[0])
        return Blend(ridge=ridge, strength=given[1], share=given[0], values={}, metric=best.metric)
    truth = Predictions.empty(len(split), training.task)
    evaluate(training.config.train, net, training.task, split, training.runtime, truth)
    weights_KCD, biases_KC = fitted(training).solve(list(STRENGTHS))
    ridge_NKC = linear_predictions(training, weights_KCD, biases_KC)

    def value(predictions_NC: Tensor) -> float:
        metrics = training.task.metrics()
        known = truth.labelled
        metrics.update(predictions_NC[known], Batch.of_loop(truth.target[known]))
        return metrics.compute(metrics.sums)[best.metric]

    strengths = Best(metric=best.metric, mode=best.mode)
    for number in range(len(STRENGTHS)):
        strengths.update(value(ridge_NKC[:, number]), number)
    chosen = strengths.epoch
    shares, values = Best(metric=best.metric, mode=best.mode), {}
    for number, share in enumerate(SHARES):
        values[share] = value((1 - share) * truth.logits + share * ridge_NKC[:, chosen])
        shares.update(values[share], number)
    return Blend(
        ridge=_ridge(training, weights_KCD[chosen], biases_KC[chosen]),
        strength=STRENGTHS[chosen],
        share=SHARES[shares.epoch],
        values=values,
        metric=best.metric,
    )


@torch.no_grad()
def fitted(training: Training) -> RidgeSums:
    """Returns the sums of the training split over all workers, in double precision."""
    net, runtime, split = training.state.net, training.runtime, training.splits["train"]
    ridge = ridge_net(net, training.dataset, training.manifest, training.task.outputs).to(runtime.device).eval()
    sums = RidgeSums(ridge.head.in_features, training.task.outputs, runtime.device)  # type: ignore[arg-type]
    plan = Plan(InOrder(len(split)), training.config.train.batch_size, runtime.rank, runtime.world_size)
    for batch in split.batches(plan, epoch=0):
        rows = ridge.fusion(ridge.encode(batch))
        sums.add(rows, batch.target.reshape(len(batch), -1), batch.sample_weights())
    sums.products = runtime.reduce()(sums.products.flatten()).reshape(sums.products.shape)
    return sums


@torch.no_grad()
def linear_predictions(training: Training, weights_KCD: Tensor, biases_KC: Tensor) -> Tensor:
    """Returns the predictions [N, K, C] of several regressions for the validation split, on every worker."""
    net, runtime, split = training.state.net, training.runtime, training.splits["valid"]
    ridge = ridge_net(net, training.dataset, training.manifest, biases_KC.numel()).to(runtime.device).eval()
    _fill(ridge.head, weights_KCD.flatten(0, 1), biases_KC.flatten())
    found = torch.zeros(len(split), biases_KC.numel(), dtype=torch.float64)
    settings = training.config.train
    plan = Plan(InOrder(len(split)), settings.batch_size, runtime.rank, runtime.world_size)
    for batch in split.batches(plan, epoch=0):
        if not batch.is_filler:
            found[batch.index.cpu()] = predicted(settings.precision, ridge, batch).double().cpu()
    shared = runtime.reduce()(found.flatten().to(runtime.device)).cpu()
    return shared.reshape(len(split), *biases_KC.shape)


def _ridge(training: Training, weights_CD: Tensor, bias_C: Tensor) -> MultimodalNet:
    net, task = training.state.net, training.task
    ridge = ridge_net(net, training.dataset, training.manifest, task.outputs).to(training.runtime.device)
    _fill(ridge.head, weights_CD, bias_C)
    return ridge.eval()


@torch.no_grad()
def _fill(head: nn.Module, weights_CD: Tensor, bias_C: Tensor) -> None:
    assert isinstance(head, nn.Linear)
    head.weight.copy_(weights_CD)
    head.bias.copy_(bias_C)
