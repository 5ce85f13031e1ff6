"""MLA: Zhang et al., "Multimodal Representation Learning by Alternating Unimodal Adaptation" (CVPR 2024, arXiv 2311.10707).

The modalities share a head, a linear layer, and every batch trains them in turns: turn m moves encoder m and the head by the
loss of modality m alone, with an optimizer step of its own. So that the head does not lose what it learned from the others, its
gradient G [C, D] is changed by a matrix P [D, D], the identity at first, which learns from the mean r [D] of the vectors that
modality m hands to the head in that batch:

- `projection`: G P, where P <- P - k k^T / (a + r^T k) with k = P r after every turn (recursive least squares, as in
  orthogonal weight modification): directions in which the turns before had features are damped;
- `released`: first P <- P - (k k^T) / (a + k r^T), a quotient of the entries, and P <- P / |P|_F, then G P^T; nothing in the
  very first turn. In the released code this is written for parameters named 'module.weight', which the layer does not have,
  so that the change is not made at all;
- `benchmark`: as `released`, but G + G P^T, as in BalanceBenchmark, where the change is made;
- `off`: G, which is what the released code does where the name does not match.

a is .1 ** (1 + t), with t the share of the epoch that is over (0 in the first epoch, whose length is not known).

The prediction is the sum of the modalities' logits, weighted for each sample by exp(-entropy of the modality's prediction),
made to sum to 1 over the modalities that it has. The released code takes one weight for all samples of a test batch, from
a softmax over the batch; a prediction that depends on the other samples is not offered.

What a modality hands to the head is what its guide hands to its own last layer; the run's fusion and head are left out. Of the
paper the abstract and public reviews were at hand (openreview.net, JFEFORc7fP). They call the rule for P its equation 3, and a
case of orthogonal weight modification with a single layer, which is `projection`. They also say that r is the mean over the
whole dataset there; here, as in the released code, it is that of the batch. BalanceBenchmark's matrix and turns are checked by
recorded numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from cggm_ray.config.fields import one_of, option
from cggm_ray.core.batch import Batch, Feature, HeadOutput
from cggm_ray.core.errors import UsageError
from cggm_ray.core.reduction import SINGLE_WORKER, Reduce
from cggm_ray.models.ensemble import members_of
from cggm_ray.models.net import Masks, MultimodalNet
from cggm_ray.strategies.base import Memo, Strategy
from cggm_ray.strategies.registry import STRATEGIES, Materials, StrategyInfo, StrategyOptions
from cggm_ray.tasks.base import Task
from cggm_ray.tasks.classification import Classification

GRADIENTS = ("projection", "released", "benchmark", "off")


@dataclass(frozen=True, kw_only=True)
class MLAOptions(StrategyOptions):
    """Flags of MLA."""

    mla_gradient: str = option(
        "projection", "mla: how the gradient of the shared head is changed: projection, released, benchmark, off"
    )

    def __post_init__(self) -> None:
        one_of(self, "mla_gradient", GRADIENTS)


class AlternatingNet(MultimodalNet):
    """Encoders and guides whose vectors go to one head; their predictions are weighted by their certainty."""

    def fuse(self, features: Mapping[str, Feature], masks: Masks | None = None) -> HeadOutput:
        """Logits of the modalities and of all; the hidden vector is that of all modalities, one after the other."""
        members: dict[str, Tensor] = {}
        hidden, has = [], []
        for name, guide in cast(nn.ModuleDict, self.fusion).items():
            mask = None if masks is None else masks.get(name)
            h_ND = guide(features[name]).hidden if mask is None else guide(features[name], mask).hidden
            there_N1 = h_ND.new_ones(len(h_ND), 1, dtype=torch.bool) if mask is None else mask.any(1, keepdim=True)
            members[name] = self.head(h_ND).masked_fill(~there_N1, 0)
            hidden.append(h_ND)
            has.append(there_N1[:, 0])
        logits_MNC, has_MN = torch.stack(list(members.values())), torch.stack(has)
        weight_MN = certainty(logits_MNC.detach(), has_MN).to(logits_MNC.dtype)
        return HeadOutput((weight_MN[..., None] * logits_MNC).sum(0), torch.cat(hidden, 1), members=members)


def certainty(logits_MNC: Tensor, has_MN: Tensor) -> Tensor:
    """Weights [M, N] that sum to 1 over the modalities that a sample has; 0 where it has none."""
    log_p = logits_MNC.log_softmax(2)
    entropy_MN = -(log_p.exp() * log_p).sum(2)
    # exp(-entropy) is a softmax over modalities. A value in place of minus infinity keeps samples without any of them finite.
    return (-entropy_MN).masked_fill(~has_MN, -1e4).softmax(0) * has_MN


class MLA(Strategy):
    """Trains the modalities in turns by one shared head, whose gradient spares what it learned before.

    Args:
        net: with encoders and guides by modality and the shared head.
        task: a classification.
        gradient: how that of the head is changed: 'projection', 'released', 'benchmark' or 'off'.
        reduce: sums a vector over workers.
    """

    adjusts = True
    # One for every modality, of which there are two at least.
    turns = 2

    def __init__(
        self, net: AlternatingNet, *, task: Task, gradient: str = "projection", reduce: Reduce = SINGLE_WORKER
    ) -> None:
        super().__init__(task=task, reduce=reduce)
        guides = cast(nn.ModuleDict, net.fusion)
        self._names, self._gradient = tuple(guides), gradient
        # In tuples: their parameters are the network's, and not registered a second time.
        self._learners = {name: (net.encoders[name], guides[name]) for name in self._names}
        self._head = (cast(nn.Linear, net.head),)
        width = self._head[0].in_features
        self.turns = len(self._names)
        self.register_buffer("P_DD", torch.eye(width, dtype=torch.float64))
        # What the gradient of the running turn is multiplied by.
        self.register_buffer("change_DD", torch.eye(width, dtype=torch.float64))
        self.register_buffer("loss_M", torch.zeros(self.turns, dtype=torch.float64))
        # Turns so far; of the running epoch; and of the epoch before, 0 where there is none.
        self.register_buffer("taken", torch.zeros(3, dtype=torch.float64))

    P_DD: Tensor
    change_DD: Tensor
    loss_M: Tensor
    taken: Tensor

    def sums(self, head: HeadOutput, batch: Batch, memo: Memo) -> Tensor:
        """Of the modality whose turn it is [loss K | hidden vector D | samples that have it]."""
        name = self._names[self.turn]
        counted = batch.having(name)
        w_N = counted.sample_weights()
        width = len(self.P_DD)
        h_ND = head.hidden.detach()[:, self.turn * width : (self.turn + 1) * width].double()
        return torch.cat([self.task.sums(members_of(head)[name], counted), h_ND.T @ w_N, w_N.sum()[None]])

    def combine(self, task_sums: Tensor, own_sums: Tensor, memo: Memo) -> Tensor:
        """The loss of the modality minus the task loss; updates the matrix."""
        k = self.task.n_sums
        count = own_sums[-1].detach()
        seen = count > 0
        loss = torch.where(seen, self.task.combine(torch.where(seen, own_sums[:k], 1.0)), 0.0)
        self._learn(own_sums[k:-1].detach() / count.clamp(min=1))
        self.loss_M[self.turn] = loss.detach()
        self.diagnostics = {"guide_loss": self.loss_M.clone()}
        return loss - self.task.combine(task_sums)

    def memory(self) -> list[Tensor]:
        """The matrices and the number of turns."""
        return [self.P_DD, self.change_DD, self.loss_M, self.taken]

    def adjust_gradients(self, memo: Memo) -> None:
        """Changes the gradient of the head, and takes those of the other modalities away, with the optimizer's memory."""
        for number, modules in enumerate(self._learners.values()):
            if number != self.turn:
                for module in modules:
                    module.zero_grad(set_to_none=True)
        grad_CD = self._head[0].weight.grad
        if grad_CD is not None and self._gradient != "off":
            grad_CD.copy_(grad_CD.double() @ self.change_DD.T)

    def end_epoch(self, train: Mapping[str, float], valid: Mapping[str, float], observed: Tensor) -> None:
        """Stores the number of steps of the epoch."""
        self.taken[2] = self.taken[1]
        self.taken[1] = 0

    @torch.no_grad()
    def _learn(self, r_D: Tensor) -> None:
        """Takes the change of this turn, and what the matrix learns from the mean vector of its modality."""
        over, length = self.taken[1] // self.turns * self.turns, self.taken[2]
        damping = 0.1 ** (1 + torch.where(length > 0, over / length.clamp(min=1), 0.0))
        k_D = self.P_DD @ r_D
        if self._gradient == "projection":
            self.change_DD.copy_(self.P_DD)
            self.P_DD.sub_(torch.outer(k_D, k_D) / (damping + r_D @ k_D))
        else:
            P_DD = self.P_DD - torch.outer(k_D, k_D) / (damping + torch.outer(k_D, r_D))
            is_first = self.taken[0] == 0
            self.P_DD.copy_(torch.where(is_first, self.P_DD, P_DD / P_DD.norm()))
            eye_DD = torch.eye(len(P_DD), dtype=P_DD.dtype, device=P_DD.device)
            added = eye_DD if self._gradient == "benchmark" else 0.0
            self.change_DD.copy_(torch.where(is_first, eye_DD, self.P_DD + added))
        self.taken[:2] += 1


def _network(net: MultimodalNet, guides: Mapping[str, nn.Module], options: MLAOptions) -> MultimodalNet:
    """Encoders, guides without their last layer, and the last layer of the first guide as the head of all.

    Raises:
        UsageError: the guides' last layers are not linear, or of several widths.
    """
    heads = {name: getattr(guide, "head", None) for name, guide in guides.items()}
    shapes = {name: tuple(head.weight.shape) for name, head in heads.items() if isinstance(head, nn.Linear)}
    if len(shapes) < len(heads) or len(set(shapes.values())) > 1:
        raise UsageError(
            f"modulation: mla needs guides that end in linear layers named head, of one width; found {shapes or 'none'}"
        )
    for guide in guides.values():
        guide.head = nn.Identity()
    encoders = {name: net.encoders[name] for name in guides}
    head = next(iter(heads.values()))
    assert isinstance(head, nn.Linear)
    return AlternatingNet(encoders, nn.ModuleDict(guides), head, dict(net.inputs.items()))


def _build(given: Materials[MLAOptions]) -> Strategy:
    return MLA(
        cast(AlternatingNet, given.net), task=given.task, gradient=given.options.mla_gradient, reduce=given.reduce
    )


STRATEGIES.register("mla")(StrategyInfo(build=_build, options=MLAOptions, tasks=(Classification,), network=_network))
