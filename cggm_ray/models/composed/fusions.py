"""Fusions that see one vector a modality: `concat`, `sum`, `late`, `gated`, `film` and `bilinear`.

A modality that a sample lacks, and one whose features a strategy sets to zero, adds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cggm_ray.core.arithmetic import in_precision
from cggm_ray.models.composed.registry import FUSIONS, FusionInfo, FusionPlan
from cggm_ray.models.composed.steps import AttentionPooling, there
from cggm_ray.models.net import Masks, mask_of


class VectorFusion(nn.Module):
    """Base: brings the features of every modality to a vector [N, D], and says which samples have it."""

    def __init__(self, plan: FusionPlan) -> None:
        super().__init__()
        self.pooling = nn.ModuleDict({name: AttentionPooling(plan.width) for name in plan.modalities})

    def vectors(self, features: Mapping[str, Tensor], masks: Masks | None) -> tuple[list[Tensor], Tensor]:
        """Vectors [N, D] by modality, and bool [N, M]."""
        vectors, has = [], []
        for name, pooling in self.pooling.items():
            mask = None if masks is None else mask_of(features[name], masks.get(name))
            vectors.append(pooling(features[name], mask))
            has.append(there(features[name], mask).any(1))
        return vectors, torch.stack(has, 1)


class Concatenation(VectorFusion):
    """One linear layer over all vectors, one beside the other.

    With the head it is one linear layer in two factors, and D of the head's inputs are as many as those of the guides.
    """

    def __init__(self, plan: FusionPlan) -> None:
        super().__init__(plan)
        self.linear = nn.Linear(plan.width * len(plan.modalities), plan.width, bias=False)

    def forward(self, features: Mapping[str, Tensor], masks: Masks | None = None) -> Tensor:
        """Features by modality to [N, D]."""
        vectors, _ = self.vectors(features, masks)
        hidden_ND: Tensor = self.linear(torch.cat(vectors, 1))
        return hidden_ND


class Sum(VectorFusion):
    """The sum of a linear layer of each modality; with the head it is the sum of what the modalities say each by itself."""

    def __init__(self, plan: FusionPlan) -> None:
        super().__init__(plan)
        self.own = nn.ModuleDict({name: nn.Linear(plan.width, plan.width, bias=False) for name in plan.modalities})

    def forward(self, features: Mapping[str, Tensor], masks: Masks | None = None) -> Tensor:
        """Features by modality to [N, D]."""
        vectors, _ = self.vectors(features, masks)
        own = [linear(vector) for linear, vector in zip(self.own.values(), vectors, strict=True)]
        return torch.stack(own).sum(0)


class FiLM(VectorFusion):
    """Feature-wise linear modulation (Perez et al. 2018): the last modality, scaled and shifted by each of the others.

    Scales are 1 plus a linear function without bias, so a modality that is not there changes nothing.
    """

    def __init__(self, plan: FusionPlan) -> None:
        super().__init__(plan)
        *conditions, _ = plan.modalities
        width = plan.width
        self.scale_and_shift = nn.ModuleDict({name: nn.Linear(width, 2 * width, bias=False) for name in conditions})
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, features: Mapping[str, Tensor], masks: Masks | None = None) -> Tensor:
        """Features by modality to [N, D]."""
        (*conditions, hidden), _ = self.vectors(features, masks)
        for linear, vector in zip(self.scale_and_shift.values(), conditions, strict=True):
            scale, shift = linear(vector).chunk(2, 1)
            hidden = (1 + scale) * hidden + shift
        fused_ND: Tensor = self.out(hidden)
        return fused_ND


class Late(VectorFusion):
    """The mean of what the modalities say each by itself, over those that a sample has.

    Each has a linear layer of its own in front of the common head. The head is linear, so the mean of its inputs gives the
    mean of the predictions.
    """

    def __init__(self, plan: FusionPlan) -> None:
        super().__init__(plan)
        self.own = nn.ModuleDict({name: nn.Linear(plan.width, plan.width, bias=False) for name in plan.modalities})

    def forward(self, features: Mapping[str, Tensor], masks: Masks | None = None) -> Tensor:
        """Features by modality to [N, D]."""
        vectors, has_NM = self.vectors(features, masks)
        own = [linear(vector) for linear, vector in zip(self.own.values(), vectors, strict=True)]
        return torch.stack(own).sum(0) / has_NM.sum(1, keepdim=True).clamp(min=1)


class Gated(VectorFusion):
    """Gated multimodal units (Arevalo et al. 2017), with gates that add up to 1 over the modalities that a sample has.

    Every feature of a modality has a gate of its own, which all modalities decide together.
    """

    def __init__(self, plan: FusionPlan) -> None:
        super().__init__(plan)
        m, width = len(plan.modalities), plan.width
        self.own = nn.ModuleDict({name: nn.Linear(width, width, bias=False) for name in plan.modalities})
        self.gates = nn.Linear(m * width, m * width)

    def forward(self, features: Mapping[str, Tensor], masks: Masks | None = None) -> Tensor:
        """Features by modality to [N, D]."""
        vectors, has_NM = self.vectors(features, masks)
        own_NMD = torch.stack([linear(v) for linear, v in zip(self.own.values(), vectors, strict=True)], 1)
        score_NMD = in_precision(self.gates(torch.cat(vectors, 1)).reshape(own_NMD.shape))
        gate_NMD = score_NMD.masked_fill(~has_NM[..., None], torch.finfo(torch.float32).min).softmax(1)
        return (gate_NMD.to(own_NMD.dtype) * own_NMD).sum(1)


class Bilinear(VectorFusion):
    """Low-rank bilinear pooling (Liu et al. 2018): a product over the modalities in several ranks, and their sum.

    A factor is 1 plus a linear function, so the product holds single modalities as well as all groups of them.
    """

    RANKS = 4

    def __init__(self, plan: FusionPlan) -> None:
        super().__init__(plan)
        self._shape = (self.RANKS, plan.width)
        factors = {name: nn.Linear(plan.width, self.RANKS * plan.width, bias=False) for name in plan.modalities}
        self.factors = nn.ModuleDict(factors)
        self.sum = nn.Linear(self.RANKS * plan.width, plan.width)
        self.norm = nn.LayerNorm(plan.width)

    def forward(self, features: Mapping[str, Tensor], masks: Masks | None = None) -> Tensor:
        """Features by modality to [N, D]."""
        vectors, _ = self.vectors(features, masks)
        product = torch.ones_like(vectors[0][:, :1])
        for factor, vector in zip(self.factors.values(), vectors, strict=True):
            product = product * (1 + factor(vector))
        hidden_ND: Tensor = self.norm(self.sum(product))
        return hidden_ND


FUSIONS.register("concat")(FusionInfo(build=Concatenation))
FUSIONS.register("sum")(FusionInfo(build=Sum))
FUSIONS.register("film")(FusionInfo(build=FiLM))
FUSIONS.register("late")(FusionInfo(build=Late))
FUSIONS.register("gated")(FusionInfo(build=Gated))
FUSIONS.register("bilinear")(FusionInfo(build=Bilinear))
