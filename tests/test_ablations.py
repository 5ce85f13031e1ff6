"""CGGM's two halves, each alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cggm_ray import CGGM, Classification, HeadOutput
from cggm_ray.config import Config, ModulationConfig

NAMES = ("a", "b", "c")


class Guide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, feature: Tensor) -> HeadOutput:
        return HeadOutput(self.head(feature), feature)


def gradients(
    lam: float, *, magnitude: bool = True, direction: str = "gradient"
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Gradients of encoders and fusion after one step; coefficients; the encoders' gradients by plain backward."""
    torch.manual_seed(2)
    encoders = nn.ModuleDict({name: nn.Linear(5, 4) for name in NAMES}).double()
    hidden, head = nn.Linear(12, 4).double(), nn.Linear(4, 3).double()
    guides = {name: Guide().double() for name in NAMES}
    balance = CGGM(guides, task=Classification(3), lam=lam, direction=direction, magnitude=magnitude)
    inputs = {name: torch.randn(6, 5).double() for name in NAMES}
    target = torch.tensor([0, 1, 2, 0, 1, 2])
    features = balance.modulate({name: encoders[name](inputs[name]) for name in NAMES}, target)
    z = hidden(torch.cat(list(features.values()), 1)).tanh()
    logits = head(z)
    loss = balance.task.loss(logits, target) + balance.loss(logits, z, target)
    loss.backward()
    named = {**dict(encoders.named_parameters()), **dict(hidden.named_parameters(prefix="hidden"))}
    return {name: p.grad for name, p in named.items()}, balance.diagnostics["coefficient"], loss.detach()


def test_magnitude_alone_is_joint_training_times_the_coefficients() -> None:
    joint, _, _ = gradients(0.0, magnitude=False, direction="off")
    scaled, coefficient_M, _ = gradients(0.2, direction="off")
    assert bool((coefficient_M != 1).all())
    for name, grad in joint.items():
        factor = coefficient_M[NAMES.index(name[0])] if name[0] in NAMES else 1.0
        assert torch.allclose(scaled[name], factor * grad, rtol=1e-12), name


def test_direction_alone_leaves_the_scale() -> None:
    """Its gradient is that of both, with every encoder's divided by its coefficient."""
    both, coefficient_M, loss = gradients(0.2)
    alone, same_M, same_loss = gradients(0.2, magnitude=False)
    assert torch.equal(coefficient_M, same_M)
    assert loss == same_loss
    for name, grad in both.items():
        factor = coefficient_M[NAMES.index(name[0])] if name[0] in NAMES else 1.0
        assert torch.allclose(factor * alone[name], grad, rtol=1e-12), name
    joint, _, _ = gradients(0.0, magnitude=False, direction="off")
    assert not torch.allclose(alone["hidden.weight"], joint["hidden.weight"])


@pytest.mark.parametrize(
    ("name", "direction", "gate"), [("cggm-magnitude", "off", "feature"), ("cggm-direction", "gradient", "off")]
)
def test_their_parts(name: str, direction: str, gate: str) -> None:
    parts = ModulationConfig(modulation=name).resolved()
    assert (parts.direction, parts.gate) == (direction, gate)
    assert Config().replace({"modulation": name}).to_dict()["modulation"]["gate"] == gate
