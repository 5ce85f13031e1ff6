"""Steps of sequences under masks: means, maxima, attention, and sequences of any length brought to a fixed number of steps.

Steps that a mask says are padding reach no result, wherever they stand and however many they are. A sample without any step
has zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cggm_ray.core.arithmetic import in_precision


def there(x_NTF: Tensor, mask: Tensor | None) -> Tensor:
    """Returns which steps are there, bool [N, T], from a mask [N, T] or [N, 1], or from none."""
    if mask is None:
        return x_NTF.new_ones(x_NTF.shape[:2], dtype=torch.bool)
    return mask.expand(x_NTF.shape[:2])


def summary(x_NTF: Tensor, mask: Tensor | None = None) -> Tensor:
    """Returns mean, maximum and standard deviation over the steps that are there, [N, 3 F]."""
    if mask is None:
        mean, largest, square = x_NTF.mean(1), x_NTF.amax(1), x_NTF.var(1, correction=0)
    else:
        gone_NT1 = ~there(x_NTF, mask)[..., None]
        count_N1 = (~gone_NT1).sum(1).clamp(min=1)
        mean = x_NTF.masked_fill(gone_NT1, 0).sum(1) / count_N1
        largest = x_NTF.masked_fill(gone_NT1, torch.finfo(x_NTF.dtype).min).amax(1).masked_fill(gone_NT1.all(1), 0)
        square = (x_NTF - mean[:, None]).masked_fill(gone_NT1, 0).square().sum(1) / count_N1
    # The slope of a square root at 0 is infinite.
    return torch.cat([mean, largest, (square + 1e-6).sqrt() - 1e-3], 1)


def shares(there_NT: Tensor, segments: int) -> Tensor:
    """Returns the share of every step in every segment, [N, segments, T]: the steps that are there are cut in segments of
    equal length.

    The shares of a segment add up to 1, and so a product with a sequence is its mean over the segment. With as many segments
    as steps it is the sequence.
    """
    there_NT = there_NT.float()
    place_N1T = (there_NT.cumsum(1) - there_NT)[:, None]
    length_N11 = there_NT.sum(1).clamp(min=1)[:, None, None]
    segment_S1 = torch.arange(segments, device=there_NT.device, dtype=torch.float32)[:, None]
    start, end = segment_S1 * length_N11 / segments, (segment_S1 + 1) * length_N11 / segments
    overlap = torch.minimum(end, place_N1T + 1) - torch.maximum(start, place_N1T)
    return overlap.clamp(min=0) * there_NT[:, None] * segments / length_N11


class AttentionPooling(nn.Module):
    """The mean over the steps that are there, weighted by a learned score: features [N, T, D] to [N, D].

    It begins as the plain mean, and is the identity where there is one step.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, h_NTD: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features [N, T, D], and a mask [N, T] or [N, 1], to [N, D]; zeros for a sample without any step."""
        there_NT1 = there(h_NTD, mask)[..., None]
        score_NT1 = in_precision(self.score(h_NTD)).masked_fill(~there_NT1, torch.finfo(torch.float32).min)
        weight_NT1 = score_NT1.softmax(1).to(h_NTD.dtype).masked_fill(~there_NT1, 0)
        return (weight_NT1 * h_NTD.masked_fill(~there_NT1, 0)).sum(1)
