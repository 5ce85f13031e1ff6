"""CGGM's two halves, each alone, and CGGM with a loss for every modality."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from strategy_cases import LinearGuide, linear_inputs, linear_net
from strategy_runs import assert_resumes, assert_workers_follow_one
from torch import Tensor, nn

from cggm_ray import CGGM, Classification, HeadOutput
from cggm_ray.core.batch import Batch
from cggm_ray.engine.assembly import new_state
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.runtime import LocalRuntime
from cggm_ray.engine.step import TrainingStep, train_step
from cggm_ray.strategies.registry import STRATEGIES
from cggm_ray.strategies.settings import ModulationConfig

NAMES = ("a", "b", "c")


class Guide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, feature: Tensor) -> HeadOutput:
        return HeadOutput(self.head(feature), feature)


def gradients(
    lam: float, *, magnitude: bool = True, direction: str = "gradient", attached: bool = False
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Gradients of encoders and fusion after one step; coefficients; the encoders' gradients by plain backward."""
    torch.manual_seed(2)
    encoders = nn.ModuleDict({name: nn.Linear(5, 4) for name in NAMES}).double()
    hidden, head = nn.Linear(12, 4).double(), nn.Linear(4, 3).double()
    guides = {name: Guide().double() for name in NAMES}
    balance = CGGM(guides, task=Classification(3), lam=lam, direction=direction, magnitude=magnitude, attached=attached)
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


def test_attached_guides_train_their_encoders_beside_the_scaled_gradient() -> None:
    """What an encoder gets more is the gradient of its guide's loss, computed here with torch alone."""
    plain, coefficient_M, _ = gradients(0.2)
    attached, same_M, _ = gradients(0.2, attached=True)
    assert torch.equal(coefficient_M, same_M)
    torch.manual_seed(2)
    encoders = nn.ModuleDict({name: nn.Linear(5, 4) for name in NAMES}).double()
    nn.Linear(12, 4), nn.Linear(4, 3)  # the fusion, so that the guides have the random numbers that they have there
    guides = {name: Guide().double() for name in NAMES}
    for name in NAMES:
        x = torch.randn(6, 5).double()
        loss = nn.functional.cross_entropy(guides[name](encoders[name](x)).logits, torch.tensor([0, 1, 2, 0, 1, 2]))
        loss.backward()
    for name, grad in plain.items():
        of_guide = encoders.get_parameter(name).grad if name[0] in NAMES else 0.0
        assert torch.allclose(attached[name], grad + of_guide, rtol=1e-10), name


@pytest.mark.parametrize(("name", "reached"), [("cggm", False), ("cggm-multiloss", True)])
def test_the_name_says_whether_guides_reach_the_encoders(name: str, reached: bool) -> None:
    net = linear_net(3)
    guides = {modality: LinearGuide(4, 3).double() for modality in net.encoders}
    config = Config().replace({"modulation": name})
    state = new_state(config, net, guides, Classification(3), LocalRuntime(Path(), config.run))
    inputs, target = linear_inputs(net)
    features = {modality: net.encoders[modality](inputs[modality]) for modality in guides}
    batch = Batch(inputs=inputs, target=target, index=torch.arange(len(target)))
    sum(head.logits.sum() for head, _ in state.strategy.run_guides(features, batch)).backward()
    assert all((parameter.grad is not None) is reached for parameter in net.encoders.parameters())


@pytest.mark.parametrize(
    ("name", "direction", "gate"), [("cggm-magnitude", "off", "feature"), ("cggm-direction", "gradient", "off")]
)
def test_their_parts(name: str, direction: str, gate: str) -> None:
    parts = ModulationConfig(modulation=name).resolved(STRATEGIES.get(name).parts)
    assert (parts.direction, parts.gate) == (direction, gate)
    assert Config().replace({"modulation": name}).to_dict()["modulation"]["gate"] == gate


def moved(gate: str) -> tuple[dict[str, Tensor], Tensor]:
    """How far one step of SGD moves each parameter of a network of linear encoders; and the coefficients."""
    net = linear_net(3)
    inputs, target = linear_inputs(net)
    torch.manual_seed(5)
    guides: dict[str, nn.Module] = {name: LinearGuide(4, 3).double() for name in net.encoders}
    config = Config().replace({"modulation": "cggm", "gate": gate, "optim": "SGD", "clip": 0, "direction": "off"})
    runtime = LocalRuntime(Path(), config.run)
    state = new_state(config, net, guides, Classification(3), runtime)
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    batch = Batch(inputs=inputs, target=target, index=torch.arange(len(target)))
    values = train_step(
        state,
        TrainingStep(net, state.strategy, "fp32"),
        batch,
        runtime,
        accumulate=config.train.accumulate,
        clip=config.optim.clip,
    )
    return {name: value.detach() - before[name] for name, value in net.named_parameters()}, values["coefficient"]


def test_the_update_is_scaled_where_the_gradient_is_not() -> None:
    plain, _ = moved("off")
    scaled, coefficient_M = moved("update")
    assert len(set(coefficient_M.tolist())) == 3
    for name, change in plain.items():
        parts = name.split(".")
        factor = coefficient_M["abc".index(parts[1])] if parts[0] == "encoders" else 1.0
        assert torch.allclose(scaled[name], factor * change, rtol=1e-10), name


def test_a_coefficient_that_is_no_learning_rate_is_nearly_zero() -> None:
    net = linear_net(3)
    guides = {name: LinearGuide(4, 3).double() for name in net.encoders}
    balance = CGGM(guides, task=Classification(3), update=True, coefficients="paper")
    balance.scale_M.copy_(torch.tensor([-3.0, 0.0, 2.0]))
    assert balance.rates() == {"a": 1e-6, "b": 1e-6, "c": 2.0}


@pytest.mark.slow
def test_scaled_updates_follow_on_two_workers_and_after_a_stop(tmp_path: Path) -> None:
    one = assert_workers_follow_one(tmp_path, {"modulation": "cggm", "gate": "update"})
    assert len(set(one["rates"].values())) == 3
    assert_resumes(tmp_path, "--modulation", "cggm", "--gate", "update")
