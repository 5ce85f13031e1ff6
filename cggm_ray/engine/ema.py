"""An exponential moving average of the weights, which is validated, tested and kept in place of the trained weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from cggm_ray.models.net import MultimodalNet


def moving_average(net: MultimodalNet, decay: float) -> AveragedModel:
    """Returns a copy of the network whose weights follow it; buffers are those of the network.

    After n updates the decay is min(decay, (1 + n) / (10 + n)), so that the average forgets the initial weights early.

    Args:
        net: that is trained; nothing of it is compiled yet or under DistributedDataParallel.
        decay: of an update after many steps, in [0, 1).
    """

    def follow(averaged: Sequence[Tensor], current: Sequence[Tensor], updates: Tensor | int) -> None:
        n = int(updates)
        torch._foreach_lerp_(list(averaged), list(current), 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(net, multi_avg_fn=follow)
