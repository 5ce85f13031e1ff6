"""Adds a linear model on the same inputs to a trained network (`--linear_blend`).

On a small and noisy set a linear model is often as good as a network, and their errors differ, so a weighted sum may be better
than both (stacked generalisation, Wolpert 1992; stacked regressions, Breiman 1996). The linear model is fitted to the training
split: ridge regression, or logistic regression where classes are predicted. Validation chooses its strength, by the selection
metric, and both weights: for a regression those of the average with the least squared error, for classes those of the logits
with the least cross-entropy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cggm_ray.core.batch import Batch
from cggm_ray.data.loading.sampler import InOrder, Plan
from cggm_ray.engine.evaluation import Predictions, evaluate, predicted
from cggm_ray.engine.linear_blend import Shares, linear_name, linear_of
from cggm_ray.engine.opening import Training
from cggm_ray.engine.state import Best
from cggm_ray.models.linear import numbers_of
from cggm_ray.models.logistic import classifier_weights, fit_logistic
from cggm_ray.models.net import MultimodalNet
from cggm_ray.models.ridge import RidgeSums, regression_weight
from cggm_ray.models.standardise import Standardise
from cggm_ray.tasks import Classification

ALPHAS = (0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
"""Strengths of ridge regression."""
INVERSE_STRENGTHS = (1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0)
"""C of logistic regression."""


@dataclass(frozen=True, kw_only=True)
class Blend:
    """A linear model and what it brings.

    Attributes:
        linear: the model.
        name: what it is called.
        strength: alpha, or C.
        shares: weights of the network and of the linear model.
        metric: that chooses the best epoch.
        values: its value on validation of the network, of the linear model and of their sum; None where the weights are given.
    """

    linear: MultimodalNet
    name: str
    strength: float
    shares: Shares
    metric: str
    values: tuple[float, float, float] | None = None

    @property
    def counts(self) -> bool:
        """Whether the linear model has a weight."""
        return self.shares[1] > 0

    def line(self) -> str:
        """Returns what was decided, with the validation metrics of network, linear model and sum."""
        network, linear = self.shares
        said = f"predictions are those of the network times {network:.3g} and those of {self.name} times {linear:.3g}"
        if self.values is None:
            return f"{said}, as given"
        alone = f"{self.metric} of the network {self.values[0]:.4g}, of {self.name} {self.values[1]:.4g}"
        if not self.counts:
            return f"the network is tested without {self.name}, which brings nothing on validation: {alone}"
        return f"{said}, chosen on validation: {alone}, of both {self.values[2]:.4g} (--linear_blend off leaves it out)"


def fit_blend(training: Training) -> Blend:
    """Fits a linear model and chooses its strength and the weights. All workers call it.

    Args:
        training: whose network has the weights that are tested.
    """
    given, metric = training.config.train.linear_given, training.state.best.metric
    name = linear_name(classes=isinstance(training.task, Classification))
    if given is not None:
        weights_KCD, biases_KC = fitted(training, [given[2]])
        linear = _filled(training, weights_KCD[0], biases_KC[0])
        return Blend(linear=linear, name=name, strength=given[2], shares=given[:2], metric=metric)
    task, split = training.task, training.splits["valid"]
    truth = Predictions.empty(len(split), task)
    evaluate(training.config.train, training.state.net, task, split, training.runtime, truth)
    strengths = INVERSE_STRENGTHS if isinstance(task, Classification) else ALPHAS
    weights_KCD, biases_KC = fitted(training, strengths)
    known = truth.labelled
    linear_KNC = linear_predictions(training, weights_KCD, biases_KC)[known].transpose(0, 1)
    network_NC, target = truth.logits[known], truth.target[known]
    if isinstance(task, Classification):
        target = target[:, 0].long()
        chosen, shares = _by_cross_entropy(training, task, network_NC, linear_KNC, target)
    else:
        chosen, shares = _by_squares(training, network_NC, linear_KNC, target)
    sums = (network_NC, linear_KNC[chosen], shares[0] * network_NC + shares[1] * linear_KNC[chosen])
    values = [_value(training, logits_NC, target) for logits_NC in sums]
    return Blend(
        linear=_filled(training, weights_KCD[chosen], biases_KC[chosen]),
        name=name,
        strength=strengths[chosen],
        shares=shares,
        metric=metric,
        values=(values[0], values[1], values[2]),
    )


def _by_squares(training: Training, network_NC: Tensor, linear_KNC: Tensor, target: Tensor) -> tuple[int, Shares]:
    """Returns the number of the best ridge regression, and the weights of its average with the network."""
    strengths = Best(metric=training.state.best.metric, mode=training.state.best.mode)
    for number, logits_NC in enumerate(linear_KNC):
        strengths.update(_value(training, logits_NC, target), number)
    chosen = strengths.epoch
    share = regression_weight(network_NC, linear_KNC[chosen], target.reshape_as(network_NC))
    return chosen, (1 - share, share)


def _by_cross_entropy(
    training: Training, task: Classification, network_NC: Tensor, linear_KNC: Tensor, target_N: Tensor
) -> tuple[int, Shares]:
    """Returns the number of the best logistic regression, and the weights of its best sum with the network.

    The selection metric chooses the strength, because the sum scales the probabilities of a strength that is too sure; of equal
    ones the cross-entropy chooses.
    """
    by_class = None if task.class_weight is None else task.class_weight.to(network_NC)
    weight_N = torch.ones_like(network_NC[:, 0]) if by_class is None else by_class[target_N]
    sign = -1 if training.state.best.mode == "max" else 1
    ranks = [
        (sign * _value(training, logits_NC, target_N), float(F.cross_entropy(logits_NC, target_N, by_class)))
        for logits_NC in linear_KNC
    ]
    chosen = min(range(len(ranks)), key=lambda number: ranks[number])
    network, linear = classifier_weights(torch.stack([network_NC, linear_KNC[chosen]]), target_N, weight_N).tolist()
    return chosen, (max(network, 0.0), linear) if linear > 0 else (1.0, 0.0)


def _value(training: Training, logits_NC: Tensor, target: Tensor) -> float:
    """Returns the validation metric that chooses the best epoch."""
    metrics = training.task.metrics()
    metrics.update(logits_NC, Batch.of_loop(target))
    return metrics.compute(metrics.sums)[training.state.best.metric]


@torch.no_grad()
def fitted(training: Training, strengths: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Returns the weights [K, C, D] and biases [K, C] of linear models that are fitted to the training split of all workers.

    Args:
        training: whose network standardises the inputs.
        strengths: K of them.
    """
    task, runtime = training.task, training.runtime
    linear = linear_of(training.state.net, training.dataset, training.manifest, task.outputs).to(runtime.device).eval()
    assert isinstance(linear.head, nn.Linear)
    own_D = _own_scales(training, linear)
    if isinstance(task, Classification):
        found = [(x_ND, batch.target, _sample_weights(task, batch)) for x_ND, batch in _samples(training, linear)]
        x_ND, target_N, weight_N = (torch.cat(parts) for parts in zip(*found, strict=True))
        return fit_logistic(x_ND, target_N, weight_N, task.outputs, strengths, runtime.reduce(), own_D)
    sums = RidgeSums(linear.head.in_features, task.outputs, runtime.device)
    for x_ND, batch in _samples(training, linear):
        sums.add(x_ND, batch.target.reshape(len(batch), -1), batch.sample_weights())
    sums.products = runtime.reduce()(sums.products.flatten()).reshape(sums.products.shape)
    return sums.solve(list(strengths), own_D)


def _own_scales(training: Training, linear: MultimodalNet) -> Tensor:
    """Returns which numbers are divided by their own standard deviation, bool [D]: all but those that share a scale."""
    modalities = tuple(linear.encoders)
    kinds = training.dataset.kinds(training.manifest, modalities)
    inputs, parts = dict(linear.inputs.items()), []
    for name, shape in training.dataset.shapes(training.manifest, modalities).items():
        module = inputs.get(name)
        shared = isinstance(module, Standardise) and module.shares_scale
        parts.append(torch.full((numbers_of(kinds[name], tuple(shape)),), not shared))
    return torch.cat(parts).to(training.runtime.device)


def _samples(training: Training, linear: MultimodalNet) -> Iterator[tuple[Tensor, Batch]]:
    """The numbers [N, D] of the batches of this worker's part of the training split."""
    split, runtime = training.splits["train"], training.runtime
    plan = Plan(InOrder(len(split)), training.config.train.batch_size, runtime.rank, runtime.world_size)
    for batch in split.batches(plan, epoch=0):
        yield linear.fusion(linear.encode(batch)), batch


def _sample_weights(task: Classification, batch: Batch) -> Tensor:
    weight_N = batch.sample_weights()
    return weight_N if task.class_weight is None else weight_N * task.class_weight.to(weight_N)[batch.target]


@torch.no_grad()
def linear_predictions(training: Training, weights_KCD: Tensor, biases_KC: Tensor) -> Tensor:
    """Returns the predictions [N, K, C] of several linear models for the validation split, on every worker."""
    net, runtime, split = training.state.net, training.runtime, training.splits["valid"]
    linear = linear_of(net, training.dataset, training.manifest, biases_KC.numel()).to(runtime.device).eval()
    _fill(linear.head, weights_KCD.flatten(0, 1), biases_KC.flatten())
    found = torch.zeros(len(split), biases_KC.numel(), dtype=torch.float64)
    settings = training.config.train
    plan = Plan(InOrder(len(split)), settings.batch_size, runtime.rank, runtime.world_size)
    for batch in split.batches(plan, epoch=0):
        if not batch.is_filler:
            found[batch.index.cpu()] = predicted(settings.precision, linear, batch).double().cpu()
    shared = runtime.reduce()(found.flatten().to(runtime.device)).cpu()
    return shared.reshape(len(split), *biases_KC.shape)


def _filled(training: Training, weights_CD: Tensor, bias_C: Tensor) -> MultimodalNet:
    linear = linear_of(training.state.net, training.dataset, training.manifest, training.task.outputs)
    _fill(linear.to(training.runtime.device).head, weights_CD, bias_C)
    return linear.eval()


@torch.no_grad()
def _fill(head: nn.Module, weights_CD: Tensor, bias_C: Tensor) -> None:
    assert isinstance(head, nn.Linear)
    head.weight.copy_(weights_CD)
    head.bias.copy_(bias_C)
