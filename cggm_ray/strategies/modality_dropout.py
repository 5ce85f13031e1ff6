"""Modality dropout (ModDrop: Neverova et al., TPAMI 2016, arXiv 1501.00102).

In training every modality of every sample is dropped with probability p, the draws are independent: its features are zeros
at the input of the fusion, which learns to do without it, and its encoder gets no gradient from that sample. What is kept is
not scaled up. A sample never loses all it has: where every modality was drawn to be dropped, one of those that it has is
kept, each with the same probability. Nothing is dropped in evaluation.

The paper, of which the abstract could be read, also initialises each modality with care and brings them together step by step.
That is not part of this strategy.

The draws come from torch's generator, like those of every other dropout: they differ between workers, and a batch that is
taken in parts draws others than a whole one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cggm_ray.config.fields import check, option
from cggm_ray.core.batch import Batch, Feature, HeadOutput
from cggm_ray.core.errors import UsageError
from cggm_ray.core.reduction import SINGLE_WORKER, Reduce, Totals
from cggm_ray.strategies.base import Memo, Strategy
from cggm_ray.strategies.features import each
from cggm_ray.strategies.registry import STRATEGIES, Materials, StrategyInfo, StrategyOptions
from cggm_ray.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class ModalityDropoutOptions(StrategyOptions):
    """Options of `modality-dropout`."""

    modality_dropout_p: float = option(0.2, "modality-dropout: probability that a sample loses a modality in a step")

    def __post_init__(self) -> None:
        check(0 <= self.modality_dropout_p < 1, self, "modality_dropout_p", "a probability in [0, 1)")


class _Memo(NamedTuple):
    """Of a pass: which modalities the samples kept, and which they have."""

    kept_MN: Tensor
    there_MN: Tensor


class ModalityDropout(Strategy):
    """Modality dropout for a model and a loop of any kind.

    Args:
        task: what is predicted.
        p: probability that a sample loses a modality in a step.
        reduce: sums a vector over workers; only the diagnostics need it.

    Raises:
        UsageError: `p` is not a probability below 1.

    Examples:
        >>> import torch
        >>> from cggm_ray import Classification
        >>> from cggm_ray.strategies import ModalityDropout
        >>> balance = ModalityDropout(task=Classification(3), p=0.5)
        >>> features = {"image": torch.ones(100, 8), "sound": torch.ones(100, 8)}
        >>> dropped = balance.modulate(features, torch.zeros(100, dtype=torch.int64))
        >>> bool((dropped["image"] + dropped["sound"] > 0).all())
        True
    """

    needs_reduce = False

    def __init__(self, *, task: Task, p: float = 0.2, reduce: Reduce = SINGLE_WORKER) -> None:
        super().__init__(task=task, reduce=reduce)
        if not 0 <= p < 1:
            raise UsageError(f"p: found {p}; expected a probability in [0, 1)")
        self.p = p

    def transform(
        self, features: dict[str, Feature], batch: Batch, totals: Totals | None = None
    ) -> tuple[dict[str, Feature], Memo]:
        """The features with zeros where a modality was dropped, in training."""
        if not self.training:
            return features, None
        device = batch.target.device
        everyone = torch.ones(len(batch), dtype=torch.bool, device=device)
        present = batch.present or {}
        there_MN = torch.stack([present.get(name, everyone) for name in features])
        draw_MN = torch.rand(there_MN.shape, device=device).masked_fill(~there_MN, -1)
        # The largest draw is kept whatever it is: it decides only where all of them are below p.
        largest_N = draw_MN.argmax(0)
        is_largest_MN = torch.arange(len(features), device=device)[:, None] == largest_N
        kept_MN = there_MN & ((draw_MN >= self.p) | is_largest_MN)
        dropped = {name: _where(kept_N, features[name]) for name, kept_N in zip(features, kept_MN, strict=True)}
        return dropped, _Memo(kept_MN, there_MN)

    def sums(self, head: HeadOutput, batch: Batch, memo: Memo) -> Tensor:
        """[samples that kept the modality M | samples that have it M]; nothing where nothing was dropped."""
        if memo is None:
            return super().sums(head, batch, memo)
        w_N = batch.sample_weights()
        return torch.cat([memo.kept_MN.double() @ w_N, memo.there_MN.double() @ w_N])

    def combine(self, task_sums: Tensor, own_sums: Tensor, memo: Memo) -> Tensor:
        """No term of the loss; notes the share of the samples that kept each modality."""
        if len(own_sums):
            kept_M, there_M = own_sums.detach().chunk(2)
            self.diagnostics = {"kept": kept_M / there_M.clamp(min=1)}
        return own_sums.new_zeros(())


def _where(kept_N: Tensor, feature: Feature) -> Feature:
    return each(feature, lambda part: part.masked_fill(~kept_N.reshape(-1, *[1] * (part.ndim - 1)), 0))


def _build(given: Materials[ModalityDropoutOptions]) -> Strategy:
    return ModalityDropout(task=given.task, p=given.options.modality_dropout_p, reduce=given.reduce)


STRATEGIES.register("modality-dropout")(StrategyInfo(build=_build, options=ModalityDropoutOptions))
