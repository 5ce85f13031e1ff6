"""k-means, and how well its clusters agree with classes: a measure of how separable features are."""

from __future__ import annotations

import torch
from torch import Tensor

from cggm_ray.core.seeding import generator

RESTARTS = 10
MOST_ROUNDS = 100


def purity(features_ND: Tensor, target_N: Tensor, classes: int) -> float:
    """Share of the samples whose class is the commonest one of their cluster; as many clusters as classes are sought.

    The features are scaled to [-1, 1] in every column first, as in the released code of Diagnosing and Re-learning.

    Args:
        features_ND: floating.
        target_N: int64.
        classes: number of them.

    Returns:
        A number in (0, 1]; NaN where there is no sample or a feature is not finite.
    """
    if not len(features_ND) or not bool(torch.isfinite(features_ND).all()):
        return float("nan")
    low_D, high_D = features_ND.amin(0), features_ND.amax(0)
    scaled_ND = 2 * (features_ND - low_D) / torch.where(high_D > low_D, high_D - low_D, 1.0) - 1
    cluster_N = k_means(scaled_ND.double(), min(classes, len(scaled_ND)))
    table = torch.zeros(int(cluster_N.max()) + 1, classes, dtype=torch.int64)
    table.index_put_((cluster_N, target_N), torch.ones((), dtype=torch.int64), accumulate=True)
    return float(table.amax(1).sum()) / len(target_N)


def k_means(points_ND: Tensor, clusters: int) -> Tensor:
    """The cluster of every point, int64 [N]: the best of a few runs of Lloyd's algorithm from k-means++ centres.

    The draws are always the same.
    """
    draw = generator(0, "given")
    runs = [_lloyd(points_ND, _spread(points_ND, clusters, draw)) for _ in range(RESTARTS)]
    return min(runs, key=lambda run: run[0])[1]


def _spread(points_ND: Tensor, clusters: int, draw: torch.Generator) -> Tensor:
    """Centres [C, D] that are points, each drawn in proportion to its squared distance from those before."""
    chosen = [int(torch.randint(len(points_ND), (), generator=draw))]
    nearest_N = (points_ND - points_ND[chosen[0]]).square().sum(1)
    while len(chosen) < clusters:
        # Where all points lie on centres, any will do.
        weights_N = nearest_N if bool(nearest_N.sum() > 0) else torch.ones_like(nearest_N)
        chosen.append(int(torch.multinomial(weights_N, 1, generator=draw)))
        nearest_N = torch.minimum(nearest_N, (points_ND - points_ND[chosen[-1]]).square().sum(1))
    return points_ND[chosen]


def _lloyd(points_ND: Tensor, centres_CD: Tensor) -> tuple[float, Tensor]:
    """The sum of squared distances from the centres, and the cluster of every point."""
    cluster_N = torch.full((len(points_ND),), -1)
    for _ in range(MOST_ROUNDS):
        distance_NC = torch.cdist(points_ND, centres_CD)
        now_N = distance_NC.argmin(1)
        if torch.equal(now_N, cluster_N):
            break
        cluster_N = now_N
        sums_CD = torch.zeros_like(centres_CD).index_add_(0, cluster_N, points_ND)
        count_C1 = torch.bincount(cluster_N, minlength=len(centres_CD))[:, None]
        centres_CD = torch.where(count_C1 > 0, sums_CD / count_C1.clamp(min=1), centres_CD)
    return float((points_ND - centres_CD[cluster_N]).square().sum()), cluster_N
