"""Classifier-guided Gradient Modulation (NeurIPS 2024, arXiv 2411.01409).

A step, one function each:

1. `transform` runs the guides on the features, detached but in `cggm-multiloss`; a single worker decides the coefficients
   here, from the guides' utilities, and scales the gradients of the features by them, so that the whole step is one graph;
2. `sums` collects what the batch adds to the guides' losses, their utilities and the head gradients;
3. `combine` forms lambda * L_gm plus the guides' losses, so that one backward pass serves all;
4. `move` moves the guides.

With several workers the utilities of the global batch are known after the one all-reduce of the step: `transform` places
gates, and `combine` decides the coefficients and opens them before the backward pass. The alternative is a second all-reduce
in every step. Both ways have the same coefficients and gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from cggm_ray.core.batch import Batch, Feature, HeadOutput
from cggm_ray.core.errors import UsageError
from cggm_ray.core.reduction import SINGLE_WORKER, Reduce, Totals
from cggm_ray.core.registry import nearest
from cggm_ray.strategies.base import Memo, Strategy
from cggm_ray.strategies.coefficients import COEFFICIENT_RULES, Coefficients, StableRule
from cggm_ray.strategies.direction import DIRECTION_RULES
from cggm_ray.strategies.gate import Gates, scaled
from cggm_ray.strategies.guided import Guided, GuideOutputs
from cggm_ray.strategies.registry import STRATEGIES, Materials, StrategyInfo, StrategyOptions
from cggm_ray.strategies.settings import CGGM_MULTILOSS
from cggm_ray.tasks.base import Task
from cggm_ray.tasks.mean import combine_each

LEAST_RATE = 1e-6


@dataclass(frozen=True)
class _Memo:
    """Of a pass; `scale` is None where `combine` decides it, for which `gates` wait."""

    outputs: GuideOutputs
    utility_sums: Tensor
    scale: Coefficients | None
    gates: Gates


class CGGM(Guided):
    """CGGM for a model and a loop of any kind.

    Args:
        guides: guide classifier f_m by modality. A guide maps the (detached) feature of its modality to a `HeadOutput`.
        task: what is predicted.
        rho: scale of the coefficients.
        lam: weight of the direction term; the paper's lambda.
        coefficients: 'stable', 'paper' or 'released'.
        direction: 'gradient', 'released' or 'off'.
        utility: name of the guides' utility; by default the task's own for the rule.
        smoothing: of the rule 'stable', in [0, 1).
        floor: of the rule 'stable'.
        lr: learning rate of the guides, if no `optimizer` is given.
        optimizer: makes the guides' optimizer from their parameters; default Adam.
        head: last linear layer (or 1x1 convolution) F of the model; only the direction 'released' needs it.
        magnitude: whether gradients are scaled; False leaves the direction term alone.
        attached: whether the losses of the guides train the encoders too, as those of `MultiLoss` do. The method of the paper
            detaches them. Where features are gated, coefficients scale the gradient of the fusion alone.
        update: whether the coefficient is a factor of the encoder's learning rate (`rates`) in place of a factor of its
            gradient. An optimizer such as Adam divides a gradient by its own running size, and with it most of a factor.
            The loop then has a parameter group for each encoder, whose rate it sets from `rates` in every step.
        bodies: modules by modality whose parameters' gradients are scaled instead of the gradient at the feature. Only
            the exact reproduction of the released code needs it, which leaves the input projections alone.
        reduce: sums a vector over workers.

    Raises:
        UsageError: fewer than two guides, or a name that does not exist.

    Examples:
        Five lines change in an ordinary loop (marked 1 to 5). `net` is any model with two halves: encoders that give a
        dictionary of features, and a fusion that gives logits and the input of its last linear layer.

        >>> import torch
        >>> from torch import nn
        >>> from cggm_ray import CGGM, Classification, HeadOutput
        >>> class Guide(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.hidden, self.head = nn.Linear(8, 16), nn.Linear(16, 3)
        ...     def forward(self, feature):
        ...         hidden = self.hidden(feature).relu()
        ...         return HeadOutput(self.head(hidden), hidden)
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.image, self.sound = nn.Linear(5, 8), nn.Linear(7, 8)
        ...         self.hidden, self.head = nn.Linear(16, 16), nn.Linear(16, 3)
        ...     def encode(self, inputs):
        ...         return {"image": self.image(inputs["image"]), "sound": self.sound(inputs["sound"])}
        ...     def fuse(self, features):
        ...         hidden = self.hidden(torch.cat(list(features.values()), 1)).relu()
        ...         return self.head(hidden), hidden
        >>> net, task = Net(), Classification(3)
        >>> balance = CGGM({"image": Guide(), "sound": Guide()}, task=task, rho=1.3, lam=0.2)  # 1
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> inputs = {"image": torch.randn(4, 5), "sound": torch.randn(4, 7)}
        >>> target = torch.tensor([0, 1, 2, 0])
        >>> optimizer.zero_grad()
        >>> features = balance.modulate(net.encode(inputs), target)  # 2
        >>> logits, hidden = net.fuse(features)  # 3: two calls instead of one
        >>> loss = task.loss(logits, target) + balance.loss(logits, hidden, target)  # 4
        >>> loss.backward(); optimizer.step(); balance.step()  # 5

        With DistributedDataParallel, wrap one module that holds `net` and `balance` and whose forward runs the lines
        from `encode` to `balance.loss`, and pass a `reduce` that all-reduces: the guides' gradients are then averaged
        together with the model's.
    """

    beside_fusion = True

    def __init__(
        self,
        guides: Mapping[str, nn.Module],
        *,
        task: Task,
        rho: float = 1.3,
        lam: float = 0.2,
        coefficients: str = "stable",
        direction: str = "gradient",
        utility: str | None = None,
        smoothing: float = 0.9,
        floor: float = 0.01,
        lr: float = 5e-4,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
        head: nn.Module | None = None,
        magnitude: bool = True,
        attached: bool = False,
        update: bool = False,
        bodies: Mapping[str, nn.Module] | None = None,
        reduce: Reduce = SINGLE_WORKER,
    ) -> None:
        if len(guides) < 2:
            raise UsageError(
                f"modulation: CGGM balances at least two modalities, found {len(guides)}; use the strategy 'none'"
            )
        _check_name("coefficients", coefficients, COEFFICIENT_RULES)
        _check_name("direction", direction, DIRECTION_RULES)
        make = optimizer or (lambda parameters: Adam(parameters, lr=lr))
        super().__init__(guides, task=task, optimizer=make, detach=not attached, reduce=reduce)
        self.lam = lam
        default = task.released_utility if coefficients == "released" else task.default_utility
        self._utility = task.utility(utility or default)
        options = {"smoothing": smoothing, "floor": floor} if COEFFICIENT_RULES[coefficients] is StableRule else {}
        self.coefficients = COEFFICIENT_RULES[coefficients](len(guides), rho=rho, **options)
        self.direction = DIRECTION_RULES[direction](
            task=task,
            head_weight=None if head is None else _weight(head, "head"),
            guide_weights=[_weight(guide.head, "guide.head") for guide in guides.values() if hasattr(guide, "head")],
        )
        self._gate_features = magnitude and bodies is None and not update
        self.rates_by_step = magnitude and update
        self.against_graph = "the host reads the rates in every step (gate=update)" if self.rates_by_step else None
        if self.rates_by_step:
            self.register_buffer("scale_M", torch.ones(len(guides), dtype=torch.float64))
        # A hook of a parameter lasts longer than a step, so these gates do too.
        self.body_gates = None if bodies is None else Gates()
        if self.body_gates is not None and bodies is not None:
            for index, name in enumerate(guides):
                self.body_gates.hook(bodies[name].parameters(), index)

    scale_M: Tensor

    def transform(
        self, features: dict[str, Feature], batch: Batch, totals: Totals | None = None
    ) -> tuple[dict[str, Feature], Memo]:
        """Runs the guides and scales the gradients of the features for the fusion, or places gates.

        Args:
            features: modality name to the output of its encoder; every modality has a guide.
            batch: a sample without a modality does not count for its guide, which gets masks as a second argument.
            totals: the sums of the global batch where they are known.

        Returns:
            The features for the fusion, equal in value, and the memo.
        """
        outputs = self.run_guides(features, batch)
        utility_sums = self.utility_sums(self._utility, outputs)
        known = self.known_sums(utility_sums, totals, start=len(self.guides) * self.task.n_sums)
        scale = None if known is None else self._decide(known.reshape(-1, 2))
        gates = self.body_gates or Gates()
        gates.close()
        if scale is not None:
            gates.open(scale.gate_M)
        memo = _Memo(outputs, utility_sums, scale, gates)
        if not self._gate_features:
            return features, memo
        if scale is None:
            return {name: gates.place(features[name], index) for index, name in enumerate(self.guides)}, memo
        return {name: scaled(features[name], scale.gate_M[index]) for index, name in enumerate(self.guides)}, memo

    def sums(self, head: HeadOutput, batch: Batch, memo: Memo) -> Tensor:
        """[guide losses M K | utilities M 2 | direction]."""
        direction = self.direction.sums((head, batch), memo.outputs)
        return torch.cat([self.guide_sums(memo.outputs), memo.utility_sums, direction])

    def combine(self, task_sums: Tensor, own_sums: Tensor, memo: Memo) -> Tensor:
        """Decides the coefficients and opens the gates, if that is still to do; returns lambda * L_gm + the guides' losses."""
        m, k = len(self.guides), self.task.n_sums
        guide_sums, utility_sums, direction_sums = own_sums.split([m * k, m * 2, len(own_sums) - m * (k + 2)])
        guide_sums_MK, utility_sums_M2 = guide_sums.reshape(m, k), utility_sums.detach().reshape(m, 2)
        utility_M, seen_M = utilities(utility_sums_M2)
        scale = memo.scale
        if scale is None:
            scale = self._decide(utility_sums_M2)
            memo.gates.open(scale.gate_M)
        if self.rates_by_step:
            self.scale_M.copy_(scale.gate_M)

        # A modality that no sample has gives 0 / 0; ones in its place keep the gradients of the others finite.
        guide_sums_MK = torch.where(seen_M[:, None], guide_sums_MK, 1.0)
        losses_M = torch.where(seen_M, combine_each(self.task, guide_sums_MK), 0.0)
        term = self.direction(direction_sums, task_sums, guide_sums_MK, scale.direction_M)
        self.diagnostics = {
            "score": utility_M,
            "coefficient": scale.gate_M,
            "guide_loss": losses_M.detach(),
            "direction_loss": term.loss.detach(),
        }
        if self.coefficients.clipped_M is not None:
            self.diagnostics["clipped"] = self.coefficients.clipped_M.double()
        if term.cosine_M is not None:
            self.diagnostics["cosine"] = term.cosine_M
        return self.lam * term.loss + losses_M.sum()

    @torch.no_grad()
    def _decide(self, utility_sums_M2: Tensor) -> Coefficients:
        """The coefficients of the step, from the guides' utilities over the global batch."""
        scale: Coefficients = self.coefficients(*utilities(utility_sums_M2))
        return scale

    def rates(self) -> dict[str, float]:
        """The coefficients of this step by modality, where they scale learning rates: on a GPU, this waits for them."""
        if not self.rates_by_step:
            return {}
        # A learning rate is positive; the rules 'paper' and 'released' know coefficients that are not.
        return dict(zip(self.guides, self.scale_M.clamp(min=LEAST_RATE).tolist(), strict=True))

    def move(self) -> None:
        """Updates the guides, and ends the step of the direction rule."""
        super().move()
        self.direction.move()

    def memory(self) -> list[Tensor]:
        """What the coefficient rule and the direction rule remember, and the coefficients where they are rates."""
        own = [self.scale_M] if self.rates_by_step else []
        return [*self.coefficients.buffers(), *self.direction.buffers(), *own]


def utilities(sums_M2: Tensor) -> tuple[Tensor, Tensor]:
    """Utilities [M] from their sums, numerator and count, and whether any sample has the modality, bool [M]."""
    return sums_M2[:, 0] / sums_M2[:, 1].clamp(min=1e-12), sums_M2[:, 1] > 0


def _check_name(field: str, name: str, names: Mapping[str, object]) -> None:
    if name not in names:
        raise UsageError(f"{field}: unknown {name!r}{nearest(name, names)}; available: {', '.join(names)}")


def _weight(layer: object, what: str) -> Tensor:
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        raise UsageError(f"{what}: expected a linear layer or 1x1 convolution, found {type(layer).__name__}")
    return weight


def _build(given: Materials[StrategyOptions], *, attached: bool = False) -> Strategy:
    parts = given.modulation
    return CGGM(
        given.guides,
        task=given.task,
        rho=parts.rho,
        lam=parts.lam,
        coefficients=str(parts.coefficients),
        direction=str(parts.direction),
        utility=parts.utility,
        smoothing=parts.smoothing,
        floor=parts.floor,
        optimizer=given.guide_optimizer,
        head=given.net.head,
        magnitude=parts.gate != "off",
        attached=attached,
        update=parts.gate == "update",
        bodies=given.net.bodies() if parts.gate == "body" else None,
        reduce=given.reduce,
    )


READINGS = {
    "cggm": {"coefficients": "stable", "direction": "gradient", "gate": "feature"},
    "cggm-paper": {"coefficients": "paper", "direction": "gradient", "gate": "feature"},
    "cggm-released": {"coefficients": "released", "direction": "released", "gate": "body"},
    "cggm-magnitude": {"coefficients": "stable", "direction": "off", "gate": "feature"},
    "cggm-direction": {"coefficients": "stable", "direction": "gradient", "gate": "off"},
}
"""The readings of the method, and its two halves by themselves."""

for name, parts in READINGS.items():
    STRATEGIES.register(name)(StrategyInfo(build=_build, options=StrategyOptions, parts=parts))
STRATEGIES.register(CGGM_MULTILOSS)(
    StrategyInfo(build=partial(_build, attached=True), options=StrategyOptions, parts=READINGS["cggm"])
)
