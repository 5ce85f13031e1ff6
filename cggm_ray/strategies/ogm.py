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
  also compares with the mean over all, the modality itself included, which pulls every ratio towards 1. The journal paper
  (arXiv 2410.11582) has any number of modalities; see `ogm_rivals ratios` below.
- *Other tasks.* The score is exp(-loss of the answer); for cross-entropy that would be the geometric mean of the
  probabilities whose arithmetic mean eq. 8 is, and eq. 8 itself is used there.
- *Noise.* The paper's covariance is that of the stochastic gradient; as in the released code it is estimated by the standard
  deviation over the entries of a parameter's gradient before scaling. A parameter of a single entry has no such deviation and
  gets none.

The released code (github.com/GeWu-Lab/OGM-GE_CVPR2022) is read by options, which together are its arithmetic for two
modalities, a concatenation and a linear head:

- `ogm_parameters convolutions`: only gradients with four dimensions are scaled and get noise, those of 2-d convolutions, so an
  encoder without any is left as it is.
- `ogm_epochs 51`: gradients are modulated in the first epochs only.
- `ogm_bias shared`: every answer has its share of what the fused network answers without any modality. For a linear head over
  a concatenation that is the bias over the number of modalities, as in the released code.
- `ogm_rivals minimum` is BalanceBenchmark's reading of three and more modalities: the ratio is to the least of the other
  scores.
- `ogm_rivals ratios` is the mean of the ratios to each of the others: equation 7 of the journal paper, as a public
  reimplementation gives it, because its text was not at hand. That also gives its equation 11 for k, 1 - alpha tanh(rho - 1),
  which is continuous at rho = 1. The code that its authors released (github.com/GeWu-Lab/BML_TPAMI2024) has equation 10 above
  instead, and so has this module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cggm_ray.config.fields import at_least, check, one_of, option
from cggm_ray.core.batch import Batch, Feature
from cggm_ray.core.reduction import SINGLE_WORKER, Reduce
from cggm_ray.core.seeding import derive_seed
from cggm_ray.strategies.base import Memo, Strategy
from cggm_ray.strategies.features import Predict, as_in_inference, keep_only, logits_of
from cggm_ray.strategies.registry import STRATEGIES, Materials, StrategyInfo, StrategyOptions
from cggm_ray.strategies.responses import ResponseStrategy
from cggm_ray.tasks.base import Task
from cggm_ray.tasks.classification import Classification

CONVOLUTIONS = "convolutions"
RIVALS = ("mean", "minimum", "ratios")


@dataclass(frozen=True, kw_only=True)
class OGMOptions(StrategyOptions):
    """Options of `ogm` and `ogm-ge`."""

    ogm_alpha: float = option(0.3, "ogm, ogm-ge: how strongly the gradient of a dominant modality is lowered")
    ogm_parameters: str = option("all", "ogm, ogm-ge: which gradients of an encoder are modulated: all, convolutions")
    ogm_epochs: int = option(0, "ogm, ogm-ge: number of first epochs in which gradients are modulated; 0 for all")
    ogm_bias: str = option(
        "whole",
        "ogm, ogm-ge: how much of the prediction without any modality is in that of each: whole, shared (1 / M)",
    )
    ogm_rivals: str = option(
        "mean", "ogm, ogm-ge: what a score is divided by: mean or minimum of the others; ratios: each, then averaged"
    )

    def __post_init__(self) -> None:
        check(self.ogm_alpha > 0, self, "ogm_alpha", "a positive number")
        one_of(self, "ogm_parameters", ("all", CONVOLUTIONS))
        at_least(self, "ogm_epochs", 0)
        one_of(self, "ogm_bias", ("whole", "shared"))
        one_of(self, "ogm_rivals", RIVALS)


class Confidence(ResponseStrategy):
    """The base of OGM and OPM, which compare how well each modality alone predicts.

    The arguments are those of `ResponseStrategy`.

    Attributes:
        bias: how much of the prediction without any modality is in that of each: 'whole' or 'shared' (1 / M).
        rivals: what a score is divided by: 'mean' or 'minimum' of the others, or 'ratios' (each, then averaged).
    """

    bias = "whole"
    rivals = "mean"

    def answers(self, features: Mapping[str, Feature], batch: Batch) -> list[Tensor]:
        """The fused prediction from each modality alone."""
        found = [logits_of(self.predict, keep_only(features, (name,)), batch.masks) for name in self.modalities]
        if self.bias == "whole":
            return found
        of_none = logits_of(self.predict, keep_only(features, ()), batch.masks)
        return [logits - (1 - 1 / len(found)) * of_none for logits in found]

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
        apart_MM = torch.eye(len(score_M), dtype=torch.bool, device=score_M.device) | ~seen_M
        if self.rivals == "minimum":
            others_M = torch.where(apart_MM, torch.inf, score_M).amin(1)
        if self.rivals == "ratios":
            # The mean of the ratios to each is the ratio to the harmonic mean.
            inverse_MM = torch.where(apart_MM, 0.0, 1 / score_M.clamp(min=1e-300))
            others_M = (~apart_MM).sum(1) / inverse_MM.sum(1).clamp(min=1e-300)
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
        convolutions: encoders by modality, of which only the gradients with four dimensions are modulated, in `adjust` too.
        epochs: number of first epochs in which gradients are modulated; 0 for all. `end_epoch` counts them.
        bias: see `Confidence`.
        rivals: see `Confidence`.
        reduce: sums a vector over workers.

    Raises:
        UsageError: fewer than two modalities.

    Examples:
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
        >>> features = balance.modulate({name: encoders[name](inputs[name]) for name in inputs}, target)
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
        convolutions: Mapping[str, nn.Module] | None = None,
        epochs: int = 0,
        bias: str = "whole",
        rivals: str = "mean",
        reduce: Reduce = SINGLE_WORKER,
    ) -> None:
        changed = noisy if convolutions is None else convolutions
        super().__init__(modalities, predict, task=task, gated=changed is None, reduce=reduce)
        self.alpha, self.epochs, self.bias, self.rivals = alpha, epochs, bias, rivals
        self.seed = seed
        self.steps = 0
        self.adjusts = changed is not None
        self.against_graph = None if noisy is None else "every step has a generator of its own for the noise"
        self._is_noisy, self._only_convolutions = noisy is not None, convolutions is not None
        self._changed = None if changed is None else [list(changed[name].parameters()) for name in self.modalities]
        # Without the option a checkpoint holds what it held before there was one.
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64), persistent=epochs > 0)

    epoch: Tensor

    def decide(self, sums_MK: Tensor, seen_M: Tensor) -> Tensor:
        """Equations 9 and 10. A modality that no sample has, or whose rivals none has, keeps its gradient."""
        ratio_M = self.compare(sums_MK, seen_M)
        lowered_M = ratio_M > 1
        if self.epochs:
            lowered_M = lowered_M & (self.epoch < self.epochs)
        return torch.where(lowered_M, 1 - torch.tanh(self.alpha * ratio_M), 1.0)

    @torch.no_grad()
    def adjust_gradients(self, memo: Memo) -> None:
        """Equation 12 on the gradients of the global batch, or equation 11 on those of convolutions.

        The generator is seeded from the number of the step, so all workers draw the same noise, and so does a resumed run.
        """
        if self._changed is None or (self.epochs and int(self.epoch) >= self.epochs):
            return
        generators: dict[torch.device, torch.Generator] = {}
        for index, parameters in enumerate(self._changed):
            coefficient = memo.gates.scale(index)
            for parameter in parameters:
                gradient = parameter.grad
                if gradient is None or (self._only_convolutions and gradient.ndim != 4):
                    continue
                if not self._is_noisy:
                    gradient.mul_(coefficient.to(gradient.dtype))
                    continue
                device = gradient.device
                if device not in generators:
                    seed = derive_seed(self.seed, "noise", self.steps)
                    generators[device] = torch.Generator(device).manual_seed(seed)
                noise = torch.randn(gradient.shape, generator=generators[device], device=device, dtype=gradient.dtype)
                spread = gradient.std() if gradient.numel() > 1 else gradient.new_zeros(())
                gradient.mul_(coefficient.to(gradient.dtype)).add_(noise * spread)
        self.steps += 1

    def end_epoch(self, train: Mapping[str, float], valid: Mapping[str, float], observed: Tensor) -> None:
        """Counts the epoch."""
        self.epoch += 1

    def get_extra_state(self) -> dict[str, Any]:
        """The number of the step, which seeds the noise."""
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Puts the number of the step back."""
        self.steps = int(state["steps"])


def _build(given: Materials[OGMOptions], noisy: bool = False) -> Strategy:
    encoders = dict(given.net.encoders.items())
    return OGM(
        given.modalities,
        as_in_inference(given.net),
        task=given.task,
        alpha=given.options.ogm_alpha,
        noisy=encoders if noisy else None,
        seed=given.seed,
        convolutions=encoders if given.options.ogm_parameters == CONVOLUTIONS else None,
        epochs=given.options.ogm_epochs,
        bias=given.options.ogm_bias,
        rivals=given.options.ogm_rivals,
        reduce=given.reduce,
    )


# Not `ogm_parameters`: an encoder without convolutions would be left as it is.
RELEASED_RECIPE = {
    **{"optim": "SGD", "lr": 1e-3, "weight_decay": 1e-4, "clip": 0.0, "batch_size": 64, "num_epochs": 100},
    **{"ogm_alpha": 0.8, "ogm_epochs": 51, "ogm_bias": "shared"},
}
STRATEGIES.register("ogm")(StrategyInfo(build=_build, options=OGMOptions, recipe=RELEASED_RECIPE))
STRATEGIES.register("ogm-ge")(
    StrategyInfo(build=partial(_build, noisy=True), options=OGMOptions, shares="ogm", recipe=RELEASED_RECIPE)
)
