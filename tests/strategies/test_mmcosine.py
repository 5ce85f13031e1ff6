"""MMCosine: logits by hand, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from strategy_cases import LinearGuide, linear_inputs, linear_net
from torch import nn

from cggm_ray import UsageError
from cggm_ray.strategies.mmcosine import CosineMember, MMCosineOptions
from cggm_ray.strategies.registry import STRATEGIES


def test_logits() -> None:
    plain = linear_net()
    guides: dict[str, nn.Module] = {name: LinearGuide(4, 3).double() for name in plain.encoders}
    inputs, _ = linear_inputs(plain)
    features = plain.encode(inputs)
    there = torch.tensor([True, False, True, True, False, True, True])
    net = STRATEGIES.get("mmcosine").network_of(plain, guides, MMCosineOptions(mmcosine_scale=7.0))
    found = net.fuse(features, {"a": there[:, None]}).logits
    for i in range(7):
        want = np.zeros(3)
        for name in "ab" if there[i] else "b":
            h, w = features[name][i].detach().numpy(), guides[name].head.weight.detach().numpy()
            want += [7.0 * (w[c] @ h) / np.linalg.norm(w[c]) / np.linalg.norm(h) for c in range(3)]
        np.testing.assert_allclose(found[i].detach(), want, rtol=1e-10)
    assert float(found.detach().abs().max()) <= 14.0
    assert not [name for name, _ in net.named_parameters() if name.endswith("bias") and "fusion" in name]


def test_guides_without_a_linear_layer_are_refused() -> None:
    guide = nn.Module()
    guide.head = nn.Conv2d(4, 3, 1)
    with pytest.raises(UsageError, match="mmcosine needs guides that end in a linear layer named head; found Conv2d"):
        CosineMember(guide, 10.0)
