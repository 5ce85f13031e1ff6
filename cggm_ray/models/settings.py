"""The section of the configuration for sizes and dropouts of the networks."""

from __future__ import annotations

from dataclasses import dataclass

from cggm_ray.config.fields import at_least, check, option
from cggm_ray.core.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Size and dropouts of the network."""

    network: str | None = option(
        None,
        "network in place of the dataset's own: a name, or my_file.py:build, a function of yours that returns a module with "
        "encode and fuse",
    )
    nlevels: int = option(5, "layers of each encoder; the fusion has two fewer")
    cls_layers: int = option(2, "layers of each guide classifier")
    num_heads: int = option(5, "attention heads")
    proj_dim: int = option(40, "width of encoders, fusion and guides")
    attn_dropout: float = option(0.15, "dropout of the attention weights")
    relu_dropout: float = option(0.15, "dropout inside the feed-forward layers")
    embed_dropout: float = option(0.2, "dropout of the embedded input")
    res_dropout: float = option(0.1, "dropout of the residual branches")
    out_dropout: float = option(0.1, "dropout before the output layer")

    def __post_init__(self) -> None:
        at_least(self, "nlevels", 3)
        for name in ("cls_layers", "num_heads", "proj_dim"):
            at_least(self, name, 1)
        for name in ("attn_dropout", "relu_dropout", "embed_dropout", "res_dropout", "out_dropout"):
            check(0 <= getattr(self, name) < 1, self, name, "a probability in [0, 1)")
        if self.proj_dim % self.num_heads:
            raise UsageError(
                f"num_heads: {self.num_heads} heads do not divide the width proj_dim {self.proj_dim}; expected a divisor"
            )
