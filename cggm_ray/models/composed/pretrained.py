"""A trained model with an encoder of sequences behind it, both of which are trained."""

from __future__ import annotations

from torch import Tensor, nn

from cggm_ray.models.net import zeroed


class PretrainedEncoder(nn.Module):
    """The states of a model, encoded as any sequence is.

    Args:
        model: maps inputs, and masks or None, to states [N, T, F]; its parameters have a learning rate of their own.
        layers: encoder of the states.
    """

    def __init__(self, model: nn.Module, layers: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.layers = layers

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Inputs [N, ...] to features [N, T, D]."""
        states_NTF = self.model(x, mask)
        out: Tensor = self.layers(states_NTF) if mask is None else self.layers(zeroed(states_NTF, mask), mask)
        return out
