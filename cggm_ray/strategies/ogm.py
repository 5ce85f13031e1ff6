"""On-the-fly Gradient Modulation, with and without Generalisation Enhancement (Peng et al., CVPR 2022, arXiv 2203.15332).

A step, with s the score of a modality m on the batch and h its encoder's gradient g:

    s_m   = sum_i softmax(answer of m)[y_i]                                      (eq. 8)
    rho_m = s_m / (mean of the other modalities' s)                              (eq. 9)
    k_m   = 1 - tanh(alpha * rho_m)  if rho_m > 1, else 1                        (eq. 10)
    g    <- k_m g                                                                (eq. 11, `ogm`)
    g    <- k_m g + noise,  noise ~ N(0, standard deviation of g's own entries)  (eq. 12, `ogm-ge`)

Where this goes beyond the paper, which has two modalities, late fusion and classification:

- *Answer of a modality.* The paper splits a linear head over a concatenation. For any fusion it is the fused prediction with
  zeros in place of the other modalities' features, in evaluation mode and without gradient: one more pass of the fusion for
  every modality.
- *More than two modalities.* The ratio is to the mean of the others, which for two is eq. 9. Published code for three or more
  also compares with the mean over all, the modality itself included, which pulls every ratio towards 1.
- *Other tasks.* The score is exp(-loss of the answer); for cross-entropy that would be the geometric mean of the
  probabilities whose arithmetic mean eq. 8 is, and eq. 8 itself is used there.
- *Noise.* The paper's covariance is that of the stochastic gradient; as in the released code it is estimated by the standard
  deviation over the entries of a parameter's gradient before scaling. Every parameter of an encoder gets it; the released
  code adds it to convolutions only. A parameter of a single entry has no such deviation and gets none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cggm_ray.config.fields import check, option
from cggm_ray.core.batch import Batch, Feature
from cggm_ray.core.reduction import SINGLE_WORKER, Reduce
from cggm_ray.core.seeding import derive_seed
from cggm_ray.strategies.base import Memo, Strategy
from cggm_ray.strategies.features import Predict, as_in_inference, keep_only, logits_of
from cggm_ray.strategies.registry import STRATEGIES, Materials, StrategyInfo, StrategyOptions
from cggm_ray.strategies.responses import ResponseStrategy
from cggm_ray.tasks.base import Task
from cggm_ray.tasks.classification import Classification


@dataclass(frozen=True, kw_only=True)
class OGMOptions(StrategyOptions):
    """Options of `ogm` and `ogm-ge`."""

    ogm_alpha: float = option(0.3, "ogm, ogm-ge: how strongly the gradient of a dominant modality is lowered")

    def __post_init__(self) -> None:
        check(self.ogm_alpha > 0, self, "ogm_alpha", "a positive number")


class Confidence(ResponseStrategy):
    """The base of OGM and OPM, which compare how much of the truth each modality alone predicts.

    Its arguments are those of `ResponseStrategy`.
    """

    def answers(self, features: Mapping[str, Feature], batch: Batch) -> list[Tensor]:
        """The fused prediction from each modality alone."""
        return [logits_of(self.predict, keep_only(features, (name,)), batch.masks) for name in self.modalities]

    def score_sums(self, logits: Tensor, batch: Batch) -> Tensor:
        """Probabilities of the true classes and samples, eq. 8; for another task the sums of its loss."""
        if not isinstance(self.task, Classification):
            return self.task.sums(logits, batch)
        w = batch.sample_weights()
        probability = logits.softmax(1).gather(1, batch.target[:, None])[:, 0].double()
        return torch.stack([(w * probability).sum(), w.sum()])

    def compare(self, sums_MK: Tensor, seen_M: Tensor) -> Tensor:
        """Ratios [M] of equation 9; 1 for a modality that no sample has, or whose rivals none has."""
        if isinstance(self.task, Classification):
            score_M = sums_MK[:, 0] / sums_MK[:, 1]
        else:
            score_M = torch.stack([torch.exp(-self.task.combine(sums)) for sums in sums_MK])
        score_M = torch.where(seen_M, score_M, 0.0)
        others_M = (score_M.sum() - score_M) / (seen_M.sum() - 1).clamp(min=1)
        compared_M = seen_M & (seen_M.sum() > 1)
        ratio_M = torch.where(compared_M, score_M / others_M.clamp(min=1e-300), 1.0)
        self.diagnostics = {"score": score_M, "ratio": ratio_M}
        return ratio_M


class OGM(Confidence):
    """OGM-GE for a model and a loop of any kind.

    Args:
        modalities: their names, in the order of the coefficients.
        predict: the fused prediction from features, `net.fuse`; `features.as_in_inference` wraps one with dropout or
            batch normalisation.
        task: what is predicted.
        alpha: how strongly a dominant modality's gradient is lowered.
        noisy: encoders by modality, for generalisation enhancement; without them there is no noise. With them gradients are
            scaled and get their noise in `adjust_gradients`; a loop of a person's own calls `adjust` between the backward pass
            and the optimizer.
        seed: of the noise, the same on all workers.
        reduce: sums a vector over workers.

    Raises:
        UsageError: fewer than two modalities.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cggm_ray import Classification
        >>> from cggm_ray.strategies import OGM
        >>> encoders = nn.ModuleDict({"image": nn.Linear(5, 8), "sound": nn.Linear(7, 8)})
        >>> head, task = nn.Linear(16, 3), Classification(3)
        >>> def fuse(features):
        ...     hidden = torch.cat(list(features.values()), 1)
        ...     return head(hidden), hidden
        >>> balance = OGM(["image", "sound"], fuse, task=task, alpha=0.5, noisy=encoders)
        >>> optimizer = torch.optim.SGD([*encoders.parameters(), *head.parameters()], lr=0.1)
        >>> inputs, target = {"image": torch.randn(4, 5), "sound": torch.randn(4, 7)}, torch.tensor([0, 1, 2, 0])
        >>> features = balance.modulate({name: encoders[name](x) for name, x in inputs.items()}, target)
        >>> logits, hidden = fuse(features)
        >>> loss = task.loss(logits, target) + balance.loss(logits, hidden, target)
        >>> loss.backward(); balance.adjust(); optimizer.step(); balance.step()
    """

    def __init__(
        self,
        modalities: Sequence[str],
        predict: Predict,
        *,
        task: Task,
        alpha: float = 0.3,
        noisy: Mapping[str, nn.Module] | None = None,
        seed: int = 0,
        reduce: Reduce = SINGLE_WORKER,
    ) -> None:
        super().__init__(modalities, predict, task=task, gated=noisy is None, reduce=reduce)
        self.alpha = alpha
        self.seed = seed
        self.steps = 0
        self.adjusts = noisy is not None
        self.against_graph = None if noisy is None else "every step has a generator of its own for the noise"
        self._noisy = None if noisy is None else [list(noisy[name].parameters()) for name in self.modalities]

    def decide(self, sums_MK: Tensor, seen_M: Tensor) -> Tensor:
        """Equations 9 and 10. A modality that no sample has, or whose rivals none has, keeps its gradient."""
        ratio_M = self.compare(sums_MK, seen_M)
        return torch.where(ratio_M > 1, 1 - torch.tanh(self.alpha * ratio_M), 1.0)

    @torch.no_grad()
    def adjust_gradients(self, memo: Memo) -> None:
        """Equation 12 on the gradients of the global batch; without noise there is nothing left to do.

        The generator is seeded from the number of the step, so all workers draw the same noise, and so does a resumed run.
        """
        if self._noisy is None:
            return
        generators: dict[torch.device, torch.Generator] = {}
        for index, parameters in enumerate(self._noisy):
            coefficient = memo.gates.scale(index)
            for parameter in parameters:
                gradient = parameter.grad
                if gradient is None:
                    continue
                device = gradient.device
                if device not in generators:
                    seed = derive_seed(self.seed, "noise", self.steps)
                    generators[device] = torch.Generator(device).manual_seed(seed)
                noise = torch.randn(gradient.shape, generator=generators[device], device=device, dtype=gradient.dtype)
                spread = gradient.std() if gradient.numel() > 1 else gradient.new_zeros(())
                gradient.mul_(coefficient.to(gradient.dtype)).add_(noise * spread)
        self.steps += 1

    def get_extra_state(self) -> dict[str, Any]:
        """The number of the step, which seeds the noise."""
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Puts the number of the step back."""
        self.steps = int(state["steps"])


def _build(given: Materials[OGMOptions], noisy: bool = False) -> Strategy:
    return OGM(
        given.modalities,
        as_in_inference(given.net),
        task=given.task,
        alpha=given.options.ogm_alpha,
        noisy=dict(given.net.encoders.items()) if noisy else None,
        seed=given.seed,
        reduce=given.reduce,
    )


STRATEGIES.register("ogm")(StrategyInfo(build=_build, options=OGMOptions))
STRATEGIES.register("ogm-ge")(StrategyInfo(build=partial(_build, noisy=True), options=OGMOptions, shares="ogm"))
