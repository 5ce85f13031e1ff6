"""Uni-Modal Teacher (Du et al., ICML 2023, arXiv 2305.01233; first in arXiv 2106.11059).

    loss = task loss + alpha * sum_m MSE(h_m, h'_m)

h_m are the features of encoder m and h'_m those of a frozen teacher: the encoder of a network of the same architecture that
was trained with modality m alone. The distance is the mean square over the entries of a feature, then the mean over the
samples that have the modality; an encoder with several outputs adds up theirs.

The papers distil the features in front of a late fusion; here they are those that the fusion sees, whatever it is. The
weight depends on the scale of the features and is to be tuned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from cggm_ray.config.fields import check, option
from cggm_ray.core.arithmetic import in_precision
from cggm_ray.core.batch import Batch, Feature, HeadOutput
from cggm_ray.core.reduction import SINGLE_WORKER, Reduce, Totals
from cggm_ray.models.net import MultimodalNet
from cggm_ray.strategies.base import Memo, Strategy
from cggm_ray.strategies.registry import STRATEGIES, Materials, StrategyInfo, StrategyOptions
from cggm_ray.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class UMTOptions(StrategyOptions):
    """Options of `umt`."""

    umt_alpha: float = option(1.0, "umt: weight of the distance between features and those of the teachers")
    umt_teachers: tuple[str, ...] | None = option(
        None,
        "umt: comma-separated finished runs with one modality each: folders, URLs or names in STORAGE_PATH",
        path=True,
        url=True,
    )

    def __post_init__(self) -> None:
        check(self.umt_alpha >= 0, self, "umt_alpha", "zero or a positive number")

    def with_whole_paths(self, storage: Path) -> Self:
        """The same with teachers as whole paths; URLs stay as they are."""
        if self.umt_teachers is None:
            return self
        runs = tuple(run if "://" in run else str(storage / Path(run).expanduser()) for run in self.umt_teachers)
        return dataclasses.replace(self, umt_teachers=runs)

    def teachers(self) -> Sequence[str]:
        """Folders, URLs or names of the teachers, which `umt_teachers` gives; empty without them."""
        return self.umt_teachers or ()


_Distances = list[tuple[Tensor, Tensor]]
"""By modality: distances to the teacher's features [N], and the weights [N] of the samples, 0 for those without it."""


class UMT(Strategy):
    """Uni-Modal Teacher for a model and a loop of any kind.

    Args:
        teachers: trained encoders by modality. They are frozen, stay in evaluation mode, and are part of `state_dict`.
        task: what is predicted.
        alpha: weight of the distance between features and those of the teachers.
        reduce: sums a vector over workers.
        inputs: by modality, what the input of a teacher is taken through before, where it was trained so; see `MultimodalNet`.

    Examples:
        >>> import copy, torch
        >>> from torch import nn
        >>> from cggm_ray import Classification
        >>> from cggm_ray.strategies import UMT
        >>> encoders = nn.ModuleDict({"image": nn.Linear(5, 8), "sound": nn.Linear(7, 8)})
        >>> head, task = nn.Linear(16, 3), Classification(3)
        >>> trained = copy.deepcopy(encoders)  # elsewhere, each with a head of its own
        >>> balance = UMT(dict(trained.items()), task=task, alpha=1.0)
        >>> inputs, target = {"image": torch.randn(4, 5), "sound": torch.randn(4, 7)}, torch.tensor([0, 1, 2, 0])
        >>> balance.see(inputs)
        >>> features = balance.modulate({name: encoders[name](inputs[name]) for name in inputs}, target)
        >>> hidden = torch.cat(list(features.values()), 1)
        >>> logits = head(hidden)
        >>> loss = task.loss(logits, target) + balance.loss(logits, hidden, target)
        >>> loss.backward(); balance.step()
    """

    def __init__(
        self,
        teachers: Mapping[str, nn.Module],
        *,
        task: Task,
        alpha: float = 1.0,
        reduce: Reduce = SINGLE_WORKER,
        inputs: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__(task=task, reduce=reduce)
        self.alpha = alpha
        # As a network without fusion: what is missing is masked for the teachers as it is for the encoders.
        self.teachers = MultimodalNet(teachers, nn.Identity(), nn.Identity(), inputs).requires_grad_(False)
        self.teachers.eval()

    def train(self, mode: bool = True) -> UMT:
        """Sets the mode of the strategy; the teachers stay in evaluation mode."""
        super().train(mode)
        self.teachers.eval()
        return self

    def transform(
        self, features: dict[str, Feature], batch: Batch, totals: Totals | None = None
    ) -> tuple[dict[str, Feature], Memo]:
        """Runs the teachers and measures the distances to their features, which are the memo; the features stay.

        Raises:
            RuntimeError: the inputs of the batch are not known.
        """
        if not batch.inputs:
            raise RuntimeError("call balance.see(inputs) before balance.modulate(...) in every step")
        with torch.no_grad():
            taught = self.teachers.encode(batch)
        memo: _Distances = [
            (_distances(features[name], taught[name]), batch.having(name).sample_weights())
            for name in self.teachers.encoders
        ]
        return features, memo

    def sums(self, head: HeadOutput, batch: Batch, memo: Memo) -> Tensor:
        """[distances M | samples that have the modality M]."""
        return torch.stack([*(distance_N @ w_N for distance_N, w_N in memo), *(w_N.sum() for _, w_N in memo)])

    def combine(self, task_sums: Tensor, own_sums: Tensor, memo: Memo) -> Tensor:
        """alpha * sum_m MSE(h_m, h'_m)."""
        distance_M, count_M = own_sums.chunk(2)
        distance_M = distance_M / count_M.clamp(min=1)
        self.diagnostics = {"distance": distance_M.detach()}
        return self.alpha * distance_M.sum()


def _distances(feature: Feature, taught: Feature) -> Tensor:
    """Mean square over the entries of each sample, float64 [N]."""
    ours, theirs = ((f,) if isinstance(f, Tensor) else f for f in (feature, taught))
    pairs = [(in_precision(h), in_precision(t)) for h, t in zip(ours, theirs, strict=True)]
    squares = [(h - t).pow(2).flatten(1).mean(1).double() for h, t in pairs]
    return torch.stack(squares).sum(0)


def _build(given: Materials[UMTOptions]) -> Strategy:
    return UMT(
        given.teachers,
        task=given.task,
        alpha=given.options.umt_alpha,
        reduce=given.reduce,
        inputs=given.teacher_inputs,
    )


STRATEGIES.register("umt")(StrategyInfo(build=_build, options=UMTOptions))
