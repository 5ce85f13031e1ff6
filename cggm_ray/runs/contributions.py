"""Measures what each modality contributes: scores of all subsets of modalities, and their Shapley values.

A subset is scored with the other modalities masked: the fusion sees zeros in place of their features, and where a dataset
has masks, a mask of False, as for a sample that lacks the modality. The fusion runs once a subset, the encoders once
for several.

What happens to a modality during training (guide score, coefficient, cosine, gradient norm) is in `metrics.jsonl`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cggm_ray.core.arithmetic import in_precision
from cggm_ray.core.batch import Batch, Feature
from cggm_ray.core.errors import CggmError, TrainingError, UsageError
from cggm_ray.core.live import moved
from cggm_ray.core.shapley import all_subsets, shapley_values
from cggm_ray.data.loading.sampler import InOrder, Plan
from cggm_ray.data.loading.split import Split
from cggm_ray.engine.runtime import Runtime
from cggm_ray.engine.settings import TrainConfig
from cggm_ray.engine.stopping import Agreement, Notice
from cggm_ray.models.net import MultimodalNet
from cggm_ray.storage.files import write_text
from cggm_ray.tasks import Task

BALANCE = "balance.json"
MOST_MODALITIES = 10
"""Largest number of modalities of which all subsets are scored: 1024 passes of the fusion."""
MOST_AT_THE_END = 6
"""Largest number of modalities of which the subsets are scored at the end of every run."""

FIRST = 2
"""Number of subsets in the first pass over the split."""
PACE = 10.0
"""Target seconds of one pass over the split, from which the number of subsets per pass follows.

The encoders run once per pass.
"""

Subset = frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Contributions:
    """Scores of the subsets of modalities, of one checkpoint on one split.

    Attributes:
        metric: that was scored.
        better: which way it improves.
        split: that was evaluated.
        epoch: of the checkpoint, counted from 1.
        modalities: names, in the order of the dataset.
        scores: the metric by subset, from the empty one (everything masked) to all modalities. If time ran out some are
            missing; each score covers the whole split.
    """

    metric: str
    better: Literal["min", "max"]
    split: str
    epoch: int
    modalities: tuple[str, ...]
    scores: Mapping[Subset, float]

    @property
    def missing(self) -> list[Subset]:
        """Subsets that were not scored."""
        return [subset for subset in subsets(self.modalities) if subset not in self.scores]

    @property
    def shapley(self) -> dict[str, float]:
        """Shapley value of each modality, in units of the metric; positive is good. The dict is empty if a subset is
        missing.

        Of a metric that is to be small, such as an error, it is that of the metric's negative. The values add up to what
        all modalities together gain over none.
        """
        if self.missing:
            return {}
        sign = -1.0 if self.better == "min" else 1.0
        return shapley_values({subset: sign * score for subset, score in self.scores.items()}, self.modalities)

    @property
    def imbalance(self) -> float:
        """Imbalance degree of the Shapley values, in [0, 1]; NaN if a subset is missing."""
        return math.nan if self.missing else imbalance_degree(list(self.shapley.values()))

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
        content = {**about, "scores": scores, "shapley": derived, "imbalance": imbalance}
        if self.missing:
            content["missing"] = [self.names(subset) for subset in self.missing]
        write_text(path, json.dumps(content, indent=1))

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
            said = [frozenset(names) for names in found.get("missing", ())]
            if (
                not read.scores
                or set(read.missing) != set(said)
                or not set(read.scores) <= set(subsets(read.modalities))
            ):
                raise ValueError("its scores are not those of all subsets")
            return read
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} cannot be read: {error}") from None

    def names(self, subset: Subset) -> list[str]:
        """Returns the modalities of a subset in the order of the dataset."""
        return [name for name in self.modalities if name in subset]


def subsets(modalities: Sequence[str]) -> list[Subset]:
    """Returns all subsets, the smaller ones first, each size in the order of the modalities.

    Raises:
        UsageError: there are more than `MOST_MODALITIES`.
    """
    if len(modalities) > MOST_MODALITIES:
        raise UsageError(
            f"modalities: found {len(modalities)}, which have {2 ** len(modalities)} subsets; expected at most "
            f"{MOST_MODALITIES} to score all of them"
        )
    return all_subsets(modalities)


def imbalance_degree(values: Sequence[float]) -> float:
    """Returns the range of the contributions over the sum of their magnitudes, in [0, 1].

    It is 0 if all modalities contribute the same (or nothing), and 1 if only one contributes.
    """
    total = sum(abs(value) for value in values)
    return (max(values) - min(values)) / total if total else 0.0


@torch.no_grad()
def contributions(
    settings: TrainConfig,
    net: MultimodalNet,
    task: Task,
    split: Split,
    runtime: Runtime,
    *,
    metric: str,
    epoch: int,
    name: str = "valid",
    seconds: float | None = None,
) -> Contributions:
    """Scores the subsets of the network's modalities on a split, each worker taking its part.

    The split is read several times, for a few subsets first and then for more at once, so that what was scored is kept when
    time runs out or the run is to stop. How many are scored at once changes no score.

    Args:
        settings: batch size and precision of the run.
        net: the bare network, with the weights of the checkpoint.
        task: what is predicted.
        split: to evaluate.
        runtime: where it runs; all workers call this.
        metric: one of the task's validation metrics.
        epoch: of the checkpoint.
        name: of the split.
        seconds: after which no further subset is scored, and one that is not over is left out; default all are.

    Raises:
        UsageError: more than `MOST_MODALITIES` modalities.
        TrainingError: on all workers, where one of them failed.
    """
    modalities = tuple(net.encoders)
    chosen = subsets(modalities)
    # Nothing and everything first: what they differ by is what the modalities bring together.
    left = sorted(chosen, key=lambda subset: len(subset) not in (0, len(modalities)))
    state, at_once = task.metrics(groups=split.groups), FIRST
    scores: dict[Subset, float] = {}
    ended = _Deadline(runtime, seconds)
    while left:
        part, start = left[:at_once], time.monotonic()
        moved("contributions", len(scores), len(chosen), f"{len(scores)}/{len(chosen)} subsets of modalities")
        failure: Exception | None = None
        try:
            sums = _local_sums(settings, net, task, split, runtime, part, ended)
        except (CggmError, RuntimeError, OSError) as error:
            # The others wait for this worker, so it continues to agree with them and marks its zeros as invalid.
            failure = error
            sums = torch.zeros(len(part) * _width(task, split), dtype=torch.float64, device=runtime.device)
        batches = -(-len(split) // settings.batch_size)
        if ended.catch_up(batches * len(part)):
            break
        total = runtime.reduce()(
            torch.cat([sums, sums.new_tensor([float(failure is not None), time.monotonic() - start])])
        )
        if total[-2]:
            raise TrainingError(f"the subsets of modalities were not scored: {failure or 'another worker failed'}")
        for subset, sums in zip(part, total[:-2].cpu().chunk(len(part)), strict=True):
            found = {"loss": float(task.combine(sums[: task.n_sums])), **state.compute(sums[task.n_sums :])}
            scores[subset] = found[metric]
        left = left[at_once:]
        took = float(total[-1]) / runtime.world_size
        at_once = max(2 * at_once, int(len(part) * PACE / max(took, 1e-6)))
    return Contributions(
        metric=metric,
        better=task.better(metric),
        split=name,
        epoch=epoch,
        modalities=modalities,
        scores={subset: scores[subset] for subset in chosen if subset in scores},
    )


class _Deadline:
    """Decides whether all workers leave out the remaining subsets, because time is up or because the run is to stop.

    All workers poll equally often, so they agree at the same subset.

    Args:
        runtime: knows whether the run is to stop.
        seconds: from now on; None for no end.

    Attributes:
        over: whether the deadline has passed.
    """

    def __init__(self, runtime: Runtime, seconds: float | None) -> None:
        end = math.inf if seconds is None else time.monotonic() + seconds
        period = 1.0 if runtime.world_size > 1 else 0.0
        self._runtime, self._polls, self.over = runtime, 0, False
        self._late = Agreement(
            lambda: Notice.STOP if time.monotonic() >= end else Notice.NONE,
            runtime.world_size,
            runtime.reduce(),
            runtime.device,
            period,
        )

    def poll(self) -> bool:
        """Returns whether the rest is left out. All workers call it before every subset of every batch."""
        self._polls += 1
        if not self.over:
            # Both are called every time, because the workers count the calls.
            notices = (self._runtime.notice(), self._late())
            self.over = Notice.STOP in notices
        return self.over

    def catch_up(self, polls: int) -> bool:
        """Makes the polls that a worker missed because of an error, up to `polls` in all, and starts the count again."""
        while self._polls < polls and not self.over:
            self.poll()
        self._polls = 0
        return self.over


def write_contributions(
    settings: TrainConfig,
    net: MultimodalNet,
    task: Task,
    split: Split,
    runtime: Runtime,
    folder: Path,
    *,
    metric: str,
    epoch: int,
    seconds: int,
    say: Callable[[str], None],
) -> Contributions | None:
    """Writes `balance.json` into the folder of a finished run, and returns what it wrote.

    An error is reported, changes nothing else, and gives None.

    The other arguments are those of `contributions`.

    Args:
        seconds: after which the remaining subsets are not scored.
        say: prints a line, on rank 0.
    """
    again = f"`python -m cggm_ray report {folder}` scores them all"
    count = 2 ** len(net.encoders)
    if len(net.encoders) > MOST_AT_THE_END:
        say(f"{count:,} subsets of {len(net.encoders)} modalities are not scored at the end of a run; {again}")
        return None
    say(
        f"scoring {count} subsets of the modalities, for at most {seconds} s (--contributions_seconds; 0 leaves them out)"
    )
    try:
        found = contributions(settings, net, task, split, runtime, metric=metric, epoch=epoch, seconds=seconds)
        if found.missing:
            say(f"{len(found.missing)} of {count} subsets were left out, and with them the Shapley values; {again}")
        if runtime.rank == 0 and found.scores:
            found.save(folder / BALANCE)
        return found
    except (CggmError, OSError) as error:
        say(f"{folder / BALANCE} was not written: {error}")
        return None


def _width(task: Task, split: Split) -> int:
    return task.n_sums + len(task.metrics(groups=split.groups).sums)


def _local_sums(
    settings: TrainConfig,
    net: MultimodalNet,
    task: Task,
    split: Split,
    runtime: Runtime,
    chosen: Sequence[Subset],
    ended: _Deadline,
) -> Tensor:
    """Returns this worker's sums of loss and metrics, one subset after the other.

    The sums cover only a part of the split if the deadline passed.
    """
    net.eval()
    device = runtime.device
    states = [task.metrics(device, split.groups) for _ in chosen]
    loss_sums = [torch.zeros(task.n_sums, dtype=torch.float64, device=device) for _ in chosen]
    plan = Plan(InOrder(len(split)), settings.batch_size, runtime.rank, runtime.world_size)
    for batch in split.batches(plan, epoch=0):
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            features = net.encode(batch)
            nothing = {name: _zeros(feature) for name, feature in features.items()}
        for subset, state, losses in zip(chosen, states, loss_sums, strict=True):
            if ended.poll():
                break
            with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                seen = {name: (features if name in subset else nothing)[name] for name in features}
                logits = net.fuse(seen, _masks(batch, subset, net)).logits
            logits = in_precision(logits)
            state.update(logits, batch)
            losses += task.sums(logits, batch)
        if ended.over:
            break
    return torch.cat([torch.cat([losses, state.sums]) for losses, state in zip(loss_sums, states, strict=True)])


def _zeros(feature: Feature) -> Feature:
    return tuple(map(torch.zeros_like, feature)) if isinstance(feature, tuple) else torch.zeros_like(feature)


def _masks(batch: Batch, subset: Subset, net: MultimodalNet) -> dict[str, Tensor] | None:
    """Returns the masks of a batch, which are False for the modalities that are left out, or None if the dataset has no
    masks.
    """
    if batch.masks is None:
        return None
    absent = torch.zeros(len(batch), 1, dtype=torch.bool, device=batch.target.device)
    return batch.masks | {name: absent for name in net.encoders if name not in subset}
