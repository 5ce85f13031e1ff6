"""Modality dropout (ModDrop: Neverova et al., TPAMI 2016, arXiv 1501.00102).

In training every modality of every sample is dropped with probability p, the draws are independent: its features are zeros
at the input of the fusion, which learns to do without it, and its encoder gets no gradient from that sample. What is kept is
not scaled up. A sample never loses all it has: where every modality was drawn to be dropped, one of those that it has is
kept, each with the same probability. Nothing is dropped in evaluation.

The draws come from torch's generator, like those of every other dropout: they differ between workers, and a batch that is
taken in parts draws others than a whole one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cggm_ray.config.fields import check, option
from cggm_ray.core.batch import Feature, HeadOutput
from cggm_ray.core.errors import UsageError
from cggm_ray.core.reduction import Reduce, alone
from cggm_ray.strategies.base import Strategy
from cggm_ray.strategies.features import each
from cggm_ray.strategies.registry import STRATEGIES, Materials, StrategyInfo, StrategyOptions
from cggm_ray.tasks.base import Task, sample_weight


@dataclass(frozen=True, kw_only=True)
class ModalityDropoutOptions(StrategyOptions):
    """Options of `modality-dropout`."""

    modality_dropout_p: float = option(0.2, "modality-dropout: probability that a sample loses a modality in a step")

    def __post_init__(self) -> None:
        check(0 <= self.modality_dropout_p < 1, self, "modality_dropout_p", "a probability in [0, 1)")


class ModalityDropout(Strategy):
    """Modality dropout for a model and a loop of any kind.

    Args:
        task: what is predicted.
        p: probability that a sample loses a modality in a step.
        reduce: sums a vector over workers; only the diagnostics need it.

    Raises:
        UsageError: `p` is not a probability below 1.

    Example:
        >>> import torch
        >>> from cggm_ray import Classification
        >>> from cggm_ray.strategies import ModalityDropout
        >>> balance = ModalityDropout(task=Classification(3), p=0.5)
        >>> features = {"image": torch.ones(100, 8), "sound": torch.ones(100, 8)}
        >>> dropped = balance.modulate(features, torch.zeros(100, dtype=torch.int64))
        >>> bool((dropped["image"] + dropped["sound"] > 0).all())
        True
    """

    def __init__(self, *, task: Task, p: float = 0.2, reduce: Reduce = alone) -> None:
        super().__init__(task=task, reduce=reduce)
        if not 0 <= p < 1:
            raise UsageError(f"p: found {p}; expected a probability in [0, 1)")
        self.p = p
        self._kept_MN: Tensor | None = None
        self._there_MN: Tensor | None = None

    def modulate(
        self,
        features: dict[str, Feature],
        target: Tensor,
        present: Mapping[str, Tensor] | None = None,
        weight: Tensor | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Feature]:
        """The features with zeros where a modality was dropped; see `Strategy.modulate`."""
        super().modulate(features, target, present, weight, masks)
        if not self.training:
            return features
        everyone = torch.ones(len(target), dtype=torch.bool, device=target.device)
        there_MN = torch.stack([everyone if present is None else present.get(name, everyone) for name in features])
        draw_MN = torch.rand(there_MN.shape, device=target.device).masked_fill(~there_MN, -1)
        # The largest draw is kept whatever it is: it decides only where all of them are below p.
        largest_N = draw_MN.argmax(0)
        is_largest_MN = torch.arange(len(features), device=target.device)[:, None] == largest_N
        kept_MN = there_MN & ((draw_MN >= self.p) | is_largest_MN)
        self._kept_MN, self._there_MN = kept_MN, there_MN
        return {name: _where(kept_N, features[name]) for name, kept_N in zip(features, kept_MN, strict=True)}

    def sums(self, head: HeadOutput, target: Tensor, weight: Tensor | None) -> Tensor:
        """[samples that kept the modality M | samples that have it M]."""
        if self._kept_MN is None or self._there_MN is None:
            return super().sums(head, target, weight)
        w_N = sample_weight(head.logits, weight)
        return torch.cat([self._kept_MN.double() @ w_N, self._there_MN.double() @ w_N])

    def combine(self, task_sums: Tensor, own_sums: Tensor) -> Tensor:
        """No term of the loss; notes the share of the samples that kept each modality."""
        if len(own_sums):
            kept_M, there_M = own_sums.chunk(2)
            self.diagnostics = {"kept": kept_M / there_M.clamp(min=1)}
        return own_sums.new_zeros(())


def _where(kept_N: Tensor, feature: Feature) -> Feature:
    return each(feature, lambda part: part.masked_fill(~kept_N.reshape(-1, *[1] * (part.ndim - 1)), 0))


def _build(given: Materials[ModalityDropoutOptions]) -> Strategy:
    return ModalityDropout(task=given.task, p=given.options.modality_dropout_p, reduce=given.reduce)


STRATEGIES.register("modality-dropout")(StrategyInfo(build=_build, options=ModalityDropoutOptions))
