"""ReconBoost: Hua, Xu, Bao, Yang and Huang, "Boosting Can Achieve Modality Reconcilement" (ICML 2024, arXiv 2405.09321).

The prediction is the sum of the logits of uni-modal learners f_m (encoder and guide), and they take turns. A stage:

1. For `reconboost_epochs` epochs one learner k moves, the others are frozen. With p = softmax(f_k), the sum of the frozen
   q = softmax(sum_{m != k} f_m) and the class y, its loss is, as the released code has it,

       (1 / C) (-weight1 log p_y + weight2 q_y log p_y) + alpha MSE(p, softmax(f_j)) :

   agreement with the label, less of it where the others have learned it already (the KL reconcilement, by which the
   learner fits the residual of the others as in gradient boosting), and memory consolidation: agreement with the learner j
   that moved in the stage before. In the first stage there is none.
2. Global rectification: for `reconboost_rectify` epochs all learners move, by the cross-entropy of the sum.

What is not the released code's: the memory term has a gradient there by intention only (both sides are detached), here it
reaches p; the optimizer is one and goes on over the stages; the shared head and the learned rate of the sum are left out.

`reconboost_reading released` is nearer to that code (github.com/huacong/ReconBoost): the memory term is detached on both sides,
so it has no gradient; every half of a stage begins with an empty memory of the optimizer; and in the first stage there is one
learner alone. For it q = 1, so its loss has the factor weight1 - weight2, and in the rectification it moves by its own
cross-entropy. What is left: the commands of that code start from uni-modal networks that were trained before, it validates the
first stage without the learners that have not moved, and it goes on for up to 1,001 stages. Its weights are 5 and 1 for
CREMA-D, 4 and 1 for AVE and ModelNet40.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from cggm_ray.config.fields import at_least, check, one_of, option
from cggm_ray.core.arithmetic import in_precision
from cggm_ray.core.batch import Batch, HeadOutput
from cggm_ray.core.reduction import SINGLE_WORKER, Reduce
from cggm_ray.models.ensemble import Ensemble, ensemble_net, ensemble_of, members_of
from cggm_ray.strategies.base import Memo, Strategy
from cggm_ray.strategies.registry import STRATEGIES, Materials, StrategyInfo, StrategyOptions
from cggm_ray.tasks import Classification


@dataclass(frozen=True, kw_only=True)
class ReconBoostOptions(StrategyOptions):
    """Flags of ReconBoost."""

    reconboost_epochs: int = option(4, "reconboost: epochs of a stage in which one learner is trained")
    reconboost_rectify: int = option(
        4, "reconboost: epochs of a stage in which all are trained, the global rectification"
    )
    reconboost_weight1: float = option(5.0, "reconboost: weight of the agreement with the label")
    reconboost_weight2: float = option(1.0, "reconboost: weight of the reconcilement with the other learners")
    reconboost_alpha: float = option(0.5, "reconboost: weight of the agreement with the learner of the stage before")
    reconboost_reading: str = option("joined", "reconboost: variant: joined, released (see docs/strategies.md)")

    def __post_init__(self) -> None:
        one_of(self, "reconboost_reading", ("joined", "released"))
        at_least(self, "reconboost_epochs", 1)
        at_least(self, "reconboost_rectify", 0)
        for name in ("reconboost_weight1", "reconboost_weight2", "reconboost_alpha"):
            check(getattr(self, name) >= 0, self, name, "zero or a positive number")


class ReconBoost(Strategy):
    """Trains learners of single modalities in turns, each against the frozen sum of the others, and then all together.

    Args:
        encoders: by modality.
        ensemble: of the learners' guides, which the network has in the place of its fusion.
        task: a classification.
        epochs: of a stage in which one learner is trained.
        rectify: epochs of a stage in which all learners are trained.
        weight1: weight of the agreement with the label.
        weight2: weight of the reconcilement with the other learners.
        alpha: weight of the agreement with the learner of the stage before.
        released: whether the variant is that nearer to the released code.
        reduce: sums a vector over workers.
    """

    adjusts = True

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        ensemble: Ensemble,
        *,
        task: Classification,
        epochs: int = 4,
        rectify: int = 4,
        weight1: float = 5.0,
        weight2: float = 1.0,
        alpha: float = 0.5,
        released: bool = False,
        reduce: Reduce = SINGLE_WORKER,
    ) -> None:
        super().__init__(task=task, reduce=reduce)
        self._classes = task.outputs
        self._boosting, self._stage = epochs, epochs + rectify
        self._weights = (weight1, weight2, 0.0 if released else alpha)
        self._released = released
        self._names = tuple(ensemble.members)
        # In tuples: their parameters are the network's, and not registered a second time.
        self._learners = {name: (encoders[name], ensemble.members[name]) for name in self._names}
        self._epoch = 0

    @property
    def moving(self) -> str | None:
        """The learner that is trained in this epoch; None where all are."""
        stage, epoch = divmod(self._epoch, self._stage)
        turns = epoch < self._boosting or self._alone
        return self._names[stage % len(self._names)] if turns else None

    @property
    def _alone(self) -> bool:
        """Whether the first learner moves by its own cross-entropy."""
        return self._released and self._boosting <= self._epoch < self._stage

    def fresh_optimizer(self, epoch: int) -> bool:
        """Where a half of a stage begins, in the released reading."""
        return self._released and epoch % self._stage in (0, self._boosting)

    @property
    def moved_before(self) -> str | None:
        """The learner that was trained in the stage before; None in the first stage."""
        stage = self._epoch // self._stage
        return self._names[(stage - 1) % len(self._names)] if stage else None

    def branch(self) -> Hashable:
        """The learner that is trained, and the one of the stage before."""
        return self.moving, self.moved_before, self._alone

    def sums(self, head: HeadOutput, batch: Batch, memo: Memo) -> Tensor:
        """Of the moving learner: [boosting term, samples, squared distances, samples that have both modalities]."""
        name, before = self.moving, self.moved_before
        if name is None:
            return super().sums(head, batch, memo)
        weight1, weight2, _ = self._weights
        logits = {other: in_precision(values) for other, values in members_of(head).items()}
        others = torch.stack([values.detach() for other, values in logits.items() if other != name]).sum(0)
        # In the first stage the others have learned nothing that could be subtracted.
        q = others.softmax(1) if before is not None else torch.full_like(others, float(self._released))
        if self._alone:
            weight1, weight2 = float(self._classes), 0.0
        w = batch.having(name).sample_weights()
        log_p = logits[name].log_softmax(1)
        truth = batch.target[:, None]
        boosting = ((weight2 * q - weight1) * log_p).gather(1, truth)[:, 0].double() / self._classes
        parts = [(boosting * w).sum(), w.sum()]
        if before is None:
            return torch.stack([*parts, w.new_zeros(()), w.new_zeros(())])
        both = batch.having(name, before).sample_weights()
        distance = (log_p.exp() - logits[before].detach().softmax(1)).square().mean(1).double()
        return torch.stack([*parts, (distance * both).sum(), both.sum()])

    def combine(self, task_sums: Tensor, own_sums: Tensor, memo: Memo) -> Tensor:
        """The loss of the learner minus the task loss of the sum; 0 where all are trained by the latter."""
        turns = [own_sums.new_full((), float(self.moving in (None, name))) for name in self._names]
        self.diagnostics = {"moving": torch.stack(turns)}
        if self.moving is None:
            return own_sums.new_zeros(())
        boosting, samples, distance, both = own_sums
        term = boosting / samples.detach().clamp(min=1) + self._weights[2] * distance / both.detach().clamp(min=1)
        return term - self.task.combine(task_sums)

    def adjust_gradients(self, memo: Memo) -> None:
        """Takes the gradients from the frozen learners, so that the optimizer passes over them with all its memory."""
        for name, modules in self._learners.items():
            if self.moving not in (None, name):
                for module in modules:
                    module.zero_grad(set_to_none=True)

    def end_epoch(self, train: Mapping[str, float], valid: Mapping[str, float], observed: Tensor) -> None:
        """Counts the epoch."""
        self._epoch += 1

    def get_extra_state(self) -> dict[str, Any]:
        """The number of epochs, from which the turn follows."""
        return {"epoch": self._epoch}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Puts it back."""
        self._epoch = int(state["epoch"])


def _build(given: Materials[ReconBoostOptions]) -> Strategy:
    options = given.options
    return ReconBoost(
        dict(given.net.encoders.items()),
        ensemble_of(given.net),
        task=cast(Classification, given.task),
        epochs=options.reconboost_epochs,
        rectify=options.reconboost_rectify,
        weight1=options.reconboost_weight1,
        weight2=options.reconboost_weight2,
        alpha=options.reconboost_alpha,
        released=options.reconboost_reading == "released",
        reduce=given.reduce,
    )


# Its command for CREMA-D. Its commands start from networks that were trained before, and have no number of epochs.
RECIPE = {
    **{"optim": "SGD", "lr": 0.01, "cls_lr": 0.01, "weight_decay": 5e-4, "clip": 0.0, "batch_size": 64},
    "reconboost_reading": "released",
}
STRATEGIES.register("reconboost")(
    StrategyInfo(
        build=_build,
        options=ReconBoostOptions,
        recipe=RECIPE,
        tasks=(Classification,),
        network=lambda net, guides, options: ensemble_net(net, guides, mean=False),
    )
)
