"""LFM: Yang et al., "Facilitating Multimodal Classification via Dynamically Learning Modality Gap" (NeurIPS 2024).

The network is an ensemble, whose prediction is the mean of the logits of its uni-modal models, and the loss mixes the fit to
the labels with the alignment of the models' predictions,

    loss = 2 (a * CE(mean of the logits) + (1 - a) * alignment),

where the share a of the labels grows with the epochs: modalities learn to agree before they learn the labels. The alignment is
that of pairs of modalities, averaged over the samples that have both and then over the pairs.

- Share: `fitted` is the polynomial of the epoch in the released code, from .20 at the beginning to .9 at its epoch 200, over
  `lfm_epochs` epochs; `constant` is `lfm_share`. The released code has a third one, which moves a by the first entry of a
  Hessian-vector product on 16 samples that it holds back from the training set, starting at .05. The polynomial was fitted to
  what came out of it there. It is not implemented: it depends on the order in which a network lists its parameters.
- Alignment: with p and q the two predictions and m their mean, `released` is (KL(m || p) + KL(m || q)) / 2, which the released
  code calls Jensen-Shannon; `jensen-shannon` is that divergence, (KL(p || m) + KL(q || m)) / 2.

Formulas are those of the released code, which is checked by recorded numbers. Of the paper the abstract and a summary were at
hand. It calls the alignment contrastive learning, which brings the modalities of a sample together and takes different samples
apart; the divergence of the released code does the former alone. By the summary its heuristic schedule is 1 - exp(-1 / t) in
epoch t, by which the share of the labels falls, where that of `fitted` grows. It is not implemented.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cggm_ray.config.fields import at_least, check, one_of, option
from cggm_ray.core.arithmetic import in_precision
from cggm_ray.core.batch import Batch, HeadOutput
from cggm_ray.core.reduction import SINGLE_WORKER, Reduce
from cggm_ray.models.ensemble import ensemble_net, members_of
from cggm_ray.strategies.base import Memo, Strategy
from cggm_ray.strategies.registry import STRATEGIES, Materials, StrategyInfo, StrategyOptions
from cggm_ray.tasks.base import Task
from cggm_ray.tasks.classification import Classification

SCHEDULES = ("fitted", "constant")
ALIGNMENTS = ("released", "jensen-shannon")
FITTED = (2.04623704e-01, 3.35472727e-03, 1.22989557e-04, -2.92947416e-06, 2.23835486e-08, -5.39717505e-11)
"""Coefficients of the share by the power of the epoch, as numbers of the released code."""
FITTED_EPOCHS = 200


@dataclass(frozen=True, kw_only=True)
class LFMOptions(StrategyOptions):
    """Flags of LFM."""

    lfm_schedule: str = option(
        "fitted", "lfm: how the share of the labels in the loss follows the epoch: fitted, constant"
    )
    lfm_epochs: int = option(200, "lfm: epochs over which the schedule fitted runs")
    lfm_share: float = option(0.5, "lfm: share of the labels in the loss with the schedule constant")
    lfm_alignment: str = option("released", "lfm: how predictions are compared: released, jensen-shannon")

    def __post_init__(self) -> None:
        one_of(self, "lfm_schedule", SCHEDULES)
        one_of(self, "lfm_alignment", ALIGNMENTS)
        at_least(self, "lfm_epochs", 1)
        check(0 < self.lfm_share <= 1, self, "lfm_share", "a number in (0, 1]")


class LFM(Strategy):
    """Mixes the fit to the labels with the agreement of the predictions of single modalities.

    The network predicts by an ensemble, which gives `HeadOutput.members`.

    Args:
        task: a classification.
        share: of the labels in every epoch; None for the fitted schedule.
        epochs: of the fitted schedule.
        alignment: 'released' or 'jensen-shannon'.
        reduce: sums a vector over workers.
    """

    def __init__(
        self,
        *,
        task: Task,
        share: float | None = None,
        epochs: int = FITTED_EPOCHS,
        alignment: str = "released",
        reduce: Reduce = SINGLE_WORKER,
    ) -> None:
        super().__init__(task=task, reduce=reduce)
        self._constant, self._epochs, self._alignment = share, epochs, alignment
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))
        self.register_buffer("share", torch.full((), self._share(0), dtype=torch.float64))

    epoch: Tensor
    share: Tensor

    def sums(self, head: HeadOutput, batch: Batch, memo: Memo) -> Tensor:
        """Of every pair of modalities [alignment, samples that have both]."""
        logits = {name: in_precision(values) for name, values in members_of(head).items()}
        parts = []
        for one, other in itertools.combinations(logits, 2):
            w_N = batch.having(one, other).sample_weights()
            apart_N = alignment(logits[one], logits[other], self._alignment)
            parts += [apart_N.double() @ w_N, w_N.sum()]
        return torch.stack(parts)

    def combine(self, task_sums: Tensor, own_sums: Tensor, memo: Memo) -> Tensor:
        """The mixture minus the task loss, to which it is added."""
        apart_P, count_P = own_sums.reshape(-1, 2).unbind(1)
        apart = (apart_P / count_P.detach().clamp(min=1)).mean()
        share = self.share.clone()
        self.diagnostics = {"alignment": apart.detach(), "share_of_labels": share}
        return 2 * (1 - share) * apart + (2 * share - 1) * self.task.combine(task_sums)

    def end_epoch(self, train: Mapping[str, float], valid: Mapping[str, float], observed: Tensor) -> None:
        """Takes the share of the next epoch."""
        self.epoch += 1
        self.share.fill_(self._share(int(self.epoch)))

    def _share(self, epoch: int) -> float:
        if self._constant is not None:
            return self._constant
        e = min(epoch * FITTED_EPOCHS / self._epochs, FITTED_EPOCHS)
        return sum(number * e**power for power, number in enumerate(FITTED))


def alignment(one_NC: Tensor, other_NC: Tensor, kind: str) -> Tensor:
    """The divergence of the predictions of two modalities for each sample, [N]; 0 where they are the same."""
    logs = [logits.log_softmax(1) for logits in (one_NC, other_NC)]
    mean = torch.stack([log.exp() for log in logs]).mean(0)
    log_mean = torch.logsumexp(torch.stack(logs), 0) - math.log(2)
    released = kind == "released"
    parts = [mean * (log_mean - log) if released else log.exp() * (log - log_mean) for log in logs]
    return torch.stack(parts).sum(2).mean(0)


def _build(given: Materials[LFMOptions]) -> Strategy:
    options = given.options
    return LFM(
        task=given.task,
        share=options.lfm_share if options.lfm_schedule == "constant" else None,
        epochs=options.lfm_epochs,
        alignment=options.lfm_alignment,
        reduce=given.reduce,
    )


STRATEGIES.register("lfm")(
    StrategyInfo(
        build=_build,
        options=LFMOptions,
        tasks=(Classification,),
        network=lambda net, guides, options: ensemble_net(net, guides, mean=True),
    )
)
