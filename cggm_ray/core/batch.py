"""What flows through a training step.

Shape legend, used as suffixes of tensor names everywhere: N samples of a batch, M modalities, T time steps, D width of
the features, C outputs of the head, K additive sums of a loss, J sums among them that depend on the logits.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from cggm_ray.core.errors import UsageError

Feature = Tensor | tuple[Tensor, ...]
"""Output of one encoder. An encoder with several outputs (DeepLab: high and low level) returns a tuple."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch of multimodal samples.

    Attributes:
        inputs: modality name to tensor [N, ...].
        target: [N, ...], floating for regression, int64 for classes.
        index: int64 [N], the row of each sample in its split.
        present: modality name to bool [N], False where a sample lacks the modality; None when nothing is missing.
        group: int64 [N], the volume that a slice belongs to; None where samples stand alone.
        weight: [N], 1 for a sample that counts and 0 for one that only fills a place; None when all count.
        labelled: bool [N], False for a sample without a label, whose target is 0 and means nothing; None when all have one.
        masks: modality name to bool [N, T], False at steps that are padding, or [N, 1] where there are no steps to tell
            apart; a sample that lacks the modality has a row of False. None when nothing is missing or padded.
        given: name to [N, ...], what the strategy gave every sample in the plan of an epoch; None where it gave nothing.
    """

    inputs: dict[str, Tensor]
    target: Tensor
    index: Tensor
    present: dict[str, Tensor] | None = None
    group: Tensor | None = None
    weight: Tensor | None = None
    masks: dict[str, Tensor] | None = None
    labelled: Tensor | None = None
    given: dict[str, Tensor] | None = None

    @classmethod
    def of_loop(
        cls,
        target: Tensor,
        *,
        inputs: Mapping[str, Tensor] | None = None,
        present: Mapping[str, Tensor] | None = None,
        weight: Tensor | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> Batch:
        """The batch of a training loop that has its tensors one by one; `index` counts them.

        Args:
            target: [N, ...].
            inputs: modality name to [N, ...]; left out where only features matter.
            present: as in `Batch`.
            weight: as in `Batch`.
            masks: as in `Batch`.
        """
        return cls(
            inputs=dict(inputs or {}),
            target=target,
            index=torch.arange(len(target)),
            present=None if present is None else dict(present),
            weight=weight,
            masks=None if masks is None else dict(masks),
        )

    def __len__(self) -> int:
        return len(self.index)

    def sample_weights(self) -> Tensor:
        """How much every sample counts in sums over samples, float64 [N].

        It is `weight`, or ones, with 0 for a sample without a label.
        """
        if self.weight is None:
            weights = torch.ones(len(self.target), dtype=torch.float64, device=self.target.device)
        else:
            weights = self.weight.double()
        return weights if self.labelled is None else weights * self.labelled

    def having(self, *modalities: str) -> Batch:
        """The same batch, in which a sample counts only if it has all these modalities."""
        weight = self.weight
        for name in modalities:
            has = None if self.present is None else self.present.get(name)
            if has is not None:
                weight = has.double() if weight is None else weight * has
        return replace(self, weight=weight)

    def repeated(self, batches: Sequence[Batch]) -> Batch:
        """Targets and weights of several copies of this batch, one after the other, as a batch of its own without inputs.

        Args:
            batches: the copies, which differ in `weight` alone.
        """
        target = torch.cat([self.target] * len(batches))
        if self.labelled is None and all(batch.weight is None for batch in batches):
            weight = torch.ones(len(target), dtype=torch.float64, device=target.device)
        else:
            weight = torch.cat([batch.sample_weights() for batch in batches])
        return Batch(inputs={}, target=target, index=self.index.repeat(len(batches)), weight=weight)

    @property
    def is_filler(self) -> bool:
        """Whether no sample counts: the worker has none, and one of weight 0 keeps it in step with the others.

        `cggm_ray.data.loading.sampler.slices` gives a worker such a batch, and `split` such a part of one.
        """
        return self.weight is not None and not bool(self.weight.any())

    def split(self, parts: int, largest: int | None = None) -> list[Batch]:
        """The samples in their order in that many batches of about one size; in fewer where there are not enough.

        Args:
            parts: number of batches.
            largest: samples of the worker that has most of the global batch. All workers get the same number of batches from
                it, the last of which is a filler for a worker that has one sample less. None for a single worker.
        """
        largest = len(self) if largest is None else largest
        size = -(-largest // parts)

        def take(tensors: dict[str, Tensor] | None, rows: slice) -> dict[str, Tensor] | None:
            return None if tensors is None else {name: tensor[rows] for name, tensor in tensors.items()}

        result = []
        for start in range(0, largest, size):
            is_filler = start >= len(self)
            rows = slice(0, 1) if is_filler else slice(start, start + size)
            part = Batch(
                inputs={name: tensor[rows] for name, tensor in self.inputs.items()},
                target=self.target[rows],
                index=self.index[rows],
                present=take(self.present, rows),
                group=None if self.group is None else self.group[rows],
                weight=None if self.weight is None else self.weight[rows],
                masks=take(self.masks, rows),
                labelled=None if self.labelled is None else self.labelled[rows],
                given=take(self.given, rows),
            )
            result.append(replace(part, weight=torch.zeros(1, device=self.target.device)) if is_filler else part)
        return result

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device; `index` stays on the host."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The same batch in page-locked memory of the host, from which a GPU copies while the host goes on."""
        return self._with_each(Tensor.pin_memory)

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        def changed(tensors: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
            return None if tensors is None else {name: change(tensor) for name, tensor in tensors.items()}

        return replace(
            self,
            inputs={name: change(tensor) for name, tensor in self.inputs.items()},
            target=change(self.target),
            present=changed(self.present),
            group=None if self.group is None else change(self.group),
            weight=None if self.weight is None else change(self.weight),
            masks=changed(self.masks),
            labelled=None if self.labelled is None else change(self.labelled),
            given=changed(self.given),
        )


class Order(Protocol):
    """Rows of a split in some order, of which any stretch can be had: a tensor, or what computes it when it is needed."""

    def __len__(self) -> int: ...

    def __getitem__(self, places: slice, /) -> Tensor:
        """Returns the rows at some places, int64."""
        ...


class EpochPlan(NamedTuple):
    """The samples of an epoch.

    Attributes:
        order: rows of the training split in their order, [samples of the epoch]; a row may stand there several times.
        given: name to [samples of the epoch, ...], what a batch brings beside the inputs of its samples (`Batch.given`).
    """

    order: Order
    given: Mapping[str, Tensor]


def check_takes_batch(owner: str, functions: Mapping[str, Callable[..., object]]) -> None:
    """Checks that functions of a class take a batch, and not its parts one by one.

    Args:
        owner: name of the class, for the message.
        functions: by name.

    Raises:
        UsageError: a function takes `target`.
    """
    for name, function in functions.items():
        arguments = inspect.signature(function).parameters
        if "target" in arguments:
            raise UsageError(
                f"{owner}.{name}: found the arguments ({', '.join(arguments)}); expected logits and batch, with batch.target, "
                "batch.group and batch.sample_weights() in place of the others"
            )


class HeadOutput(NamedTuple):
    """What a prediction head gives: the fused head F of the model, or the head of a guide classifier.

    Attributes:
        logits: [N, C], or [N, C, H, W] for segmentation.
        hidden: input of the head's last linear layer (or 1x1 convolution), [N, D] or [N, D, h, w].
        raw: the linear layer's own output when `logits` is a resized version of it (segmentation); None when they are
            the same tensor.
        members: modality name to the logits of its uni-modal model, of the shape of `logits`, where the prediction is that
            of an ensemble; None where it is not.
        resize: makes `logits` of `raw`, for a pass without gradient, which has no graph from one to the other.
    """

    logits: Tensor
    hidden: Tensor
    raw: Tensor | None = None
    members: Mapping[str, Tensor] | None = None
    resize: Callable[[Tensor], Tensor] | None = None
