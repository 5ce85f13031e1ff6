"""InfoReg: Huang, Wei, Yang and Hu, "Adaptive Unimodal Regulation for Balanced Multimodal Information Acquisition" (CVPR 2025,
arXiv 2503.18595).

A modality that is ahead is held near its weights of the beginning of the epoch while information is still acquired fast. With
L_m the loss of what the fused network answers from modality m alone, s_m the sum over the batch of the probabilities of the
true classes in that answer, g_m the gradient of the encoder and theta_m its weights:

    L      = task loss + sum_m L_m
    gap_m  = s_m - mean of the others' s
    g_m   <- g_m + beta_m (theta_m - theta_m at the beginning of the epoch)
    beta_m = mu_m exp(tanh(gap_m))  if gap_m > 0 and k_m > threshold, else 0

k_m says whether the epoch belongs to the prime learning window. T_m(e) is the trace of the Fisher information in epoch e: the
sum over the weights of the encoder (matrices and convolutions) of the mean over their entries of the sum over the steps of the
squared gradients.

    k_m = (T_m(e - 1) - T_m(e - 11)) / (T_m(e - 10) + ... + T_m(e - 1)),   T = 0 before the first epoch;  1 in epoch 0

The formulas are those of the released code (github.com/GeWu-Lab/InfoReg_CVPR2025), for two modalities. There mu is .95 for
audio and .1 for vision, the threshold .05. The paper has other formulas, for any number of modalities: `inforeg_reading paper`,

    L      = task loss                                            (the losses L_m belong to the variant that it calls InfoReg*)
    s_m    = mean over the batch of log softmax(answer of m)[y]                    (eq. 8, printed with a minus sign)
    gap_m  = mean of s_m - s_k over the modalities k with s_k < s_m, 0 for the last                        (eq. 9 and 10)
    k_m    = (T_m(e - 1) - T_m(e - 2)) / T_m(e - 1),  T_m the mean of |g_m|^2          (eq. 7 and 11; none before epoch 2)
    beta_m = exp(mu tanh(gap_m))  where gap_m > 0 and k_m > threshold                             (eq. 12 and 16)

with mu .9 and the threshold .04 as the best values for CREMA-D and Kinetics Sounds. With the minus sign of equation 8 the
modality with the largest loss would be held, against the text around it. The expectation in T is a sum over steps here, of the
gradients of the task loss of the global batch, as in its equation 13. What was decided here:

- The answer of a modality is that of OGM in the reading `shared`, with gradient: for a linear head over a concatenation its own
  part of the head and half of the bias, as in that code; for any other fusion what it says when the others' features are zero.
- That code takes k of the audio encoder for both modalities; here each has its own.
- For regression and segmentation the score is exp(-loss) times the samples, and in the paper's reading minus the loss.
- A loop of your own calls `begin_epoch(epoch, {})` before an epoch, which takes the weights, and `end_epoch` after it. With a
  `GradScaler` it calls `unscale_` before `adjust`, as for clipping.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cggm_ray.config.fields import check, one_of, option
from cggm_ray.core.arithmetic import in_precision
from cggm_ray.core.batch import Batch, Feature, HeadOutput
from cggm_ray.core.reduction import SINGLE_WORKER, Reduce, Totals
from cggm_ray.strategies.base import Memo, Strategy
from cggm_ray.strategies.by_modality import numbers_by_modality
from cggm_ray.strategies.features import Predict, as_in_inference, each
from cggm_ray.strategies.guided import losses_of
from cggm_ray.strategies.registry import STRATEGIES, Materials, Setting, StrategyInfo, StrategyOptions
from cggm_ray.tasks import Classification, Task

READINGS = ("released", "paper")
EPOCHS = 10
"""Epochs over which the traces are added up."""


@dataclass(frozen=True, kw_only=True)
class InfoRegOptions(StrategyOptions):
    """Options of `inforeg`; the defaults are those of the released code for its dominant modality."""

    inforeg_mu: float = option(
        0.95, "inforeg: how strongly an encoder that is ahead is pulled to its weights at the start of the epoch"
    )
    inforeg_mus: tuple[str, ...] | None = option(
        None, "inforeg: the same by modality: audio=0.95,vision=0.1, or one number for each, in their order"
    )
    inforeg_threshold: float = option(0.05, "inforeg: growth of the Fisher trace below which an encoder is not pulled")

    inforeg_reading: str = option("released", "inforeg: formulas of the released code or of the paper: released, paper")

    def __post_init__(self) -> None:
        one_of(self, "inforeg_reading", READINGS)
        check(self.inforeg_mu >= 0, self, "inforeg_mu", "zero or a positive number")


@dataclass
class _Memo:
    """Of a pass: what each modality alone predicts, the batch of those that have it, and beta [M], which `combine` finds."""

    answers: list[tuple[Tensor, Batch]]
    beta_M: Tensor | None = None


class InfoReg(Strategy):
    """Pulls the encoder of a modality that is ahead to its weights at the beginning of the epoch.

    Args:
        encoders: by modality.
        predict: the fused prediction from features, `net.fuse`; it is called with gradient.
        task: what is predicted.
        mus: by modality, how strongly an encoder that is ahead is pulled; default .95.
        threshold: growth of the Fisher trace below which an encoder is not pulled.
        paper: whether the formulas are those of the paper, not of the released code.
        reduce: sums a vector over workers.
    """

    adjusts = True

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        predict: Predict,
        *,
        task: Task,
        mus: Mapping[str, float] | None = None,
        threshold: float = 0.05,
        paper: bool = False,
        reduce: Reduce = SINGLE_WORKER,
    ) -> None:
        super().__init__(task=task, reduce=reduce)
        self.modalities, self._predict, self._threshold = tuple(encoders), (predict,), threshold
        self._paper = paper
        # In lists: the parameters are the network's, and their values no buffers, which a loop copies in every step.
        self._parameters_M = [list(encoder.parameters()) for encoder in encoders.values()]
        self._before_M = [[values.detach().clone() for values in of_one] for of_one in self._parameters_M]
        size = len(self.modalities)
        of_each = [(mus or {}).get(name, 0.95) for name in encoders]
        self.register_buffer("mu_M", torch.tensor(of_each, dtype=torch.float64), persistent=False)
        self.register_buffer("trace_M", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("traces_EM", torch.zeros(EPOCHS + 1, size, dtype=torch.float64))
        self.register_buffer("growth_M", torch.full((size,), float(not paper), dtype=torch.float64))

    mu_M: Tensor
    trace_M: Tensor
    traces_EM: Tensor
    growth_M: Tensor

    @torch.no_grad()
    def begin_epoch(self, epoch: int, measured: Mapping[str, Tensor]) -> None:
        """Takes the weights near which encoders are held."""
        for before, parameters in zip(self._before_M, self._parameters_M, strict=True):
            for old, parameter in zip(before, parameters, strict=True):
                old.copy_(parameter)

    def transform(
        self, features: dict[str, Feature], batch: Batch, totals: Totals | None = None
    ) -> tuple[dict[str, Feature], Memo]:
        """Predicts from every modality alone, with gradient where it has a loss; the features stay as they are."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._paper):
            return features, _Memo(self._answers(features, batch))

    def _answers(self, features: dict[str, Feature], batch: Batch) -> list[tuple[Tensor, Batch]]:
        zeros = {name: each(part, torch.zeros_like) for name, part in features.items()}
        of_none = self._said(zeros, batch)
        share = 1 - 1 / len(self.modalities)
        return [
            (self._said(zeros | {name: features[name]}, batch) - share * of_none, batch.having(name))
            for name in self.modalities
        ]

    def _said(self, features: Mapping[str, Feature], batch: Batch) -> Tensor:
        (predict,) = self._predict
        return in_precision((predict(features) if batch.masks is None else predict(features, batch.masks))[0])

    def sums(self, head: HeadOutput, batch: Batch, memo: Memo) -> Tensor:
        """[losses M K | scores M | samples M]; the score of a classification is a sum of probabilities."""
        losses = torch.cat([self.task.sums(logits, counted) for logits, counted in memo.answers])
        counts = torch.stack([counted.sample_weights().sum() for _, counted in memo.answers])
        return torch.cat([losses, torch.stack([self._score(*answer) for answer in memo.answers]), counts])

    def _score(self, logits: Tensor, counted: Batch) -> Tensor:
        w = counted.sample_weights()
        if not isinstance(self.task, Classification):
            return w.new_zeros(())
        probability = logits.detach().softmax(1).gather(1, counted.target[:, None])[:, 0].double()
        return (torch.where(w > 0, probability, 0.0) * w).sum()

    def combine(self, task_sums: Tensor, own_sums: Tensor, memo: Memo) -> Tensor:
        """The sum of the modalities' losses; finds how strongly each encoder is held."""
        m = len(self.modalities)
        losses_M = losses_of(self.task, own_sums[: -2 * m].reshape(m, -1))
        score_M, count_M = own_sums.detach()[-2 * m :].chunk(2)
        seen_M = count_M > 0
        if self._paper:
            score_M = -losses_M.detach()
            gap_M = ahead_of(score_M, seen_M)
        else:
            if not isinstance(self.task, Classification):
                score_M = torch.where(seen_M, torch.exp(-losses_M.detach()) * count_M, 0.0)
            gap_M = score_M - (score_M.sum() - score_M) / (seen_M.sum() - 1).clamp(min=1)
        held_M = seen_M & (seen_M.sum() > 1) & (gap_M > 0) & (self.growth_M > self._threshold)
        mu_M, bent_M = self.mu_M, torch.tanh(gap_M)
        memo.beta_M = torch.where(held_M, torch.exp(mu_M * bent_M) if self._paper else mu_M * torch.exp(bent_M), 0.0)
        self.diagnostics = {
            "score": score_M if self._paper else score_M / count_M.clamp(min=1),
            "beta": memo.beta_M,
            "growth": self.growth_M.clone(),
        }
        return losses_M.new_zeros(()) if self._paper else losses_M.sum()

    @torch.no_grad()
    def adjust_gradients(self, memo: Memo) -> None:
        """Holds the encoders by beta (theta - theta of before), and adds the squares of the gradients to the traces.

        In the paper's reading the squares are those of the gradients without the pull.
        """
        squares = []
        for parameters, before, beta in zip(self._parameters_M, self._before_M, memo.beta_M, strict=True):
            reached = [(p.grad, p, old) for p, old in zip(parameters, before, strict=True) if p.grad is not None]
            if not reached:
                squares.append(torch.zeros_like(beta))
                continue
            gradients, weights, begun = (list(part) for part in zip(*reached, strict=True))
            if self._paper:
                squares.append(self._square(gradients))
            # Operations on lists: one for all weights, where a GPU would start one for each.
            away = torch._foreach_sub(weights, begun)
            torch._foreach_mul_(away, beta.to(away[0].dtype))
            torch._foreach_add_(gradients, away)
            if not self._paper:
                squares.append(self._square(gradients))
        squares_M = torch.stack(squares)
        self.trace_M.add_(torch.where(squares_M.isfinite().all(), squares_M, 0.0))

    def _square(self, gradients: list[Tensor]) -> Tensor:
        """The sum over weights of the mean of their squared gradients; in the paper's reading the sum of all squares."""
        taken = gradients if self._paper else [gradient for gradient in gradients if gradient.ndim > 1]
        if not taken:
            return self.trace_M.new_zeros(())
        squares = torch.stack(torch._foreach_norm(taken, 2, torch.float64)).square()
        if self._paper:
            return squares.sum()
        return (squares / torch.cat([torch.full_like(squares[:1], each.numel()) for each in taken])).sum()

    def end_epoch(self, train: Mapping[str, float], valid: Mapping[str, float], observed: Tensor) -> None:
        """Finds from the traces whether the next epoch belongs to the window."""
        self.traces_EM.copy_(torch.cat([self.traces_EM[1:], self.trace_M[None]]))
        if self._paper:
            last_M, before_M = self.traces_EM[-1], self.traces_EM[-2]
            growth_M = torch.where(before_M > 0, (last_M - before_M) / last_M, 0.0)
        else:
            growth_M = (self.traces_EM[-1] - self.traces_EM[0]) / self.traces_EM[1:].sum(0)
        self.growth_M.copy_(growth_M.nan_to_num(nan=0.0))
        self.trace_M.zero_()

    def get_extra_state(self) -> dict[str, Any]:
        """The weights of the beginning of the epoch."""
        return {"before": self._before_M}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Puts them back."""
        pairs = zip(state["before"], self._parameters_M, strict=True)
        self._before_M = [
            [old.to(parameter.device, copy=True) for old, parameter in zip(before, parameters, strict=True)]
            for before, parameters in pairs
        ]


def ahead_of(score_M: Tensor, seen_M: Tensor) -> Tensor:
    """By how much each score is above those below it, on average [M]; 0 for the last one, equations 9 and 10."""
    below_MM = (score_M[None, :] < score_M[:, None]) & seen_M[None, :] & seen_M[:, None]
    gaps_MM = torch.where(below_MM, score_M[:, None] - score_M[None, :], 0.0)
    return gaps_MM.sum(1) / below_MM.sum(1).clamp(min=1)


def _mus(given: Setting[InfoRegOptions]) -> dict[str, float]:
    options, names = given.options, given.modalities
    if options.inforeg_mus is None:
        return dict.fromkeys(names, options.inforeg_mu)
    return numbers_by_modality("inforeg_mus", options.inforeg_mus, names, zero=True)


def _build(given: Materials[InfoRegOptions]) -> Strategy:
    return InfoReg(
        dict(given.net.encoders.items()),
        as_in_inference(given.net),
        task=given.task,
        mus=_mus(given),
        threshold=given.options.inforeg_threshold,
        paper=given.options.inforeg_reading == "paper",
        reduce=given.reduce,
    )


RECIPE = {"optim": "SGD", "lr": 2e-3, "weight_decay": 1e-4, "clip": 0.0, "batch_size": 64, "num_epochs": 50}
STRATEGIES.register("inforeg")(StrategyInfo(build=_build, options=InfoRegOptions, check=_mus, recipe=RECIPE))
