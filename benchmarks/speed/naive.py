"""The yardstick: a training step on sequences, written plainly and in the order of the released code.

Time-major tensors, attention by separate products with its weights averaged for the caller, whole last layers, a second
backward pass for the guides, gradients scaled parameter by parameter, scores fetched from the device one by one. Nothing of
the package is used. `benchmarks/speed/step.py` times it against the package's step; `tests/parity/test_naive.py` holds it to
the recorded numbers, so that what is timed is the right computation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class NaiveConfig:
    """Sizes and settings, by default those of the released code for MOSI."""

    features: Sequence[int] = (300, 74, 47)
    outputs: int = 1
    width: int = 40
    heads: int = 5
    layers: int = 5
    guide_layers: int = 2
    attn_dropout: float = 0.15
    relu_dropout: float = 0.15
    embed_dropout: float = 0.2
    res_dropout: float = 0.1
    out_dropout: float = 0.1
    rho: float = 1.3
    lam: float = 0.2
    clip: float = 0.8
    lr: float = 1e-3
    guide_lr: float = 5e-4
    optimizer: type[torch.optim.Optimizer] = field(default=torch.optim.Adam)


class Attention(nn.Module):
    """Multi-head self-attention, [T, B, D] to [T, B, D] and the weights averaged over heads."""

    def __init__(self, config: NaiveConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.attn_dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * config.width, config.width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * config.width))
        self.out_proj = nn.Linear(config.width, config.width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps [T, B, D] to [T, B, D] and [B, T, T]."""
        steps, batch, width = x.shape
        q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        q = q * (width // self.heads) ** -0.5
        q, k, v = (
            part.contiguous().view(steps, batch * self.heads, width // self.heads).transpose(0, 1) for part in (q, k, v)
        )
        weights = F.softmax(torch.bmm(q, k.transpose(1, 2)).float(), dim=-1).type_as(q)
        weights = F.dropout(weights, self.dropout, self.training)
        out = torch.bmm(weights, v).transpose(0, 1).contiguous().view(steps, batch, width)
        return self.out_proj(out), weights.view(batch, self.heads, steps, steps).sum(1) / self.heads


class Layer(nn.Module):
    """Pre-norm attention and feed-forward, [T, B, D] to [T, B, D]."""

    def __init__(self, config: NaiveConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.fc1 = nn.Linear(config.width, 4 * config.width)
        self.fc2 = nn.Linear(4 * config.width, config.width)
        self.layer_norms = nn.ModuleList(nn.LayerNorm(config.width) for _ in range(2))
        self.relu_dropout, self.res_dropout = config.relu_dropout, config.res_dropout

    def forward(self, x: Tensor) -> Tensor:
        """Maps [T, B, D] to [T, B, D]."""
        residual = x
        x, _ = self.self_attn(self.layer_norms[0](x))
        x = residual + F.dropout(x, self.res_dropout, self.training)
        residual = x
        x = F.dropout(F.relu(self.fc1(self.layer_norms[1](x))), self.relu_dropout, self.training)
        return residual + F.dropout(self.fc2(x), self.res_dropout, self.training)


class Encoder(nn.Module):
    """Scaled embedding, sinusoidal positions and layers, [T, B, D] to [T, B, D]."""

    def __init__(self, config: NaiveConfig, layers: int) -> None:
        super().__init__()
        self.width, self.embed_dropout = config.width, config.embed_dropout
        self.layers = nn.ModuleList(Layer(config) for _ in range(layers))
        self.layer_norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [T, B, D] to [T, B, D]."""
        out = math.sqrt(self.width) * x + self.positions(x.transpose(0, 1)[:, :, 0]).transpose(0, 1)
        out = F.dropout(out, self.embed_dropout, self.training)
        for layer in self.layers:
            out = layer(out)
        return self.layer_norm(out)

    def positions(self, first_channel: Tensor) -> Tensor:
        """Maps [B, T] to the rows [B, T, D] of the table, which is made anew in every call."""
        batch, steps = first_channel.shape
        half = self.width // 2
        rates = torch.exp(torch.arange(half, dtype=torch.float) * -(math.log(10000) / (half - 1)))
        angles = torch.arange(steps + 1, dtype=torch.float)[:, None] * rates[None, :]
        table = torch.cat([torch.sin(angles), torch.cos(angles)], 1).to(first_channel)
        if self.width % 2:
            table = torch.cat([table, torch.zeros(steps + 1, 1).to(table)], 1)
        table[0] = 0
        rows = torch.arange(1, steps + 1, device=first_channel.device).expand(batch, steps) * (first_channel != 0)
        return table.index_select(0, rows.reshape(-1)).view(batch, steps, -1).detach()


class NaiveNet(nn.Module):
    """The fused model: inputs [B, T, features] by modality to predictions [B, C] and the features [T, B, D]."""

    def __init__(self, config: NaiveConfig) -> None:
        super().__init__()
        self.proj = nn.ModuleList(nn.Conv1d(width, config.width, kernel_size=1) for width in config.features)
        self.encoders = nn.ModuleList(Encoder(config, config.layers) for _ in config.features)
        self.fusion = Encoder(config, config.layers - 2)
        self.proj1 = nn.Linear(config.width, config.width)
        self.proj2 = nn.Linear(config.width, config.width)
        self.out_layer = nn.Linear(config.width, config.outputs)
        self.out_dropout = config.out_dropout

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Returns the predictions, and detached copies of the features."""
        features = []
        for x, proj, encoder in zip(inputs, self.proj, self.encoders, strict=True):
            features.append(encoder(proj(x.transpose(1, 2)).permute(2, 0, 1)))
        z = self.fusion(torch.cat(features, 0))[0]
        hidden = self.proj2(F.dropout(F.relu(self.proj1(z)), self.out_dropout, self.training)) + z
        return self.out_layer(hidden), [h.clone().detach() for h in features]


class NaiveGuide(nn.Module):
    """The guide of one modality: features [T, B, D] to predictions [B, C]."""

    def __init__(self, config: NaiveConfig) -> None:
        super().__init__()
        self.bone = Encoder(config, config.guide_layers)
        self.proj1 = nn.Linear(config.width, config.width)
        self.out_layer = nn.Linear(config.width, config.outputs)

    def forward(self, feature: Tensor) -> Tensor:
        """Maps [T, B, D] to [B, C]."""
        hidden = self.bone(feature)[0]
        return self.out_layer(F.relu(self.proj1(self.proj1(hidden))))


class NaiveStep:
    """The whole training step.

    Args:
        config: of the model.
        cggm: with guides and modulation; without, joint training.

    Attributes:
        seen: quantities of the last step by the names of the recording.
    """

    def __init__(self, config: NaiveConfig, *, cggm: bool = True) -> None:
        self.config, self.cggm = config, cggm
        self.net = NaiveNet(config)
        self.classifers = nn.ModuleList(NaiveGuide(config) for _ in config.features) if cggm else nn.ModuleList()
        self.optimizer = config.optimizer(self.net.parameters(), lr=config.lr)
        self.guide_optimizer = config.optimizer(self.classifers.parameters(), lr=config.guide_lr) if cggm else None
        self.criterion = nn.L1Loss() if config.outputs == 1 else nn.CrossEntropyLoss()
        self.scores = [0.0] * len(config.features)
        self.l_gm: Tensor | None = None
        self.seen: dict[str, float | list[float]] = {}

    def __call__(self, inputs: Sequence[Tensor], target: Tensor) -> float:
        """One step on inputs [B, T, features] and target [B, 1] or [B]; returns the task loss."""
        self.optimizer.zero_grad()
        predictions, features = self.net(inputs)
        task_loss = self.criterion(predictions, target)
        loss = task_loss if self.l_gm is None else task_loss + self.config.lam * self.l_gm
        loss.backward()
        self.seen = {"loss_task": task_loss.item(), "loss_total": loss.item()}
        if self.guide_optimizer is not None:
            self._modulate(features, target)
            self.guide_optimizer.step()
        total = torch.nn.utils.clip_grad_norm_(list(self.net.parameters()), self.config.clip, foreach=False)
        self.seen["gnorm_total_clip"] = total.item()
        self.optimizer.step()
        return float(self.seen["loss_task"])

    def _modulate(self, features: Sequence[Tensor], target: Tensor) -> None:
        assert self.guide_optimizer is not None
        self.guide_optimizer.zero_grad()
        logits = [guide(feature) for guide, feature in zip(self.classifers, features, strict=True)]
        guide_loss = sum(self.criterion(each, target) for each in logits)
        assert isinstance(guide_loss, Tensor)
        guide_loss.backward()
        head = self.net.out_layer.weight.clone()
        cosines = [
            F.cosine_similarity(guide.out_layer.weight.clone().view(-1), head.view(-1), dim=0)
            for guide in self.classifers
        ]
        scores = [self._accuracy(each, target) for each in logits]
        changes = [new - old for new, old in zip(scores, self.scores, strict=True)]
        total = sum(changes) + 1e-8
        coefficients = [(total - change) / total for change in changes]
        self.scores = scores
        steering = sum(c * cosine for c, cosine in zip(coefficients, cosines, strict=True))
        self.l_gm = (sum(abs(c) for c in coefficients) - steering) / len(coefficients)
        for name, parameter in self.net.named_parameters():
            for index, coefficient in enumerate(coefficients):
                if f"encoders.{index}." in name and parameter.grad is not None:
                    parameter.grad *= coefficient * self.config.rho
        self.seen |= {
            "cls_loss_sum": guide_loss.item(),
            "acc2": scores,
            "coeff": coefficients,
            "cos": [cosine.item() for cosine in cosines],
            "l_gm": self.l_gm.item(),
        }

    def _accuracy(self, logits: Tensor, target: Tensor) -> float:
        if self.config.outputs == 1:
            return ((logits > 0) == (target > 0)).double().mean().item()
        return (logits.argmax(1) == target).double().mean().item()
