"""What each modality contributes: scores of all subsets of modalities, and their Shapley values.

A subset is scored with the other modalities masked: the fusion sees zeros in place of their features, and where a dataset
has masks, a mask of False, as for a sample that lacks the modality. The encoders run once, the fusion once a subset.

What happens to a modality during training (guide score, coefficient, cosine, gradient norm) is in `metrics.jsonl`.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cggm_ray.core.batch import Batch, Feature
from cggm_ray.core.errors import CggmError, TrainingError, UsageError
from cggm_ray.data.loading.sampler import slices
from cggm_ray.data.loading.split import Split
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.runtime import Runtime
from cggm_ray.models.net import MultimodalNet
from cggm_ray.storage.files import write_text
from cggm_ray.tasks import Task

BALANCE = "balance.json"
MOST_MODALITIES = 10
"""Of which all subsets are scored: 1024 passes of the fusion."""
MOST_AT_THE_END = 6
"""Of which they are scored at the end of every run, without being asked for."""

Subset = frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Contributions:
    """Scores of all subsets of modalities, of one checkpoint on one split.

    Attributes:
        metric: that was scored.
        better: which way it improves.
        split: that was evaluated.
        epoch: of the checkpoint, counted from 1.
        modalities: names, in the order of the dataset.
        scores: the metric by subset, from the empty one (everything masked) to all modalities.
    """

    metric: str
    better: Literal["min", "max"]
    split: str
    epoch: int
    modalities: tuple[str, ...]
    scores: Mapping[Subset, float]

    @property
    def shapley(self) -> dict[str, float]:
        """The Shapley value of each modality, in units of the metric; positive is good.

        Of a metric that is to be small, such as an error, it is that of the metric's negative. The values add up to what
        all modalities together gain over none.
        """
        sign = -1.0 if self.better == "min" else 1.0
        return shapley_values({subset: sign * score for subset, score in self.scores.items()}, self.modalities)

    @property
    def imbalance(self) -> float:
        """See `imbalance_degree`."""
        return imbalance_degree(list(self.shapley.values()))

    def save(self, path: Path) -> None:
        """Writes JSON, with null for a score that is not finite.

        Raises:
            OSError: it cannot be written.
        """
        scores = [
            {"present": self.names(subset), "score": score if math.isfinite(score) else None}
            for subset, score in self.scores.items()
        ]
        about = {name: value for name, value in vars(self).items() if name != "scores"}
        derived = {name: value if math.isfinite(value) else None for name, value in self.shapley.items()}
        imbalance = self.imbalance if math.isfinite(self.imbalance) else None
        write_text(path, json.dumps({**about, "scores": scores, "shapley": derived, "imbalance": imbalance}, indent=1))

    @classmethod
    def load(cls, path: Path) -> Contributions:
        """Reads what `save` wrote.

        Raises:
            UsageError: the file is missing or damaged.
        """
        try:
            found = json.loads(path.read_text())
            read = cls(
                metric=str(found["metric"]),
                better="min" if found["better"] == "min" else "max",
                split=str(found["split"]),
                epoch=int(found["epoch"]),
                modalities=tuple(found["modalities"]),
                scores={
                    frozenset(line["present"]): math.nan if line["score"] is None else float(line["score"])
                    for line in found["scores"]
                },
            )
            if set(read.scores) != set(subsets(read.modalities)):
                raise ValueError("its scores are not those of all subsets")
            return read
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} cannot be read: {error}") from None

    def names(self, subset: Subset) -> list[str]:
        """The modalities of a subset in the order of the dataset."""
        return [name for name in self.modalities if name in subset]


def subsets(modalities: Sequence[str]) -> list[Subset]:
    """All subsets, the smaller ones first, each size in the order of the modalities.

    Raises:
        UsageError: there are more than `MOST_MODALITIES`.
    """
    if len(modalities) > MOST_MODALITIES:
        raise UsageError(
            f"modalities: found {len(modalities)}, which have {2 ** len(modalities)} subsets; expected at most "
            f"{MOST_MODALITIES} to score all of them"
        )
    sizes = range(len(modalities) + 1)
    return [frozenset(chosen) for size in sizes for chosen in itertools.combinations(modalities, size)]


def shapley_values(scores: Mapping[Subset, float], modalities: Sequence[str]) -> dict[str, float]:
    """What each modality adds to a score, averaged over all orders in which modalities can be added.

    phi_m is the sum over the subsets S without m of |S|! (M - |S| - 1)! / M! times (v(S with m) - v(S)).

    Args:
        scores: v by subset; all 2^M of them, larger is better.
        modalities: M names.
    """
    m = len(modalities)
    weights = [math.factorial(size) * math.factorial(m - size - 1) / math.factorial(m) for size in range(m)]
    return {
        name: sum(
            weights[len(subset)] * (scores[subset | {name}] - score)
            for subset, score in scores.items()
            if name not in subset
        )
        for name in modalities
    }


def imbalance_degree(values: Sequence[float]) -> float:
    """How unequal contributions are: their range over the sum of their magnitudes, in [0, 1].

    0 where all modalities contribute the same (or nothing), 1 where one contributes and the others do nothing.
    """
    total = sum(abs(value) for value in values)
    return (max(values) - min(values)) / total if total else 0.0


@torch.no_grad()
def contributions(
    config: Config,
    net: MultimodalNet,
    task: Task,
    split: Split,
    runtime: Runtime,
    *,
    metric: str,
    epoch: int,
    name: str = "valid",
) -> Contributions:
    """Scores every subset of the network's modalities on a split, each worker taking its part.

    Args:
        config: of the run.
        net: the bare network, with the weights of the checkpoint.
        task: what is predicted.
        split: to evaluate.
        runtime: where it runs; all workers call this.
        metric: one of the task's validation metrics.
        epoch: of the checkpoint.
        name: of the split.

    Raises:
        UsageError: more than `MOST_MODALITIES` modalities.
        TrainingError: on all workers, where one of them failed.
    """
    modalities = tuple(net.encoders)
    chosen = subsets(modalities)
    failure: Exception | None = None
    try:
        sums = _local_sums(config, net, task, split, runtime, chosen)
    except (CggmError, RuntimeError, OSError) as error:
        # The others wait for this worker's sums: it gives zeros, and says that they are none.
        failure = error
        sums = torch.zeros(len(chosen) * _width(task, split), dtype=torch.float64, device=runtime.device)
    total = runtime.reduce()(torch.cat([sums, sums.new_tensor([float(failure is not None)])]))
    if total[-1]:
        raise TrainingError(f"the subsets of modalities were not scored: {failure or 'another worker failed'}")
    state = task.metrics(groups=split.groups)
    scores = {}
    for subset, part in zip(chosen, total[:-1].cpu().chunk(len(chosen)), strict=True):
        found = {"loss": float(task.combine(part[: task.n_sums])), **state.compute(part[task.n_sums :])}
        scores[subset] = found[metric]
    return Contributions(
        metric=metric, better=task.better(metric), split=name, epoch=epoch, modalities=modalities, scores=scores
    )


def leave_contributions(
    config: Config,
    net: MultimodalNet,
    task: Task,
    split: Split,
    runtime: Runtime,
    folder: Path,
    *,
    metric: str,
    epoch: int,
) -> None:
    """Leaves `balance.json` in the folder of a run that is over: what goes wrong here is said and changes nothing.

    See `contributions` for the arguments.
    """
    try:
        found = contributions(config, net, task, split, runtime, metric=metric, epoch=epoch)
        if runtime.rank == 0:
            found.save(folder / BALANCE)
    except (CggmError, OSError) as error:
        if runtime.rank == 0:
            print(f"{folder / BALANCE} was not written: {error}", flush=True)


def _width(task: Task, split: Split) -> int:
    return task.n_sums + len(task.metrics(groups=split.groups).sums)


def _local_sums(
    config: Config, net: MultimodalNet, task: Task, split: Split, runtime: Runtime, chosen: Sequence[Subset]
) -> Tensor:
    """This worker's sums of loss and metrics, one subset after the other."""
    net.eval()
    device = runtime.device
    states = [task.metrics(device, split.groups) for _ in chosen]
    loss_sums = [torch.zeros(task.n_sums, dtype=torch.float64, device=device) for _ in chosen]
    plan = list(slices(torch.arange(len(split)), config.train.batch_size, runtime.rank, runtime.world_size))
    for batch in split.batches(plan, epoch=0):
        with torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
            features = net.encode(batch.inputs, batch.masks)
            nothing = {name: _zeros(feature) for name, feature in features.items()}
        for subset, state, losses in zip(chosen, states, loss_sums, strict=True):
            with torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
                seen = {name: (features if name in subset else nothing)[name] for name in features}
                logits = net.fuse(seen, _masks(batch, subset, net)).logits
            logits = logits.float() if logits.dtype.itemsize < 4 else logits
            state.update(logits, batch.target, batch.weight, batch.group)
            losses += task.sums(logits, batch.target, batch.weight)
    return torch.cat([torch.cat([losses, state.sums]) for losses, state in zip(loss_sums, states, strict=True)])


def _zeros(feature: Feature) -> Feature:
    return tuple(map(torch.zeros_like, feature)) if isinstance(feature, tuple) else torch.zeros_like(feature)


def _masks(batch: Batch, subset: Subset, net: MultimodalNet) -> dict[str, Tensor] | None:
    """The masks of a batch with False for the modalities that are left out; None where the dataset has no masks."""
    if batch.masks is None:
        return None
    absent = torch.zeros(len(batch), 1, dtype=torch.bool, device=batch.target.device)
    return batch.masks | {name: absent for name in net.encoders if name not in subset}
