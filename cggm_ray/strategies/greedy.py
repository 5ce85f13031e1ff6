"""Balanced multi-modal learning: Wu, Jastrzebski, Cho and Geras, "Characterizing and Overcoming the Greedy Nature of
Learning in Multi-modal Deep Neural Networks" (ICML 2022, arXiv 2202.05306).

Every modality has a branch (encoder and guide), and a cross-modal bypass gates the hidden layer h_m of each branch by what all
of them hold (MMTM, a squeeze and an excitation):

    e      = relu(V [h_1, ..., h_M]),   g_m = sigmoid(W_m e),   z_m = head_m(g_m h_m)
    L      = sum_m CE(z_m),   the prediction is the mean of the z_m

How fast a branch learns by the bypass, compared with by itself, is its conditional learning speed. With |.|^2 a sum of squares,
over V and W_m (bypass) and over encoder and guide m (main), and sums over the steps so far,

    s_m = log10( (sum_t |grad bypass_m|^2 / |bypass_m|^2) / (sum_t |grad main_m|^2 / |main_m|^2) )

After `greedy_start` epochs, where s_m of the fastest m is above the mean of the others by more than `greedy_epsilon`, its gates
are their running averages in the next `greedy_window` steps, so that it learns from itself; these steps do not count in s.

The formulas and defaults are those of the released code (github.com/nyukat/greedy_multimodal_learning), for two modalities; its
`starting_epoch` of 2 counts epochs from 1, so that there is one epoch before it. What was decided here:

- That code has such gates after three blocks of two ResNets. For networks of any kind there is one, at the last hidden layer of
  the guides, which is the place of its last one.
- It takes the gates of a pass into their average before it holds them at that, where each worker would need those of the others
  in the middle of the pass; here a pass has the average of those before it. It also takes those of validation and test, which
  training must not see.
- Its running average of the second branch's gates takes those of the first, by a slip; here each has its own, over the samples
  that have the modality.
- A sample that lacks a modality has no vote of it, and zeros in its place in the squeeze.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cggm_ray.config.fields import at_least, check, option
from cggm_ray.core.arithmetic import in_precision
from cggm_ray.core.batch import Batch, Feature, HeadOutput
from cggm_ray.core.errors import UsageError
from cggm_ray.core.reduction import SINGLE_WORKER, Reduce, Totals
from cggm_ray.models.ensemble import members_of
from cggm_ray.models.net import Masks, MultimodalNet
from cggm_ray.strategies.base import Memo, Strategy
from cggm_ray.strategies.guided import losses_of
from cggm_ray.strategies.registry import STRATEGIES, Materials, StrategyInfo, StrategyOptions
from cggm_ray.tasks import Classification, Task


@dataclass(frozen=True, kw_only=True)
class GreedyOptions(StrategyOptions):
    """Options of `greedy`; the defaults are those of the released code."""

    greedy_ratio: float = option(
        4.0, "greedy: the squeeze layer is 2 / greedy_ratio times as wide as all hidden layers together"
    )
    greedy_epsilon: float = option(
        0.01, "greedy: difference of learning speeds above which the gates of the fastest modality are held"
    )
    greedy_window: int = option(5, "greedy: steps for which gates are held")
    greedy_start: int = option(1, "greedy: number of first epochs in which no gates are held")

    def __post_init__(self) -> None:
        check(self.greedy_ratio > 0, self, "greedy_ratio", "a positive number")
        check(self.greedy_epsilon >= 0, self, "greedy_epsilon", "zero or a positive number")
        at_least(self, "greedy_window", 1)
        at_least(self, "greedy_start", 0)


class GatedEnsemble(nn.Module):
    """The branches' guides with the bypass between their hidden layers.

    Args:
        members: by modality; each maps the feature of its modality to a `HeadOutput` and has its last linear layer as `head`.
        ratio: see `GreedyOptions`.

    Raises:
        UsageError: a guide has no linear layer `head`.
    """

    def __init__(self, members: Mapping[str, nn.Module], ratio: float) -> None:
        super().__init__()
        self.members = nn.ModuleDict(members)
        self.widths = tuple(_width(name, member) for name, member in members.items())
        inner = max(1, int(2 * sum(self.widths) / ratio))
        head: Any = next(iter(members.values())).head
        same: dict[str, Any] = {"dtype": head.weight.dtype, "device": head.weight.device}
        self.squeeze = nn.Linear(sum(self.widths), inner, **same)
        sizes = zip(members, self.widths, strict=True)
        self.excite = nn.ModuleDict({name: nn.Linear(inner, width, **same) for name, width in sizes})
        self._held: tuple[Tensor, Tensor] | None = None

    def hold(self, held_M: Tensor, average_D: Tensor) -> None:
        """Sets which modalities have the average gates, all of them side by side, in the next pass in training."""
        self._held = (held_M, average_D)

    def forward(
        self, features: Mapping[str, Feature], masks: Masks | None = None
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Features by modality to the mean logits, those of the members, and the gates [N, D_1 + ... + D_M]."""
        hidden, there = {}, {}
        for name, member in self.members.items():
            mask = None if masks is None else masks.get(name)
            found = (member(features[name]) if mask is None else member(features[name], mask)).hidden
            there[name] = found.new_ones(len(found), 1) if mask is None else mask.any(1, keepdim=True).to(found.dtype)
            hidden[name] = found * there[name]
        inner = self.squeeze(torch.cat(list(hidden.values()), 1)).relu()
        gates = {name: layer(inner).sigmoid() for name, layer in self.excite.items()}
        used = dict(gates)
        if self.training and self._held is not None:
            held_M, average_D = self._held
            averages = average_D.split(self.widths)
            for index, name in enumerate(gates):
                used[name] = torch.where(held_M[index], averages[index].to(gates[name].dtype), gates[name])
        logits = {}
        for name, member in self.members.items():
            head: Any = member.head
            logits[name] = head(hidden[name] * used[name]) * there[name]
        votes_N1 = torch.stack(list(there.values())).sum(0).clamp(min=1)
        return torch.stack(list(logits.values())).sum(0) / votes_N1, logits, torch.cat(list(gates.values()), 1)


def _width(name: str, member: nn.Module) -> int:
    width = getattr(getattr(member, "head", None), "in_features", None)
    if not isinstance(width, int):
        raise UsageError(
            f"modulation: greedy gates the input of a guide's linear layer `head`; the guide of {name} has none"
        )
    return width


class GreedyNet(MultimodalNet):
    """Encoders with a `GatedEnsemble` in the place of fusion and head; the hidden output is the gates."""

    def fuse(self, features: Mapping[str, Feature], masks: Masks | None = None) -> HeadOutput:
        """The mean prediction, with those of the branches."""
        logits, members, gates = self.fusion(features) if masks is None else self.fusion(features, masks)
        return HeadOutput(self.head(logits), gates, members=members)


class Greedy(Strategy):
    """Holds the gates of the branch that learns fastest by the bypass, so that it learns from its own modality.

    Args:
        encoders: by modality.
        fusion: of the network, which `greedy_net` made.
        task: a classification.
        epsilon: difference of learning speeds above which gates are held.
        window: steps for which they are held.
        start: number of first epochs in which none are held. `end_epoch` counts epochs.
        reduce: sums a vector over workers.
    """

    adjusts = True

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        fusion: GatedEnsemble,
        *,
        task: Task,
        epsilon: float = 0.01,
        window: int = 5,
        start: int = 1,
        reduce: Reduce = SINGLE_WORKER,
    ) -> None:
        super().__init__(task=task, reduce=reduce)
        self._fusion, self._names = (fusion,), tuple(fusion.members)
        self._epsilon, self._window, self._start = epsilon, window, start
        shared = list(fusion.squeeze.parameters())
        self._bypass_M = [[*shared, *fusion.excite[name].parameters()] for name in self._names]
        self._main_M = [[*encoders[name].parameters(), *fusion.members[name].parameters()] for name in self._names]
        m = len(self._names)
        self.register_buffer("average_D", torch.zeros(sum(fusion.widths), dtype=torch.float64))
        self.register_buffer("averaged", torch.zeros((), dtype=torch.float64))
        self.register_buffer("speed_2M", torch.zeros(2, m, dtype=torch.float64))
        self.register_buffer("held_M", torch.zeros(m, dtype=torch.bool))
        self.register_buffer("left", torch.zeros((), dtype=torch.int64))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))

    average_D: Tensor
    averaged: Tensor
    speed_2M: Tensor
    held_M: Tensor
    left: Tensor
    epoch: Tensor

    def transform(
        self, features: dict[str, Feature], batch: Batch, totals: Totals | None = None
    ) -> tuple[dict[str, Feature], Memo]:
        """Tells the network which gates are held; the features stay as they are."""
        # Copies: `combine` moves the averages before the backward pass.
        self._fusion[0].hold(self.held_M.clone(), self.average_D.clone())
        return features, None

    def sums(self, head: HeadOutput, batch: Batch, memo: Memo) -> Tensor:
        """[losses of the branches M K | gates D | samples that have the modality M]."""
        losses, gates, counts = [], [], []
        widths = self._fusion[0].widths
        for (name, logits), of_one in zip(members_of(head).items(), head.hidden.detach().split(widths, 1), strict=True):
            counted = batch.having(name)
            w_N = counted.sample_weights()
            losses.append(self.task.sums(in_precision(logits), counted))
            gates.append((torch.where(w_N[:, None] > 0, of_one.double(), 0.0) * w_N[:, None]).sum(0))
            counts.append(w_N.sum())
        return torch.cat([*losses, *gates, torch.stack(counts)])

    def combine(self, task_sums: Tensor, own_sums: Tensor, memo: Memo) -> Tensor:
        """The losses of the branches in the place of that of their mean; takes the gates into their averages."""
        m, k = len(self._names), self.task.n_sums
        losses_M = losses_of(self.task, own_sums[: m * k].reshape(m, k))
        if self.training and torch.is_grad_enabled():
            counts = zip(own_sums.detach()[-m:], self._fusion[0].widths, strict=True)
            count_D = torch.cat([count.expand(width) for count, width in counts])
            mean_D = own_sums.detach()[m * k : -m] / count_D.clamp(min=1)
            moved_D = (mean_D + self.average_D * self.averaged) / (self.averaged + 1)
            self.average_D.copy_(torch.where(count_D > 0, moved_D, self.average_D))
            self.averaged += 1
        self.diagnostics = {"guide_loss": losses_M.detach(), "held": self.held_M.double(), "speed": self._speeds()}
        return losses_M.sum() - self.task.combine(task_sums)

    def memory(self) -> list[Tensor]:
        """The averages of the gates."""
        return [self.average_D, self.averaged]

    def _speeds(self) -> Tensor:
        """s [M]; 0 before the first step."""
        bypass_M, main_M = self.speed_2M
        return torch.log10(bypass_M / main_M).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

    @torch.no_grad()
    def adjust_gradients(self, memo: Memo) -> None:
        """Measures the speeds, and decides whose gates are held next; the gradients stay as they are."""
        holding = self.left > 0
        rate_2M = torch.stack(
            [torch.stack([_rate(own) for own in groups]) for groups in (self._bypass_M, self._main_M)]
        )
        counts = ~holding & rate_2M.isfinite().all()
        self.speed_2M.add_(torch.where(counts, rate_2M, 0.0))
        speed_M = self._speeds()
        fastest, highest = speed_M.argmax(), speed_M.max()
        others = (speed_M.sum() - highest) / (len(speed_M) - 1)
        begins = counts & (highest - others > self._epsilon) & (self.epoch >= self._start)
        left = torch.where(begins, self._window, (self.left - 1).clamp(min=0))
        chosen_M = torch.arange(len(speed_M), device=speed_M.device) == fastest
        self.held_M.copy_(torch.where(begins, chosen_M, self.held_M & (left > 0)))
        self.left.copy_(left)

    def end_epoch(self, train: Mapping[str, float], valid: Mapping[str, float], observed: Tensor) -> None:
        """Counts the epoch."""
        self.epoch += 1


def _rate(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Sum of the squared gradients over that of the squared weights."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    squares = _square(parameters)
    return (_square(gradients) if gradients else torch.zeros_like(squares)) / squares.clamp(min=1e-300)


def _square(tensors: Sequence[Tensor]) -> Tensor:
    """Sum of all squares, in double precision."""
    # One operation for all, where a GPU would start three for each.
    return torch.stack(torch._foreach_norm(list(tensors), 2, torch.float64)).square().sum()


def greedy_net(net: MultimodalNet, guides: Mapping[str, nn.Module], options: GreedyOptions) -> MultimodalNet:
    """The encoders of a network with a `GatedEnsemble` of their guides instead of its fusion; the head is the identity."""
    encoders = {name: net.encoders[name] for name in guides}
    return GreedyNet(encoders, GatedEnsemble(guides, options.greedy_ratio), nn.Identity(), dict(net.inputs.items()))


def _build(given: Materials[GreedyOptions]) -> Strategy:
    assert isinstance(given.net.fusion, GatedEnsemble)
    return Greedy(
        dict(given.net.encoders.items()),
        given.net.fusion,
        task=given.task,
        epsilon=given.options.greedy_epsilon,
        window=given.options.greedy_window,
        start=given.options.greedy_start,
        reduce=given.reduce,
    )


RECIPE = {"optim": "SGD", "lr": 0.1, "cls_lr": 0.1, "clip": 0.0, "batch_size": 8}
STRATEGIES.register("greedy")(
    StrategyInfo(build=_build, options=GreedyOptions, tasks=(Classification,), network=greedy_net, recipe=RECIPE)
)
