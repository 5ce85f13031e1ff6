"""On-the-fly Prediction Modulation (Wei, Hu, Du and Wen, TPAMI 2024, arXiv 2410.11582).

The feed-forward half of the paper whose other half is OGM. A modality that predicts better than the others is dropped from the
fusion, sample by sample, so that the network has to predict from the others. A step after the warm-up, with rho_m the ratio
of OGM's equation 9 and h_m,i the feature of modality m and sample i:

    q_m   = clip( q_base (1 + lambda tanh(rho_m - 1)), 0, 1 )  if rho_m > 1, else 0          probability of dropping m
    h_m,i <- h_m,i / (1 - theta), or 0 with probability q_m,   theta = sum_m d_m q_m / sum_m d_m,  d_m the width of h_m

With probability 1 - p_exe the batch is left as it is. Written from the released code, whose names are those of the flags
(github.com/GeWu-Lab/BML_TPAMI2024). The paper's text was not at hand. A public reimplementation calls the score its equation 6,
rho equation 7 and q equation 8; scores and q are the same there, and the differences are below. What goes beyond the released
code, or was decided here:

- The scores are OGM's, for any fusion, any task and any number of modalities; see `cggm_ray.strategies.ogm`.
- For more than two modalities that reimplementation has, as equation 7, the mean of the ratios to each of the others:
  `opm_rivals ratios`. By default the ratio is to the mean of the others, as for `ogm`.
- q follows from the scores of the same batch, and the features that stay are divided by 1 - theta, both as in the released
  code; the reimplementation takes the q of the step before, and does not divide.
- The released code leaves samples out of the loss that lost all modalities. Here a sample always keeps one that it has, which
  is the same for two modalities, of which only one is ahead.
- The backward function of the released code returns theta as the gradient of theta, which reaches the encoders through the
  scores. Nothing calls for it, and it is left out.
- The draws are a function of seed, epoch and place in the epoch, so any number of workers drops the same. In a loop of your own
  they come from torch's generator.
- With several workers the scores of a step need an all-reduce of their own, because they are needed before the fusion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cggm_ray.config.fields import at_least, check, one_of, option
from cggm_ray.core.batch import Batch, EpochPlan, Feature, HeadOutput
from cggm_ray.core.reduction import SINGLE_WORKER, Reduce, Totals
from cggm_ray.core.seeding import generator
from cggm_ray.strategies.base import Memo, Strategy
from cggm_ray.strategies.features import Predict, as_in_inference, each
from cggm_ray.strategies.ogm import RIVALS, Confidence
from cggm_ray.strategies.registry import STRATEGIES, Materials, StrategyInfo, StrategyOptions
from cggm_ray.tasks.base import Task

DRAWS = "draws"
"""Name of the numbers in [0, 1) that a sample brings: [1 + M], the first of them that of its batch."""


@dataclass(frozen=True, kw_only=True)
class OPMOptions(StrategyOptions):
    """Options of `opm`; the defaults are those of the released command."""

    opm_base: float = option(0.5, "opm: least probability of dropping a modality that is ahead, q_base")
    opm_lambda: float = option(0.5, "opm: how much that probability grows for a modality that is far ahead, lambda")
    opm_execute: float = option(0.7, "opm: share of the batches in which anything is dropped, p_exe")
    opm_warmup: int = option(6, "opm: number of first epochs in which nothing is dropped")
    opm_rivals: str = option(
        "mean", "opm: what a score is divided by: mean or minimum of the others; ratios: each, then averaged"
    )

    def __post_init__(self) -> None:
        check(0 <= self.opm_base < 1, self, "opm_base", "a number in [0, 1)")
        check(self.opm_lambda >= 0, self, "opm_lambda", "zero or a positive number")
        check(0 <= self.opm_execute <= 1, self, "opm_execute", "a number in [0, 1]")
        at_least(self, "opm_warmup", 0)
        one_of(self, "opm_rivals", RIVALS)


class OPM(Confidence):
    """OPM for a model and a loop of any kind.

    Args:
        modalities: their names, in their order.
        predict: the fused prediction from features, `net.fuse`; `features.as_in_inference` wraps one with dropout or
            batch normalisation.
        task: what is predicted.
        base: least probability of dropping a modality that is ahead.
        lam: how much that probability grows for a modality that is far ahead.
        execute: share of the batches in which anything is dropped.
        warmup: number of first epochs in which nothing is dropped. `end_epoch` counts them.
        rivals: what a score is divided by; see `Confidence`.
        reduce: sums a vector over workers.

    Raises:
        UsageError: fewer than two modalities.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from cggm_ray import Classification
        >>> from cggm_ray.strategies import OPM
        >>> encoders = nn.ModuleDict({"image": nn.Linear(5, 8), "sound": nn.Linear(7, 8)})
        >>> head, task = nn.Linear(16, 3), Classification(3)
        >>> def fuse(features):
        ...     hidden = torch.cat(list(features.values()), 1)
        ...     return head(hidden), hidden
        >>> balance = OPM(["image", "sound"], fuse, task=task, warmup=0)
        >>> inputs, target = {"image": torch.randn(4, 5), "sound": torch.randn(4, 7)}, torch.tensor([0, 1, 2, 0])
        >>> features = balance.modulate({name: encoders[name](inputs[name]) for name in inputs}, target)
        >>> logits, hidden = fuse(features)
        >>> loss = task.loss(logits, target) + balance.loss(logits, hidden, target)
        >>> loss.backward(); balance.step()
    """

    def __init__(
        self,
        modalities: Sequence[str],
        predict: Predict,
        *,
        task: Task,
        base: float = 0.5,
        lam: float = 0.5,
        execute: float = 0.7,
        warmup: int = 6,
        rivals: str = "mean",
        reduce: Reduce = SINGLE_WORKER,
    ) -> None:
        super().__init__(modalities, predict, task=task, gated=False, reduce=reduce)
        self.base, self.lam, self.execute, self.warmup, self.rivals = base, lam, execute, warmup, rivals
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))

    epoch: Tensor

    def plan(self, order: Tensor, *, epoch: int, seed: int, batch_size: int) -> EpochPlan:
        """The order as it is, with numbers in [0, 1) for every sample and one for its batch."""
        draw = generator(seed, "given", epoch)
        batches = torch.rand(-(-len(order) // batch_size), generator=draw, dtype=torch.float64)
        of_batch_N1 = batches.repeat_interleave(batch_size)[: len(order), None]
        of_sample_NM = torch.rand(len(order), len(self.modalities), generator=draw, dtype=torch.float64)
        return EpochPlan(order, {DRAWS: torch.cat([of_batch_N1, of_sample_NM], 1)})

    def decide(self, sums_MK: Tensor, seen_M: Tensor) -> Tensor:
        """q [M]; 0 in the warm-up."""
        ratio_M = self.compare(sums_MK, seen_M)
        ahead_M = (ratio_M > 1) & (self.epoch >= self.warmup)
        return torch.where(ahead_M, self.base * (1 + self.lam * torch.tanh(ratio_M - 1)), 0.0).clamp(0, 1)

    def transform(
        self, features: dict[str, Feature], batch: Batch, totals: Totals | None = None
    ) -> tuple[dict[str, Feature], Memo]:
        """The features with zeros where a modality was dropped, in training."""
        if not (self.training and torch.is_grad_enabled()):
            return features, None
        scores = self.reduce(self._scores(self.answers(features, batch), batch))
        q_M = self._coefficients(scores)
        self.diagnostics["drop"] = self.diagnostics.pop("coefficient")
        # Filled on the device: a tensor made of a list would wait for it.
        widths_M = torch.stack([torch.full_like(q_M[0], _width(features[name])) for name in self.modalities])
        theta = (widths_M * q_M).sum() / widths_M.sum()
        draws_N = None if batch.given is None else batch.given.get(DRAWS)
        if draws_N is None:
            draws_N = torch.rand(len(batch), 1 + len(q_M), device=q_M.device, dtype=q_M.dtype)
            draws_N[:, 0] = draws_N[:1, 0].clone()
        runs_N1 = draws_N[:, :1] >= 1 - self.execute
        kept_NM = self._keep(draws_N[:, 1:], q_M, batch)
        factor_NM = torch.where(runs_N1, kept_NM / (1 - theta).clamp(min=1e-6), 1.0)
        changed = {
            name: _times(features[name], factor_N)
            for name, factor_N in zip(self.modalities, factor_NM.unbind(1), strict=True)
        }
        return changed, None

    def _keep(self, draw_NM: Tensor, q_M: Tensor, batch: Batch) -> Tensor:
        """Where a sample keeps a modality, bool [N, M]; at least one that it has."""
        present = batch.present or {}
        everyone = torch.ones(len(batch), dtype=torch.bool, device=q_M.device)
        there_NM = torch.stack([present.get(name, everyone) for name in self.modalities], 1)
        # The one that is dropped least stays where all that a sample has would go.
        margin_NM = (draw_NM - q_M).masked_fill(~there_NM, -2.0)
        last_NM = torch.arange(len(q_M), device=q_M.device) == margin_NM.argmax(1, keepdim=True)
        return (draw_NM >= q_M) | last_NM

    def sums(self, head: HeadOutput, batch: Batch, memo: Memo) -> Tensor:
        """Returns no sums, because the scores were summed before the fusion."""
        return Strategy.sums(self, head, batch, memo)

    def combine(self, task_sums: Tensor, own_sums: Tensor, memo: Memo) -> Tensor:
        """There is no term of the loss."""
        return own_sums.new_zeros(())

    def end_epoch(self, train: Mapping[str, float], valid: Mapping[str, float], observed: Tensor) -> None:
        """Counts the epoch."""
        self.epoch += 1


def _width(feature: Feature) -> int:
    """Numbers of a sample's feature."""
    parts = feature if isinstance(feature, tuple) else (feature,)
    return sum(part[0].numel() for part in parts)


def _times(feature: Feature, factor_N: Tensor) -> Feature:
    return each(feature, lambda part: part * factor_N.to(part.dtype).reshape(-1, *[1] * (part.ndim - 1)))


def _build(given: Materials[OPMOptions]) -> Strategy:
    options = given.options
    return OPM(
        given.modalities,
        as_in_inference(given.net),
        task=given.task,
        base=options.opm_base,
        lam=options.opm_lambda,
        execute=options.opm_execute,
        warmup=options.opm_warmup,
        rivals=options.opm_rivals,
        reduce=given.reduce,
    )


RECIPE = {"optim": "AdamW", "lr": 5e-5, "weight_decay": 0.01, "clip": 0.0, "batch_size": 32, "num_epochs": 100}
STRATEGIES.register("opm")(StrategyInfo(build=_build, options=OPMOptions, whole_batch=True, recipe=RECIPE))
