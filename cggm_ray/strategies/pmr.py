"""PMR, prototypical modal rebalance: Fan, Xu, Wang, Wang and Guo, CVPR 2023 (arXiv 2211.07089).

Every modality m has a prototype c_mk for each class k, the mean of the features z_m of that class (eq. 6), and with them a
classifier without parameters, from Euclidean distances d (eq. 7):

    p_m(k | z) = exp(-d(z, c_mk)) / sum_j exp(-d(z, c_mj))

1. The prototypical cross-entropy L_PCE,m = -log p_m(y) pulls features towards the prototype of their class (eq. 9).
2. The imbalance ratio rho compares s_m, the mean over the batch of p_m(y). With two modalities rho = s_0 / s_1 (eq. 8),
   beta = clip(1 / rho - 1, 0, 1) and gamma = clip(rho - 1, 0, 1) (eq. 11); the slow one is accelerated (eq. 10):
   L_acc = L_CE + alpha (beta L_PCE,0 + gamma L_PCE,1).
3. In the first epochs the dominant modality is kept from an early end by the entropy H of its p_m (eq. 13):
   L = L_acc - mu (gamma H(p_0) + beta H(p_1)).
4. After an epoch, c <- momentum c + (1 - momentum) (mean of the epoch) (eq. 12).

The paper has alpha 1 or 2 and mu .01 or .001, and names neither momentum nor the number of first epochs.

For M modalities the factor of acceleration is clip(max_k s_k / s_m - 1, 0, 1), that of the entropy
clip(s_m / max_{k != m} s_k - 1, 0, 1): only the best one is held back. For two these are beta and gamma.

What is not the paper's: it takes the prototypes before every epoch, in a pass of its own over a tenth of the training split;
here they are the means of the features that training sees, which costs no pass. In the first epoch they are the means so far.
`pmr_reading paper` has the pass, over at most `pmr_samples` training samples.

`pmr_reading released` is the arithmetic of the released code (github.com/fanyunfeng-bit/Modal-Imbalance-PMR): beta is 1 for the
modality that is behind and 0 for the other, there is no entropy, and the prototypes come from a pass in evaluation mode before
the first epoch and after every one, over at most `pmr_samples` training samples, so they stay as they are within an epoch.
Before epoch 0 and before epoch 1 they are the means alone, because that code counts the epoch that has ended. The term
counts in the first `pmr_ends` epochs. Its commands have alpha 1 to 3, momentum 0 and 61, 71 or 101 epochs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from cggm_ray.config.fields import at_least, check, one_of, option
from cggm_ray.core.batch import Batch, Feature, HeadOutput
from cggm_ray.core.reduction import SINGLE_WORKER, Reduce, Totals
from cggm_ray.strategies.base import Memo, Strategy
from cggm_ray.strategies.features import PooledFeatures, pooled
from cggm_ray.strategies.registry import STRATEGIES, Materials, StrategyInfo, StrategyOptions
from cggm_ray.tasks import Classification


@dataclass(frozen=True, kw_only=True)
class PMROptions(StrategyOptions):
    """Flags of PMR."""

    pmr_alpha: float = option(1.0, "pmr: weight of the prototypical cross-entropy")
    pmr_mu: float = option(0.01, "pmr: weight of the entropy of the dominant modality")
    pmr_epochs: int = option(10, "pmr: number of first epochs in which the entropy counts")
    pmr_momentum: float = option(0.2, "pmr: weight of the old prototypes in their average with the means of an epoch")
    pmr_reading: str = option("graded", "pmr: variant: graded, paper, released (see docs/strategies.md)")
    pmr_ends: int = option(0, "pmr: number of first epochs in which the prototypical cross-entropy counts; 0 for all")
    pmr_samples: int = option(
        0, "pmr: largest number of training samples in the pass for prototypes, where the reading has one; 0 for all"
    )

    def __post_init__(self) -> None:
        for name in ("pmr_alpha", "pmr_mu"):
            check(getattr(self, name) >= 0, self, name, "zero or a positive number")
        for name in ("pmr_epochs", "pmr_ends", "pmr_samples"):
            at_least(self, name, 0)
        one_of(self, "pmr_reading", READINGS)
        check(0 <= self.pmr_momentum < 1, self, "pmr_momentum", "a number in [0, 1)")


READINGS = ("graded", "paper", "released")
_Pooled = list[tuple[Tensor, Tensor]]
"""By modality: pooled features [N, D], and the weights [N] of the samples, 0 for those without it."""


class PMR(Strategy):
    """Pulls the features of a modality that lags behind to the prototypes of their classes.

    Args:
        modalities: names, in their order.
        task: a classification.
        alpha: weight of the prototypical cross-entropy.
        mu: weight of the entropy of the dominant modality.
        epochs: number of first epochs in which that entropy counts.
        momentum: weight of the old prototypes in their average with the means of an epoch.
        reading: 'graded'; 'paper', where prototypes come from a pass of their own; or 'released', as in the released code.
        ends: number of first epochs in which the prototypical cross-entropy counts; 0 for all.
        samples: largest number of training samples in the pass for prototypes; 0 for all.
        reduce: sums a vector over workers.
    """

    against_compile = "its prototypes move before the backward pass"

    def __init__(
        self,
        modalities: Sequence[str],
        *,
        task: Classification,
        alpha: float = 1.0,
        mu: float = 0.01,
        epochs: int = 10,
        momentum: float = 0.2,
        reading: str = "graded",
        ends: int = 0,
        samples: int = 0,
        reduce: Reduce = SINGLE_WORKER,
    ) -> None:
        super().__init__(task=task, reduce=reduce)
        self._released, self._passes = reading == "released", reading != "graded"
        self._ends, self._samples = ends, samples
        self._names, self._classes = tuple(modalities), task.outputs
        self._alpha, self._mu, self._epochs, self._momentum = alpha, mu, epochs, momentum
        for index in range(len(self._names)):
            # [C, D] each; the width D is known at the first batch.
            self.register_buffer(f"prototype_{index}", torch.zeros(0, dtype=torch.float64))
            self.register_buffer(f"epoch_sum_{index}", torch.zeros(0, dtype=torch.float64))
        size = (len(self._names), self._classes)
        self.register_buffer("epoch_count_MC", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("known_MC", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))

    epoch_count_MC: Tensor
    known_MC: Tensor
    epoch: Tensor

    def transform(
        self, features: dict[str, Feature], batch: Batch, totals: Totals | None = None
    ) -> tuple[dict[str, Feature], Memo]:
        """Pools the features, which are the memo and stay as they are."""
        memo: _Pooled = []
        for index, name in enumerate(self._names):
            z_ND = pooled(features[name], None if batch.masks is None else batch.masks.get(name))
            self._make_room(index, z_ND)
            memo.append((z_ND, batch.having(name).sample_weights()))
        return features, memo

    def _make_room(self, index: int, z_ND: Tensor) -> None:
        if self._prototype(index).numel() == 0:
            empty = torch.zeros(self._classes, z_ND.shape[1], dtype=torch.float64, device=z_ND.device)
            setattr(self, f"prototype_{index}", empty)
            setattr(self, f"epoch_sum_{index}", empty.clone())

    def sums(self, head: HeadOutput, batch: Batch, memo: Memo) -> Tensor:
        """[cross-entropies, entropies, scores, counts: 4 M | classes' counts M C | classes' features M C D]."""
        parts, counts, means = [], [], []
        for index, (z_ND, w) in enumerate(memo):
            with torch.no_grad():
                onehot_NC = torch.nn.functional.one_hot(batch.target, self._classes).double() * w[:, None]
                counts.append(onehot_NC.sum(0))
                # A sample that does not count may hold anything.
                means.append((onehot_NC.T @ torch.where(w[:, None] > 0, z_ND.double(), 0.0)).flatten())
            parts.append(self._measures(index, z_ND, batch.target, w))
        return torch.cat([torch.stack(parts).T.flatten(), *counts, *means])

    def _measures(self, index: int, z_ND: Tensor, target: Tensor, w: Tensor) -> Tensor:
        """Sums [4] of one modality, over samples whose class has a prototype."""
        known_C = self.known_MC[index].clone()
        # `combine` moves the prototypes before the backward pass.
        prototype_CD = self._prototype(index).to(z_ND.dtype, copy=True)
        distance_NC = torch.cdist(z_ND, prototype_CD, compute_mode="donot_use_mm_for_euclid_dist")
        # Large instead of infinite, so that no gradient is NaN; its exponential is 0 all the same.
        logits_NC = torch.where(known_C, -distance_NC, -1e30).double()
        log_p_NC = logits_NC.log_softmax(1)
        of_truth = log_p_NC.gather(1, target[:, None])[:, 0]
        counts = (w > 0) & known_C[target]
        entropy = -(log_p_NC.exp() * torch.where(known_C, log_p_NC, 0.0)).sum(1)
        values = (-of_truth, entropy, of_truth.detach().exp(), torch.ones_like(of_truth))
        return torch.stack([(torch.where(counts, value, 0.0) * w).sum() for value in values])

    def combine(self, task_sums: Tensor, own_sums: Tensor, memo: Memo) -> Tensor:
        """alpha * (accelerating terms) - mu * (entropies); takes the batch into the means of the epoch."""
        m, c = len(self._names), self._classes
        measures_4M = own_sums[: 4 * m].reshape(4, m)
        count_M = measures_4M[3].detach()
        seen_M = count_M > 0
        loss_M, entropy_M, score_M = (torch.where(seen_M, row, 0.0) / count_M.clamp(min=1) for row in measures_4M[:3])
        faster_M, held_M = (behind if self._released else coefficients)(score_M.detach(), seen_M)
        early = (self.epoch < self._epochs).double()
        if self._ends:
            faster_M = faster_M * (self.epoch < self._ends)
        if not self._passes:
            self._remember(own_sums.detach()[4 * m :], m, c)
        self.diagnostics = {
            "coefficient": faster_M,
            "entropy_coefficient": held_M * early,
            "score": score_M.detach(),
            "prototype_loss": loss_M.detach(),
        }
        return self._alpha * (faster_M * loss_M).sum() - self._mu * early * (held_M * entropy_M).sum()

    def _remember(self, sums: Tensor, m: int, c: int) -> None:
        self.epoch_count_MC.add_(sums[: m * c].reshape(m, c))
        first, start = self.epoch == 0, m * c
        for index in range(m):
            sum_CD, prototype_CD = self._epoch_sum(index), self._prototype(index)
            sum_CD.add_(sums[start : start + sum_CD.numel()].reshape_as(sum_CD))
            start += sum_CD.numel()
            mean_CD = sum_CD / self.epoch_count_MC[index, :, None].clamp(min=1e-12)
            prototype_CD.copy_(torch.where(first, mean_CD, prototype_CD))
        self.known_MC.copy_(torch.where(first, self.epoch_count_MC > 0, self.known_MC))

    @property
    def begins_epochs(self) -> bool:
        """Whether prototypes are taken before an epoch."""
        return self._passes

    def measures(self, epoch: int) -> Mapping[str, int | None]:
        """The training split, for prototypes from a pass of their own."""
        return {"train": self._samples or None} if self._passes else {}

    def measure(self, features: dict[str, Feature], batch: Batch) -> Tensor:
        """[class | whether the sample has the modality M | pooled features D_1 + ... + D_M]."""
        found = PooledFeatures.of(self._names, features, batch)
        for index, z_ND in enumerate(found.features):
            self._make_room(index, z_ND)
        return found.joined()

    def begin_epoch(self, epoch: int, measured: Mapping[str, Tensor]) -> None:
        """Takes the prototypes from their pass."""
        if not measured:
            return
        device = self.known_MC.device
        found = PooledFeatures.split(
            measured["train"], [self._prototype(index).shape[1] for index in range(len(self._names))]
        )
        for index, (has_N, z_ND) in enumerate(zip(found.has, found.features, strict=True)):
            onehot_NC = torch.nn.functional.one_hot(found.target[has_N], self._classes).double()
            sum_CD, count_C = (onehot_NC.T @ z_ND[has_N]).to(device), onehot_NC.sum(0).to(device)
            kept_C = self.known_MC[index] & (epoch > int(self._released))
            share_C1 = torch.where(kept_C, self._momentum, 0.0)[:, None]
            prototype_CD = self._prototype(index)
            moved_CD = share_C1 * prototype_CD + (1 - share_C1) * sum_CD / count_C[:, None].clamp(min=1)
            prototype_CD.copy_(torch.where(count_C[:, None] > 0, moved_CD, prototype_CD))
            self.known_MC[index].logical_or_(count_C > 0)

    def memory(self) -> list[Tensor]:
        """Prototypes, and the sums of the running epoch."""
        indices = range(len(self._names))
        return [
            self.epoch_count_MC,
            self.known_MC,
            *map(self._prototype, indices),
            *map(self._epoch_sum, indices),
        ]

    def end_epoch(self, train: Mapping[str, float], valid: Mapping[str, float], observed: Tensor) -> None:
        """Moves the prototypes of the classes that the epoch held towards their means."""
        if self._passes:
            self.epoch += 1
            return
        seen_MC = self.epoch_count_MC > 0
        for index in range(len(self._names)):
            sum_CD, prototype_CD = self._epoch_sum(index), self._prototype(index)
            mean_CD = sum_CD / self.epoch_count_MC[index, :, None].clamp(min=1e-12)
            share_C1 = torch.where(self.known_MC[index], self._momentum, 0.0)[:, None]
            moved_CD = share_C1 * prototype_CD + (1 - share_C1) * mean_CD
            prototype_CD.copy_(torch.where(seen_MC[index, :, None], moved_CD, prototype_CD))
            sum_CD.zero_()
        self.known_MC.logical_or_(seen_MC)
        self.epoch_count_MC.zero_()
        self.epoch += 1

    def _prototype(self, index: int) -> Tensor:
        found: Tensor = getattr(self, f"prototype_{index}")
        return found

    def _epoch_sum(self, index: int) -> Tensor:
        found: Tensor = getattr(self, f"epoch_sum_{index}")
        return found

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        # Buffers whose width is not known yet take that of the state.
        for name, buffer in list(self.named_buffers(recurse=False)):
            saved = state_dict.get(prefix + name)
            if saved is not None and buffer.numel() == 0:
                setattr(self, name, torch.zeros(saved.shape, dtype=buffer.dtype, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)  # type: ignore[arg-type]


def behind(score_M: Tensor, seen_M: Tensor) -> tuple[Tensor, Tensor]:
    """The released code's factors: 1 for every modality whose score is below the best one, and no entropy."""
    best = torch.where(seen_M, score_M, -1.0).max()
    return (seen_M & (score_M < best)).to(score_M.dtype), torch.zeros_like(score_M)


def coefficients(score_M: Tensor, seen_M: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of acceleration and of the entropy, [M] each, in [0, 1]; 0 for what the batch lacks.

    Args:
        score_M: mean probability of the true class.
        seen_M: bool, whether there is a score.
    """
    score_M = torch.where(seen_M, score_M, 0.0)
    others_M = torch.where(torch.eye(len(score_M), dtype=torch.bool, device=score_M.device), 0.0, score_M).amax(1)
    smallest = 1e-30
    faster_M = (score_M.max() / score_M.clamp(min=smallest) - 1).clamp(0, 1)
    held_M = (score_M / others_M.clamp(min=smallest) - 1).clamp(0, 1)
    # With one score there is nothing to compare.
    several = (seen_M.sum() > 1) & seen_M
    return torch.where(several, faster_M, 0.0), torch.where(several, held_M, 0.0)


def _build(given: Materials[PMROptions]) -> Strategy:
    options = given.options
    return PMR(
        given.modalities,
        task=cast(Classification, given.task),
        alpha=options.pmr_alpha,
        mu=options.pmr_mu,
        epochs=options.pmr_epochs,
        momentum=options.pmr_momentum,
        reading=options.pmr_reading,
        ends=options.pmr_ends,
        samples=options.pmr_samples,
        reduce=given.reduce,
    )


# Its command for CREMA-D.
RECIPE = {
    **{"optim": "SGD", "lr": 1e-3, "weight_decay": 1e-4, "clip": 0.0, "batch_size": 64, "num_epochs": 100},
    **{"pmr_reading": "released", "pmr_alpha": 2.0, "pmr_momentum": 0.0, "pmr_ends": 71},
}
STRATEGIES.register("pmr")(StrategyInfo(build=_build, options=PMROptions, tasks=(Classification,), recipe=RECIPE))
