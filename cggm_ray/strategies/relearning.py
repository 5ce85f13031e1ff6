"""Diagnosing and Re-learning (Wei, Li, Feng and Hu, ECCV 2024, arXiv 2407.09705).

Every encoder is set back a part of its way to its initial weights, the further the more it has overfitted. This happens after
the epochs E, 2 E, ... (counted from 0; E is `relearning_every`), at most `relearning_times` times. P(m, S) is the purity of a
k-means clustering of the features of modality m on the split S, with as many clusters as there are classes:

    g_m     = | P(m, train) - P(m, valid) |                           how far the training features are ahead
    alpha_m = tanh(lambda g_m)                                        strength of the re-initialisation
    theta_m <- alpha_m theta_m(initial) + (1 - alpha_m) theta_m       all parameters of the encoder

Fusion, head and the memory of the optimizer stay. The formulas are those of the released code
(github.com/GeWu-Lab/Diagnosing_Relearning_ECCV2024), from which the defaults come too; a summary of the paper has the same
three, and the numbers of its equations were not at hand. What was decided here:

- The features are averaged over all but samples and channels; samples without the modality do not take part.
- At most `relearning_samples` samples of a split are clustered; the released code takes all.
- A gap that is not known, because features are not finite or a split has no sample with the modality, resets nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from cggm_ray.config.fields import at_least, check, option
from cggm_ray.core.batch import Batch, Feature
from cggm_ray.core.reduction import SINGLE_WORKER, Reduce
from cggm_ray.strategies.base import Memo, Strategy
from cggm_ray.strategies.clusters import purity
from cggm_ray.strategies.features import PooledFeatures
from cggm_ray.strategies.registry import STRATEGIES, Materials, StrategyInfo, StrategyOptions
from cggm_ray.tasks import Classification


@dataclass(frozen=True, kw_only=True)
class ReLearningOptions(StrategyOptions):
    """Options of `relearning`; the defaults are those of the released command."""

    relearning_every: int = option(20, "relearning: epochs between two re-initialisations of the encoders")
    relearning_times: int = option(3, "relearning: largest number of re-initialisations in a run")
    relearning_lambda: float = option(3.0, "relearning: how strongly an encoder that overfits is set back")
    relearning_samples: int = option(20000, "relearning: largest number of samples of a split to cluster; 0 for all")

    def __post_init__(self) -> None:
        at_least(self, "relearning_every", 1)
        at_least(self, "relearning_times", 0)
        at_least(self, "relearning_samples", 0)
        check(self.relearning_lambda >= 0, self, "relearning_lambda", "zero or a positive number")


class ReLearning(Strategy):
    """Sets encoders back towards their initial weights, the further the more they have overfitted.

    A loop of your own calls `begin_epoch` with the results of `measure` for the samples of both splits.

    Args:
        encoders: by modality, with their initial weights.
        task: a classification.
        every: epochs between two re-initialisations.
        times: largest number of re-initialisations in a run.
        lam: how strongly an encoder that overfits is set back.
        samples: largest number of samples of a split to measure; 0 for all.
        reduce: sums a vector over workers.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        *,
        task: Classification,
        every: int = 20,
        times: int = 3,
        lam: float = 3.0,
        samples: int = 20000,
        reduce: Reduce = SINGLE_WORKER,
    ) -> None:
        super().__init__(task=task, reduce=reduce)
        self._names, self._classes = tuple(encoders), task.outputs
        self._every, self._times, self._lam, self._samples = every, times, lam, samples
        # In lists: the parameters are the network's. Their initial values are no buffers, which a loop copies in every step.
        self._parameters_M = [list(encoder.parameters()) for encoder in encoders.values()]
        self._initial_M = [[values.detach().clone() for values in of_one] for of_one in self._parameters_M]
        self._widths: tuple[int, ...] = ()
        self.register_buffer("reset_M", torch.zeros(len(self._names), dtype=torch.float64))

    reset_M: Tensor

    def measures(self, epoch: int) -> Mapping[str, int | None]:
        """Both splits, before the epochs that begin with a re-initialisation."""
        number, rest = divmod(epoch - 1, self._every)
        due = rest == 0 and 1 <= number <= self._times
        return dict.fromkeys(("train", "valid"), self._samples or None) if due else {}

    def measure(self, features: dict[str, Feature], batch: Batch) -> Tensor:
        """[class | whether the sample has the modality M | pooled features D_1 + ... + D_M]."""
        found = PooledFeatures.of(self._names, features, batch)
        self._widths = tuple(part.shape[1] for part in found.features)
        return found.joined()

    @torch.no_grad()
    def begin_epoch(self, epoch: int, measured: Mapping[str, Tensor]) -> None:
        """Sets the encoders back where it is time."""
        if not measured:
            return
        train_M, valid_M = (self._purities(measured[split]) for split in ("train", "valid"))
        strength_M = torch.tanh(self._lam * (train_M - valid_M).abs()).nan_to_num(nan=0.0)
        self.reset_M.copy_(strength_M)
        for strength, initial, parameters in zip(strength_M.tolist(), self._initial_M, self._parameters_M, strict=True):
            for before, parameter in zip(initial, parameters, strict=True):
                parameter.copy_(strength * before.to(parameter.device) + (1 - strength) * parameter)

    def _purities(self, values: Tensor) -> Tensor:
        """Of every modality [M], from what was measured of a split."""
        found = PooledFeatures.split(values, self._widths)
        parts = zip(found.has, found.features, strict=True)
        purities = [purity(part_ND[has_N], found.target[has_N], self._classes) for has_N, part_ND in parts]
        return torch.tensor(purities, dtype=torch.float64)

    def combine(self, task_sums: Tensor, own_sums: Tensor, memo: Memo) -> Tensor:
        """There is no term of the loss; the log shows how far the encoders were set back last."""
        self.diagnostics = {"reset": self.reset_M.clone()}
        return own_sums.new_zeros(())

    def get_extra_state(self) -> dict[str, Any]:
        """The initial weights."""
        return {"initial": self._initial_M}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Puts them back."""
        self._initial_M = [list(of_one) for of_one in state["initial"]]


def _build(given: Materials[ReLearningOptions]) -> Strategy:
    options = given.options
    return ReLearning(
        dict(given.net.encoders.items()),
        task=cast(Classification, given.task),
        every=options.relearning_every,
        times=options.relearning_times,
        lam=options.relearning_lambda,
        samples=options.relearning_samples,
        reduce=given.reduce,
    )


RECIPE = {"optim": "SGD", "lr": 2e-3, "weight_decay": 1e-4, "clip": 0.0, "batch_size": 64, "num_epochs": 90}
STRATEGIES.register("relearning")(
    StrategyInfo(build=_build, options=ReLearningOptions, tasks=(Classification,), validates=True, recipe=RECIPE)
)
