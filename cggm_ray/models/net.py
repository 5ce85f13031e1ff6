"""A multimodal network: encoders by modality, a fusion and a head."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from cggm_ray.batch import Feature, HeadOutput


class MultimodalNet(nn.Module):
    """Encoders phi_m, fusion Omega and head F: y_hat = F(Omega([phi_m(x_m)])).

    Args:
        encoders: by modality. An encoder may name the part without its input projection `body`.
        fusion: maps the features of all modalities to the input of the head.
        head: the last linear layer or 1x1 convolution.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], fusion: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.fusion = fusion
        self.head = head

    def encode(self, inputs: Mapping[str, Tensor]) -> dict[str, Feature]:
        """Features h_m of every modality."""
        return {name: encoder(inputs[name]) for name, encoder in self.encoders.items()}

    def fuse(self, features: Mapping[str, Feature]) -> HeadOutput:
        """Prediction from the features, with the head's input."""
        hidden = self.fusion(features)
        return HeadOutput(self.head(hidden), hidden)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits of a batch; what inference calls."""
        return self.fuse(self.encode(inputs)).logits

    def bodies(self) -> dict[str, nn.Module]:
        """Encoders without their input projections, the part that the released code modulates."""
        return {name: getattr(encoder, "body", encoder) for name, encoder in self.encoders.items()}
