"""Guides as a measure of single modalities: their losses and utilities, in training and on validation.

A strategy that subclasses `Guided` has a guide per modality with an optimizer of its own, which is part of its state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cggm_ray.core.arithmetic import in_precision
from cggm_ray.core.batch import Batch, Feature, HeadOutput
from cggm_ray.core.reduction import SINGLE_WORKER, Reduce, Totals
from cggm_ray.models.branches import run_branches
from cggm_ray.models.net import masks_of_steps
from cggm_ray.models.stacked import alike, call_together
from cggm_ray.strategies.base import Memo, Strategy
from cggm_ray.strategies.features import detached
from cggm_ray.tasks.base import Task, Utility
from cggm_ray.tasks.mean import combine_each, of_samples

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


@dataclass(frozen=True)
class GuideOutputs:
    """What the guides predict.

    Attributes:
        each: of every guide, with the batch in which the samples count that have its modality.
        joined: the same as one prediction for one batch of M N samples, those of the first guide first; None where the task
            does not add up single samples, or where the guides are of unlike shapes.
    """

    each: Sequence[tuple[HeadOutput, Batch]]
    joined: tuple[HeadOutput, Batch] | None

    def __iter__(self) -> Iterator[tuple[HeadOutput, Batch]]:
        return iter(self.each)

    def __len__(self) -> int:
        return len(self.each)

    def sums(self, of: Task | Utility) -> Tensor:
        """The additive sums of a task or of a utility over what every guide predicts, [M K]."""
        samples = None if self.joined is None else of_samples(of)
        if samples is not None and self.joined is not None:
            head, batch = self.joined
            found = samples(head.logits, batch)
            return found.reshape(len(self), -1, found.shape[1]).sum(1).flatten()
        function = of.sums if isinstance(of, Task) else of
        return torch.cat([function(head.logits, batch) for head, batch in self.each])


class Guided(Strategy):
    """A strategy with guides.

    Args:
        guides: by modality; none for a strategy that can do without.
        task: what is predicted.
        optimizer: makes the guides' optimizer from their parameters.
        detach: whether the guides' gradient ends at the features.
        reduce: sums a vector over workers.
    """

    beside_fusion = True

    def __init__(
        self,
        guides: Mapping[str, nn.Module],
        *,
        task: Task,
        optimizer: MakeOptimizer,
        detach: bool,
        reduce: Reduce = SINGLE_WORKER,
    ) -> None:
        super().__init__(task=task, reduce=reduce)
        self.guides = nn.ModuleDict(guides)
        self.optimizer = optimizer(self.guides.parameters()) if guides else None
        self._detach = detach
        self._alike, self._joins = alike(list(guides.values())), of_samples(task) is not None

    def transform(
        self, features: dict[str, Feature], batch: Batch, totals: Totals | None = None
    ) -> tuple[dict[str, Feature], Memo]:
        """Runs the guides, whose outputs are the memo; the features stay as they are."""
        return features, self.run_guides(features, batch)

    def sums(self, head: HeadOutput, batch: Batch, memo: Memo) -> Tensor:
        """The guides' losses, [M K]."""
        return self.guide_sums(memo) if self.guides else super().sums(head, batch, memo)

    def guide_sums(self, outputs: GuideOutputs) -> Tensor:
        """The additive sums of the guides' losses, [M K]."""
        return outputs.sums(self.task)

    def utility_sums(self, utility: Utility, outputs: GuideOutputs) -> Tensor:
        """The additive sums of the guides' utilities, [M 2], without gradient; in the precision of the logits."""
        # Like all sums in full precision, also where the networks run in another.
        with torch.no_grad(), torch.autocast(outputs.each[0][0].logits.device.type, enabled=False):
            return outputs.sums(utility)

    def guide_losses(self, sums_MK: Tensor) -> Tensor:
        """The guides' losses [M] from their sums; 0, without gradient, where no sample has the modality."""
        return losses_of(self.task, sums_MK)

    def observe(self, features: dict[str, Feature], batch: Batch) -> Tensor:
        """[guide losses M K | utilities M 2] of a validation batch."""
        outputs = self.run_guides(features, batch)
        exact = [(head._replace(logits=in_precision(head.logits)), counted) for head, counted in outputs]
        outputs = self._outputs(exact, batch)
        utility = self.task.utility(self.task.default_utility)
        return torch.cat([self.guide_sums(outputs), self.utility_sums(utility, outputs)])

    def observed_losses(self, observed: Tensor) -> Tensor:
        """The guides' validation losses [M] from the sums of `observe`."""
        m, k = len(self.guides), self.task.n_sums
        return self.guide_losses(observed[: m * k].reshape(m, k))

    def observed_utilities(self, observed: Tensor) -> Tensor:
        """The guides' validation utilities [M] from the sums of `observe`; NaN where no sample has the modality."""
        sums_M2 = observed[len(self.guides) * self.task.n_sums :].reshape(-1, 2)
        return sums_M2[:, 0] / sums_M2[:, 1]

    def own_optimizer(self) -> Optimizer | None:
        """The guides' optimizer."""
        return self.optimizer

    def get_extra_state(self) -> dict[str, Any]:
        """State of the guides' optimizer; with it, `state_dict` is all that a resume needs."""
        return {} if self.optimizer is None else self.optimizer.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Puts the guides' optimizer back."""
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state)

    def run_guides(self, features: Mapping[str, Feature], batch: Batch) -> GuideOutputs:
        """Output of every guide, with the batch in which the samples count that have its modality."""
        inputs = {name: detached(features[name]) if self._detach else features[name] for name in self.guides}
        masks = {name: batch.masks[name] for name in inputs if batch.masks is not None and name in batch.masks}
        together = _one_shape(list(inputs.values())) if self._alike else None
        counted = [batch.having(name) for name in inputs]
        guides = list(self.guides.values())
        if together is None:
            given = [(h, *([masks[name]] if name in masks else [])) for name, h in inputs.items()]
            calls = [partial(guide, *each) for guide, each in zip(guides, given, strict=True)]
            heads = run_branches(guides, calls, given)
            return self._outputs(list(zip(heads, counted, strict=True)), batch)
        joined_masks = [torch.cat(masks_of_steps(inputs, masks))] if masks else []
        call = partial(call_together, guides, together, *joined_masks)
        joined: HeadOutput = run_branches([self.guides], [call], [(together, joined_masks)])[0]
        parts = (part.unflatten(0, (len(counted), -1)).unbind() for part in (joined.logits, joined.hidden))
        heads = [HeadOutput(*tensors) for tensors in zip(*parts, strict=True)]
        each = list(zip(heads, counted, strict=True))
        return GuideOutputs(each, (joined, batch.repeated(counted)) if self._joins else None)

    def _outputs(self, each: Sequence[tuple[HeadOutput, Batch]], batch: Batch) -> GuideOutputs:
        """Outputs of guides that were called one by one, joined where that can be."""
        heads = [head for head, _ in each]
        shapes = {(head.logits.shape, head.hidden.shape) for head in heads}
        if not self._joins or len(shapes) != 1 or any(head.raw is not None for head in heads):
            return GuideOutputs(each, None)
        joined = HeadOutput(torch.cat([head.logits for head in heads]), torch.cat([head.hidden for head in heads]))
        return GuideOutputs(each, (joined, batch.repeated([counted for _, counted in each])))


def _one_shape(features: list[Feature]) -> Tensor | None:
    """Returns features [N, T, D] of one shape one after the other, [M N, T, D]; None where their shapes differ."""
    first = features[0]
    if not all(
        isinstance(each, Tensor) and isinstance(first, Tensor) and each.shape == first.shape for each in features
    ):
        return None
    return torch.cat(features)  # type: ignore[arg-type]


def losses_of(task: Task, sums_MK: Tensor) -> Tensor:
    """Losses [M] from their sums; 0, without gradient, where no sample has the modality."""
    # A count of 0 would make 0 / 0; ones in its place keep the gradients of the others finite.
    seen_M = (sums_MK.detach() != 0).any(1)
    safe_MK = torch.where(seen_M[:, None], sums_MK, 1.0)
    return torch.where(seen_M, combine_each(task, safe_MK), 0.0)
