"""Logistic regressions on samples that several workers hold, and the weights of a sum of classifiers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cggm_ray.core.reduction import SINGLE_WORKER, Reduce

MOST_ITERATIONS = 300
PRIOR = 0.01
"""Strength with which the weights of classifiers are drawn to 1 for the first one and 0 for the others."""


def fit_logistic(
    x_ND: Tensor,
    target_N: Tensor,
    weight_N: Tensor,
    classes: int,
    strengths: Sequence[float],
    reduce: Reduce = SINGLE_WORKER,
    own_D: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the weights [K, C, D] and the biases [K, C] of the logistic regression of every strength.

    It is that of `sklearn.linear_model.LogisticRegression(C=strength)` on numbers that are standardised first, or only
    centred, in double precision. A number that is constant has no weight.

    Args:
        x_ND: the samples of this worker.
        target_N: their classes.
        weight_N: their weights.
        classes: C.
        strengths: increasing; each fit begins where the one before ended.
        reduce: sums a vector over workers.
        own_D: bool, which numbers are divided by their own standard deviation; None for all.
    """
    x_ND, weight_N = x_ND.double(), weight_N.double()
    count = reduce(weight_N.sum()[None])
    mean_D = reduce(weight_N @ x_ND) / count
    variance_D = reduce(weight_N @ (x_ND - mean_D).square()) / count
    # What is below is rounding.
    varies_D = variance_D > 1e-12 * mean_D.square() + 1e-30
    scale_D = variance_D.clamp(min=1e-30).rsqrt() * varies_D
    scale_D = scale_D if own_D is None else torch.where(own_D, scale_D, varies_D.double())
    x_ND = (x_ND - mean_D) * scale_D
    coefficients_CE = x_ND.new_zeros(classes, x_ND.shape[1] + 1)
    weights, biases = [], []
    for strength in strengths:

        def objective(parameters_CE: Tensor, strength: float = strength) -> tuple[Tensor, Tensor]:
            weights_CD, bias_C = parameters_CE[:, :-1], parameters_CE[:, -1]
            loss, slope_NC = _cross_entropy(torch.addmm(bias_C, x_ND, weights_CD.T), target_N, weight_N)
            of_weights = torch.cat([slope_NC.T @ x_ND, slope_NC.sum(0)[:, None]], 1)
            sums = reduce(torch.cat([loss[None], of_weights.flatten()])) / count
            gradient_CE = sums[1:].view_as(parameters_CE).clone()
            gradient_CE[:, :-1] += weights_CD / (strength * count)
            return sums[0] + weights_CD.square().sum() / (2 * strength * count[0]), gradient_CE

        coefficients_CE = _least(objective, coefficients_CE)
        weights_CD = coefficients_CE[:, :-1] * scale_D
        weights.append(weights_CD)
        biases.append(coefficients_CE[:, -1] - weights_CD @ mean_D)
    return torch.stack(weights), torch.stack(biases)


def classifier_weights(logits_MNC: Tensor, target_N: Tensor, weight_N: Tensor) -> Tensor:
    """Returns the weights [M] with which the sum of the logits of classifiers has the least cross-entropy.

    The samples are not those that the classifiers were fitted to, and as they may be few, the weights are drawn to those with
    which the first classifier stays as it is (`PRIOR`). This is stacking (Wolpert 1992) by logistic regression.

    Args:
        logits_MNC: of M classifiers.
        target_N: classes of the samples.
        weight_N: their weights.
    """
    logits_MNC, weight_N = logits_MNC.double(), weight_N.double() / weight_N.double().sum()
    alone_M = logits_MNC.new_zeros(len(logits_MNC))
    alone_M[0] = 1

    def objective(parameters_M: Tensor) -> tuple[Tensor, Tensor]:
        logits_NC = torch.einsum("m,mnc->nc", parameters_M, logits_MNC)
        loss, slope_NC = _cross_entropy(logits_NC, target_N, weight_N)
        gradient_M = torch.einsum("mnc,nc->m", logits_MNC, slope_NC)
        moved_M = parameters_M - alone_M
        return loss + PRIOR / 2 * moved_M.square().sum(), gradient_M + PRIOR * moved_M

    return _least(objective, alone_M)


def _cross_entropy(logits_NC: Tensor, target_N: Tensor, weight_N: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the weighted sum of the cross-entropies, and its slope in the logits [N, C]."""
    log_likelihood_NC = logits_NC.log_softmax(1)
    slope_NC = log_likelihood_NC.exp() - F.one_hot(target_N, logits_NC.shape[1])
    return F.nll_loss(log_likelihood_NC, target_N, reduction="none") @ weight_N, slope_NC * weight_N[:, None]


def _least(objective: Callable[[Tensor], tuple[Tensor, Tensor]], start: Tensor) -> Tensor:
    """Returns where a convex function is least, which returns its value and its gradient."""
    parameters = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [parameters],
        max_iter=MOST_ITERATIONS,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        value, parameters.grad = objective(parameters.detach())
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return parameters.detach()
