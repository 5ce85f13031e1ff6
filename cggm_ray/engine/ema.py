"""An exponential moving average of the weights, which is validated, tested and kept in place of the trained weights.

`torch.optim.swa_utils.AveragedModel` copies all buffers, and fails on those that grow during a run, such as position tables.
"""

from __future__ import annotations

import copy

import torch

from cggm_ray.models.net import MultimodalNet


class MovingAverage:
    """A copy of a network whose parameters are moving averages of its own; stored buffers are those of the network.

    After n updates the decay is min(decay, (1 + n) / (10 + n)), so that the average forgets the initial weights early.

    Args:
        net: that is trained.
        decay: of an update after many steps, in [0, 1).

    Attributes:
        net: the copy.
        updates: number of updates.
    """

    def __init__(self, net: MultimodalNet, decay: float) -> None:
        self.net = copy.deepcopy(net).requires_grad_(False)
        self.updates = 0
        self._decay = decay

    @torch.no_grad()
    def update(self, trained: MultimodalNet) -> None:
        """Moves the average towards the network, after a step of its optimizer."""
        weight = 1 - min(self._decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.net.parameters()), list(trained.parameters()), weight)
        parameters, values = dict(self.net.named_parameters()), trained.state_dict()
        for name, mine in self.net.state_dict().items():
            if name not in parameters:
                mine.copy_(values[name])
        self.updates += 1
