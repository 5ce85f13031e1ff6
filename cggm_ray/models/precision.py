"""Double precision: what a network rounds then differs in the 16th digit, and not in the 7th.

Two runs that differ only in the number of workers, or of threads, add the same numbers in another order. Networks with batch
normalisation multiply such a difference from step to step. In double precision it stays too small to be seen, so a person can
check that two curves are one.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from cggm_ray.models.net import MultimodalNet


class Double(nn.Module):
    """Takes an input to float64. Integers, such as the tokens of a text, stay what they are."""

    def forward(self, x: Tensor) -> Tensor:
        """Inputs [N, ...] to the same shape."""
        return x.double() if x.is_floating_point() else x


def in_double(net: MultimodalNet, guides: Iterable[nn.Module], modalities: Iterable[str]) -> None:
    """Makes parameters, buffers and inputs of a network float64, and so all that it computes.

    Args:
        net: the network. A module that standardises an input does it in float64 by its buffers.
        guides: of the network.
        modalities: that the network takes.
    """
    for module in (net, *guides):
        module.double()
    net.inputs.update({name: Double() for name in modalities if name not in net.inputs})
