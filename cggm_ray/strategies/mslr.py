"""Modality-specific learning rates (MSLR): Yao and Mihalcea, Findings of ACL 2022, pages 1824-1834.

The paper builds a late-fusion model from uni-modal models that were tuned one by one. Each may have needed quite another
learning rate, and it asks which of them the encoders get in the common training:

- `keep`: each encoder the one of its uni-modal model, lr_m;
- `smooth`: the mean of lr_m and the global learning rate, so that no modality is far from the others;
- `dynamic`: lr_m at first; every `mslr_window` epochs lr_m <- lr_m * v_m / mean(v_m of these epochs), where v_m is the
  validation performance of modality m alone. What still improves is sped up, what gets worse is slowed down.

Fusion and head have the global learning rate `--lr`. Schedules act on all of them alike, the ratios stay.

The paper's text was not at hand: `smooth` follows a summary of it, the rule of `dynamic` a public reimplementation. Another
one (github.com/lihong2303/AGM_ICCV2023) multiplies the initial rate, after every epoch from the sixth on, by v_m over its mean
in the five epochs before; that is `mslr_rule initial`, for `mslr_window` epochs. The paper's models predict by the sum of
uni-modal predictions, which give v_m; here a guide gives it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cggm_ray.config.fields import at_least, one_of, option
from cggm_ray.core.errors import UsageError
from cggm_ray.core.reduction import SINGLE_WORKER, Reduce
from cggm_ray.strategies.base import Memo, Strategy
from cggm_ray.strategies.by_modality import numbers_by_modality
from cggm_ray.strategies.guided import Guided, MakeOptimizer
from cggm_ray.strategies.registry import STRATEGIES, Materials, Setting, StrategyInfo, StrategyOptions
from cggm_ray.tasks.base import Task

KINDS = ("keep", "smooth", "dynamic")


@dataclass(frozen=True, kw_only=True)
class MSLROptions(StrategyOptions):
    """Flags of MSLR."""

    mslr_strategy: str = option("keep", "mslr: how learning rates are assigned: keep, smooth, dynamic")
    mslr_lrs: tuple[str, ...] | None = option(
        None, "mslr: learning rates of the encoders: text=1e-3,audio=5e-4, or one for each, in their order"
    )
    mslr_rule: str = option(
        "compound", "mslr: which rate the strategy dynamic multiplies: compound (the last one), initial (the first one)"
    )
    mslr_window: int = option(5, "mslr: epochs between two changes of strategy dynamic, over which it takes the mean")

    def __post_init__(self) -> None:
        one_of(self, "mslr_strategy", KINDS)
        one_of(self, "mslr_rule", ("compound", "initial"))
        at_least(self, "mslr_window", 1)


class MSLR(Guided):
    """A learning rate of its own for every encoder.

    Args:
        guides: by modality; only 'dynamic' trains and evaluates them, on detached features.
        task: what is predicted.
        factors: modality to the learning rate of its encoder at the beginning, in units of the global one.
        strategy: 'keep', 'smooth' or 'dynamic'.
        window: epochs between two changes.
        compounds: whether a change multiplies the current rate, every `window` epochs; else it multiplies the initial rate,
            after every epoch that has `window` others before it.
        optimizer: makes the guides' optimizer from their parameters.
        reduce: sums a vector over workers.
    """

    def __init__(
        self,
        guides: Mapping[str, nn.Module],
        *,
        task: Task,
        factors: Mapping[str, float],
        strategy: str,
        optimizer: MakeOptimizer,
        window: int = 5,
        compounds: bool = True,
        reduce: Reduce = SINGLE_WORKER,
    ) -> None:
        dynamic = strategy == "dynamic"
        super().__init__(guides if dynamic else {}, task=task, optimizer=optimizer, detach=True, reduce=reduce)
        self.observes = dynamic
        self._names = tuple(factors)
        at_first = [(factor + 1) / 2 if strategy == "smooth" else factor for factor in factors.values()]
        self.register_buffer("factor_M", torch.tensor(at_first, dtype=torch.float64))
        self._compounds, self._at_first = compounds, tuple(at_first)
        # Performances of the last epochs; NaN where there are none yet.
        self.register_buffer("history_WM", torch.full((window, len(factors)), torch.nan, dtype=torch.float64))
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))

    factor_M: Tensor
    history_WM: Tensor
    epochs: Tensor

    def combine(self, task_sums: Tensor, own_sums: Tensor, memo: Memo) -> Tensor:
        """The guides' losses, which reach nothing but the guides."""
        self.diagnostics = {"rate": self.factor_M.clone()}
        if not self.guides:
            return own_sums.new_zeros(())
        losses_M = self.guide_losses(own_sums.reshape(len(self.guides), -1))
        self.diagnostics["guide_loss"] = losses_M.detach()
        return losses_M.sum()

    def end_epoch(self, train: Mapping[str, float], valid: Mapping[str, float], observed: Tensor) -> None:
        """Takes the performances of the modalities, and changes the learning rates where it is time."""
        if not self.observes:
            return
        window = len(self.history_WM)
        now_M = self.observed_utilities(observed)
        if not self._compounds and int(self.epochs) >= window:
            self.factor_M.copy_(self.factor_M.new_tensor(self._at_first) * relative(now_M, self.history_WM.mean(0)))
        self.history_WM[int(self.epochs) % window] = now_M
        self.epochs += 1
        if self._compounds and int(self.epochs) % window == 0:
            self.factor_M.mul_(relative(now_M, self.history_WM.mean(0)))

    def rates(self) -> Mapping[str, float]:
        """The current factor of each modality."""
        return dict(zip(self._names, self.factor_M.tolist(), strict=True))


def relative(now_M: Tensor, mean_M: Tensor) -> Tensor:
    """Performance now in units of its mean, above 1 where it improved; 1 where there is no such number.

    A performance is an accuracy or a Dice, of which more is better, or minus an error, of which the quotient is turned over.
    """
    ratio_M = torch.where(mean_M < 0, mean_M / now_M, now_M / mean_M)
    return torch.where(ratio_M.isfinite() & (ratio_M > 0), ratio_M, 1.0)


def learning_rates(options: MSLROptions, modalities: Sequence[str], lr: float) -> dict[str, float]:
    """The learning rates of the encoders, from the flag; those of 'dynamic' may be left out.

    Raises:
        UsageError: one is missing, not a positive number, or of a modality that the run does not have.
    """
    given = options.mslr_lrs
    if given is None:
        if options.mslr_strategy == "dynamic":
            return dict.fromkeys(modalities, lr)
        raise UsageError(
            f"mslr_lrs: the strategy {options.mslr_strategy!r} needs the learning rate of every modality; expected "
            f"{','.join(f'{name}={lr:g}' for name in modalities)} or the like"
        )
    return numbers_by_modality("mslr_lrs", given, modalities)


def _learning_rates(given: Setting[MSLROptions]) -> dict[str, float]:
    return learning_rates(given.options, given.modalities, given.lr)


def _build(given: Materials[MSLROptions]) -> Strategy:
    return MSLR(
        given.guides,
        task=given.task,
        factors={name: rate / given.lr for name, rate in _learning_rates(given).items()},
        strategy=given.options.mslr_strategy,
        window=given.options.mslr_window,
        compounds=given.options.mslr_rule == "compound",
        optimizer=given.guide_optimizer,
        reduce=given.reduce,
    )


STRATEGIES.register("mslr")(StrategyInfo(build=_build, options=MSLROptions, check=_learning_rates, validates=True))
