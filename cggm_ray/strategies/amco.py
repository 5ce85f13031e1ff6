"""AMCo: Zhou, Liang, Zheng, Xuan and Kumada, "Adaptive Mask Co-optimization for Modal Dependence in Multimodal Learning"
(ICASSP 2023).

A modality on which the prediction depends is made harder to use, by a mask on the units of its features, while losses of single
modalities keep it from getting worse. With z_m the logits of the guide of modality m, whose gradient reaches its encoder:

    share_m = mean over the batch of sum_c softmax([z_1, ..., z_M])_(m, c)        how much of all confidence is m's
    m is dependent in the next step where share_m > sigma
    p       = sin(pi / 2 min(eps, l) / eps),  l = (steps of the epoch so far) (epochs finished) / 10
    h_m    <- h_m without a random p of its units, the same ones for all samples, for a dependent m    (the fusion alone)
    L       = task loss + sum_m L_m                                               co-optimisation

Neither the paper's text nor code of the authors was at hand. The rules of share, p and the co-optimisation are those of
BalanceBenchmark (github.com/GeWu-Lab/BalanceBenchmark, commit 4c1482f), whose departures are:

- It masks classes of a modality's logits, where its unused setting `U: 512` and the abstract speak of features, which are
  masked here. So its L_m and shares are those of masked logits; here the guides read whole features, because a loss of masked
  logits would train a modality on less than it has.
- It predicts by the sum of uni-modal logits and another linear layer, for which there are the run's own fusion and its guides.
- It writes its mask in two rows, one for each of two devices, and fails on one unless a batch has two samples.
- It masks in its first 81 epochs; here in all.

The units are drawn by a hash of seed and step, so all workers mask the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cggm_ray.config.fields import check, option
from cggm_ray.core.batch import Batch, Feature, HeadOutput
from cggm_ray.core.errors import UsageError
from cggm_ray.core.reduction import SINGLE_WORKER, Reduce, Totals
from cggm_ray.strategies.base import Memo, Strategy
from cggm_ray.strategies.features import each
from cggm_ray.strategies.guided import Guided, MakeOptimizer
from cggm_ray.strategies.registry import STRATEGIES, Materials, StrategyInfo, StrategyOptions
from cggm_ray.tasks import Classification


@dataclass(frozen=True, kw_only=True)
class AMCoOptions(StrategyOptions):
    """Options of `amco`; the defaults are those of BalanceBenchmark."""

    amco_sigma: float = option(0.5, "amco: share of the total confidence above which a modality is masked")
    amco_eps: float = option(
        0.3, "amco: value of (steps of the epoch so far) * (finished epochs) / 10 from which on all units are masked"
    )

    def __post_init__(self) -> None:
        check(0 <= self.amco_sigma <= 1, self, "amco_sigma", "a number in [0, 1]")
        check(self.amco_eps > 0, self, "amco_eps", "a positive number")


class AMCo(Guided):
    """Masks units of the features of a modality on which the prediction depends, beside a loss for every modality.

    Args:
        guides: by modality.
        task: a classification.
        sigma: share of the total confidence above which a modality is dependent, so that it is masked in the next step.
        eps: value of (steps of the epoch so far) (finished epochs) / 10 from which on all units are masked. `end_epoch`
            counts epochs.
        seed: of the masks, the same on all workers.
        optimizer: makes the guides' optimizer from their parameters.
        reduce: sums a vector over workers.

    Raises:
        UsageError: fewer than two guides.
    """

    def __init__(
        self,
        guides: Mapping[str, nn.Module],
        *,
        task: Classification,
        sigma: float = 0.5,
        eps: float = 0.3,
        seed: int = 0,
        optimizer: MakeOptimizer,
        reduce: Reduce = SINGLE_WORKER,
    ) -> None:
        if len(guides) < 2:
            raise UsageError(f"modulation: amco needs the guides of at least two modalities, found {len(guides)}")
        super().__init__(guides, task=task, optimizer=optimizer, detach=False, reduce=reduce)
        self._sigma, self._eps, self._seed = sigma, eps, seed
        self.register_buffer("dependent_M", torch.zeros(len(guides), dtype=torch.bool))
        # Steps of the run and of the epoch, and epochs finished.
        self.register_buffer("counts", torch.zeros(3, dtype=torch.int64))

    dependent_M: Tensor
    counts: Tensor

    def transform(
        self, features: dict[str, Feature], batch: Batch, totals: Totals | None = None
    ) -> tuple[dict[str, Feature], Memo]:
        """Runs the guides on the features as they are, and masks those of dependent modalities in training."""
        memo = self.run_guides(features, batch)
        if not self.training:
            return features, memo
        p, changed = self._masked(), dict(features)
        for index, name in enumerate(self.guides):
            changed[name] = each(features[name], lambda part, index=index: self._mask(part, index, p))  # type: ignore[misc]
        return changed, memo

    def _masked(self) -> Tensor:
        """p, a scalar."""
        level = self.counts[1].double() * self.counts[2].double() / 10
        return torch.sin(math.pi / 2 * level.clamp(max=self._eps) / self._eps)

    def _mask(self, part: Tensor, index: int, p: Tensor) -> Tensor:
        """A feature [N, D], [N, T, D] or [N, C, H, W] without some of its units."""
        axis = 1 if part.ndim == 4 else part.ndim - 1
        units = part.shape[axis]
        draws_D = draws(units, self._seed * 64 + index, self.counts[0])
        # The int(p D) smallest draws are masked.
        kept_D = draws_D.argsort().argsort() >= (p * units).floor()
        kept_D = kept_D | ~self.dependent_M[index]
        return part * kept_D.to(part.dtype).reshape([-1 if place == axis else 1 for place in range(part.ndim)])

    def sums(self, head: HeadOutput, batch: Batch, memo: Memo) -> Tensor:
        """[guide losses M K | shares M | samples]; what a sample lacks has no share."""
        with torch.no_grad(), torch.autocast(batch.target.device.type, enabled=False):
            whole_NMC = torch.stack([guide.logits.double() for guide, _ in memo], 1)
            has_NM = torch.stack([counted.sample_weights() > 0 for _, counted in memo], 1)
            w_N = batch.sample_weights()
            logits = whole_NMC.masked_fill(~has_NM[:, :, None], -1e30)
            share_NM = logits.flatten(1).softmax(1).reshape(whole_NMC.shape).sum(2)
            shares = torch.where(w_N[:, None] > 0, share_NM, 0.0) * w_N[:, None]
        return torch.cat([self.guide_sums(memo), shares.sum(0), w_N.sum()[None]])

    def combine(self, task_sums: Tensor, own_sums: Tensor, memo: Memo) -> Tensor:
        """The sum of the guides' losses; finds on which modalities the prediction depends."""
        m = len(self.guides)
        losses_M = self.guide_losses(own_sums[: -m - 1].reshape(m, -1))
        share_M = own_sums.detach()[-m - 1 : -1] / own_sums.detach()[-1].clamp(min=1)
        self.diagnostics = {
            "share": share_M,
            "dependent": self.dependent_M.double(),
            "masked": self._masked(),
            "guide_loss": losses_M.detach(),
        }
        if self.training and torch.is_grad_enabled():
            self.dependent_M.copy_(share_M > self._sigma)
            self.counts[:2] += 1
        return losses_M.sum()

    def memory(self) -> list[Tensor]:
        """What a step decides for the next one."""
        return [self.dependent_M, self.counts]

    def end_epoch(self, train: Mapping[str, float], valid: Mapping[str, float], observed: Tensor) -> None:
        """Counts the epoch."""
        self.counts[1] = 0
        self.counts[2] += 1


def draws(number: int, stream: int, step: Tensor) -> Tensor:
    """So many int64 numbers that look random, a function of the stream and of the step, on the device of the step."""
    x = torch.arange(number, device=step.device) + step * 0x632BE59BD9B4E019 + stream * 0x2545F4914F6CDD1D % 2**62
    for multiplier in (-0x4B47D0C5A1B5E5A5, -0x6B2FB644ECCEEE15):
        x = (x ^ (x >> 30) ^ (x >> 61)) * multiplier
    return x ^ (x >> 31)


def _build(given: Materials[AMCoOptions]) -> Strategy:
    assert isinstance(given.task, Classification)
    return AMCo(
        given.guides,
        task=given.task,
        sigma=given.options.amco_sigma,
        eps=given.options.amco_eps,
        seed=given.seed % 2**16,
        optimizer=given.guide_optimizer,
        reduce=given.reduce,
    )


STRATEGIES.register("amco")(StrategyInfo(build=_build, options=AMCoOptions, tasks=(Classification,)))
