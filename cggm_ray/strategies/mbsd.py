"""MBSD: Liu et al., "Multimodal Pre-Training with Self-Distillation for Product Understanding in E-Commerce" (WSDM 2023,
doi 10.1145/3539597.3570423).

Every modality has a loss of its own, and what the modalities predict for a sample is drawn together.

    L = L_fused + sum_m L_m + (distance + divergence) * weight, the latter two averaged over pairs of modalities

With p_m,i the probability that guide m gives to the true class of sample i, a pair (a, b) of modalities has for sample i

    w_i = |p_a,i - p_b,i|  if a or b predicts sample i rightly, else 0,
    distance = mean_i w_i |z_a,i - z_b,i|^2 / C,
    divergence = mean_i w_i q_i (log q_i - s_i),  with s_i the larger and q_i the smaller of p_a,i and p_b,i.

z are the guides' logits where there are two modalities, and their probabilities where there are more. Gradients flow through
all of it, the weights w included.

Only the abstract of the paper could be read: a model of images and texts of products is pre-trained, and what the dominant
modality knows is distilled into the weaker one. The formulas are those of BalanceBenchmark (Xu et al., arXiv 2502.10816),
whose arithmetic is checked by recorded numbers. Three things there look like slips, or differ from the abstract, and are
kept, because no other source says what is meant: the divergence takes the probability s_i where the Kullback-Leibler
divergence has its logarithm, z changes its meaning with the number of modalities, and the stronger modality has a gradient
too. In BalanceBenchmark guides are parts of the fused linear layer; here they are networks of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cggm_ray.config.fields import check, option
from cggm_ray.core.arithmetic import in_precision
from cggm_ray.core.batch import Batch, HeadOutput
from cggm_ray.core.reduction import SINGLE_WORKER, Reduce
from cggm_ray.strategies.base import Memo, Strategy
from cggm_ray.strategies.features import check_several
from cggm_ray.strategies.guided import Guided, MakeOptimizer
from cggm_ray.strategies.registry import STRATEGIES, Materials, StrategyInfo, StrategyOptions
from cggm_ray.tasks.base import Task
from cggm_ray.tasks.classification import Classification


@dataclass(frozen=True, kw_only=True)
class MBSDOptions(StrategyOptions):
    """Flags of MBSD."""

    mbsd_weight: float = option(1.0, "mbsd: weight of the terms that make the modalities' predictions agree")

    def __post_init__(self) -> None:
        check(0 <= self.mbsd_weight < float("inf"), self, "mbsd_weight", "zero or a positive number")


class MBSD(Guided):
    """A loss for every modality, and a term that draws the predictions of every two modalities together.

    Args:
        guides: by modality.
        task: a classification.
        weight: of the terms that make the predictions agree.
        optimizer: makes the guides' optimizer from their parameters.
        reduce: sums a vector over workers.

    Raises:
        UsageError: fewer than two guides.
    """

    def __init__(
        self,
        guides: Mapping[str, nn.Module],
        *,
        task: Task,
        weight: float = 1.0,
        optimizer: MakeOptimizer,
        reduce: Reduce = SINGLE_WORKER,
    ) -> None:
        check_several(guides)
        super().__init__(guides, task=task, optimizer=optimizer, detach=False, reduce=reduce)
        self.weight = weight

    def sums(self, head: HeadOutput, batch: Batch, memo: Memo) -> Tensor:
        """[guide losses M K | of every pair: distance, divergence, samples that have both modalities]."""
        logits = {name: in_precision(guide.logits) for name, (guide, _) in zip(self.guides, memo, strict=True)}
        pairs = []
        for one, other in itertools.combinations(logits, 2):
            w_N = batch.having(one, other).sample_weights()
            parts = agreement(logits[one], logits[other], batch.target, of_logits=len(logits) == 2)
            pairs += [part_N.double() @ w_N for part_N in parts] + [w_N.sum()]
        return torch.cat([self.guide_sums(memo), torch.stack(pairs)])

    def combine(self, task_sums: Tensor, own_sums: Tensor, memo: Memo) -> Tensor:
        """sum_m L_m and the mean over pairs, of those that a sample has."""
        m, k = len(self.guides), self.task.n_sums
        losses_M = self.guide_losses(own_sums[: m * k].reshape(m, k))
        distance_P, divergence_P, count_P = own_sums[m * k :].reshape(-1, 3).unbind(1)
        count_P = count_P.detach().clamp(min=1)
        apart = (distance_P / count_P).mean(), (divergence_P / count_P).mean()
        self.diagnostics = {
            "guide_loss": losses_M.detach(),
            "distance_of_pairs": apart[0].detach(),
            "divergence_of_pairs": apart[1].detach(),
        }
        return losses_M.sum() + self.weight * (apart[0] + apart[1])


def agreement(one_NC: Tensor, other_NC: Tensor, target_N: Tensor, *, of_logits: bool) -> tuple[Tensor, Tensor]:
    """Weighted distance and divergence of every sample, [N] each, from the logits of two modalities."""
    probabilities = [logits.softmax(1) for logits in (one_NC, other_NC)]
    true_2N = torch.stack([p.gather(1, target_N[:, None])[:, 0] for p in probabilities])
    is_right_N = torch.stack([p.argmax(1) == target_N for p in probabilities]).any(0)
    strong_N, weak_N = true_2N.amax(0), true_2N.amin(0)
    w_N = torch.where(is_right_N, strong_N - weak_N, 0.0)
    left, right = (one_NC, other_NC) if of_logits else probabilities
    return w_N * (left - right).square().mean(1), w_N * (torch.xlogy(weak_N, weak_N) - weak_N * strong_N)


def _build(given: Materials[MBSDOptions]) -> Strategy:
    return MBSD(
        given.guides,
        task=given.task,
        weight=given.options.mbsd_weight,
        optimizer=given.guide_optimizer,
        reduce=given.reduce,
    )


STRATEGIES.register("mbsd")(StrategyInfo(build=_build, options=MBSDOptions, tasks=(Classification,)))
