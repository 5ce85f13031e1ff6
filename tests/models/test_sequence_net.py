"""Encoders whose bodies are called together give what each gives by itself; they are where that can be, and only there."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from strategy_cases import DROPOUTS, SIZE, WIDTHS, assert_same, drawn_teachers, steps
from torch import Tensor, nn

from cggm_ray import wrap
from cggm_ray.engine.runtime import LocalRuntime, RunConfig
from cggm_ray.engine.step import TrainingStep
from cggm_ray.models import sequence
from cggm_ray.models.net import Masks, compile_parts
from cggm_ray.models.sequence import SequenceEncoder, SequenceNet, sequence_net
from cggm_ray.models.settings import ModelConfig

SIZES = ModelConfig(nlevels=3, proj_dim=8, num_heads=2, **DROPOUTS)
MASKS: dict[str, Masks | None] = {
    "none": None,
    "some": {
        "text": torch.tensor([[True] * 6, [True] * 4 + [False] * 2, [False] * 6, [True] * 6, [True] + [False] * 5]),
        "audio": torch.tensor([[True], [False], [True], [True], [True]]),
    },
}


@pytest.fixture
def joined_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of bodies in every call of several at once."""
    seen: list[int] = []

    def noting(modules: list[nn.Module], *inputs: Tensor) -> Any:
        seen.append(len(modules))
        return call(modules, *inputs)

    call = sequence.call_together
    monkeypatch.setattr(sequence, "call_together", noting)
    return seen


def _net(together: bool | None, config: ModelConfig = SIZES) -> SequenceNet:
    """A network in training with the same weights in every call."""
    torch.manual_seed(0)
    net = sequence_net(config, WIDTHS, 4)
    net.together = together
    return net.train()


def _inputs(steps: int = 6) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {name: torch.randn(5, steps, width) for name, width in WIDTHS.items()}


def _features(net: SequenceNet, inputs: dict[str, Tensor], masks: Masks | None = None) -> dict[str, Tensor]:
    """Features, after a backward pass of a loss in which every one of them has another weight."""
    features = {name: h for name, h in net.encode(inputs, masks).items() if isinstance(h, Tensor)}
    sum(((number + h.float()) ** 3 for number, h in enumerate(features.values())), torch.zeros(())).sum().backward()
    return features


def _gradients(net: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in net.named_parameters()}


@pytest.mark.parametrize("frozen", [None, "audio"])
@pytest.mark.parametrize("masks", MASKS)
def test_values_and_gradients_are_those_of_one_by_one(masks: str, frozen: str | None, joined_calls: list[int]) -> None:
    found = []
    for together in (False, True):
        net = _net(together).double()
        if frozen is not None:
            net.encoders[frozen].requires_grad_(False)
        inputs = {name: x.double().requires_grad_() for name, x in _inputs().items()}
        features = {name: h for name, h in net.encode(inputs, MASKS[masks]).items() if isinstance(h, Tensor)}
        loss = torch.stack([((number + h) ** 3).sum() for number, h in enumerate(features.values())]).sum()
        loss.backward()
        found.append((features, {**_gradients(net), **{name: x.grad for name, x in inputs.items()}}))
    assert joined_calls == [3]
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-12, atol=1e-12)
    one, other = found[0][1], found[1][1]
    assert [name for name, grad in one.items() if grad is None] == [
        name for name, grad in other.items() if grad is None
    ]
    assert sum(grad is not None for grad in one.values()) > 60
    for name, grad in one.items():
        if grad is not None:
            # The gradient at the bias of the keys is zero but for rounding.
            torch.testing.assert_close(other[name], grad, rtol=1e-10, atol=1e-10, msg=name)


def test_half_precision(joined_calls: list[int]) -> None:
    found = []
    for together in (False, True):
        net = _net(together)
        with torch.autocast("cpu", torch.bfloat16):
            found.append((_features(net, _inputs()), _gradients(net)))
    assert joined_calls == [3]
    for name, one in found[0][0].items():
        assert found[1][0][name].dtype == one.dtype
        torch.testing.assert_close(found[1][0][name], one, rtol=0.05, atol=0.05)
    pairs = [(one, found[1][1][name]) for name, one in found[0][1].items() if one is not None]
    size = max(float(one.norm()) for one, _ in pairs)
    assert all(other is not None and float((one - other).norm()) < 0.02 * size for one, other in pairs)


def _unlike_lengths(net: SequenceNet, inputs: dict[str, Tensor]) -> None:
    inputs["text"] = inputs["text"][:, :5]


def _unlike_bodies(net: SequenceNet, inputs: dict[str, Tensor]) -> None:
    config = net.encoders["text"].body.config  # type: ignore[union-attr]
    net.encoders["text"] = SequenceEncoder(6, dataclasses.replace(config, heads=1))  # type: ignore[type-var, arg-type]


def _own_forward(net: SequenceNet, inputs: dict[str, Tensor]) -> None:
    encoder = net.encoders["text"]
    encoder.__dict__["forward"] = type(encoder).forward.__get__(encoder)


ALONE: dict[str, Callable[[SequenceNet, dict[str, Tensor]], object]] = {
    "evaluation": lambda net, inputs: net.eval(),
    "one encoder in evaluation": lambda net, inputs: net.encoders["text"].eval(),
    "unlike lengths": _unlike_lengths,
    "unlike bodies": _unlike_bodies,
    "a hook": lambda net, inputs: net.encoders["text"].register_forward_hook(lambda *given: None),
    "a hook within": lambda net, inputs: (
        net.encoders["vision"].body.layers[1].register_forward_pre_hook(lambda *given: None)
    ),  # type: ignore[union-attr, index]
    "a forward of its own": _own_forward,
    "one modality": lambda net, inputs: [
        each.pop(name) for each in (net.encoders, inputs) for name in ("text", "audio")
    ],
}


@pytest.mark.parametrize("change", ALONE)
def test_what_goes_one_by_one(change: str, joined_calls: list[int]) -> None:
    net, inputs = _net(True), _inputs()
    net.encode(inputs)
    assert joined_calls == [3]
    ALONE[change](net, inputs)
    features = net.encode(inputs)
    assert joined_calls == [3]
    for name, encoder in net.encoders.items():
        torch.testing.assert_close(features[name], encoder(inputs[name]), rtol=0, atol=0)


def test_by_itself_a_network_calls_small_bodies_together_on_a_device_that_is_no_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The device 'meta' has tensors without memory, which layers of several modules do not take."""
    seen: list[torch.device] = []

    def noting(modules: list[nn.Module], x: Tensor) -> Tensor:
        seen.append(x.device)
        return x

    monkeypatch.setattr(sequence, "call_together", noting)
    on_device = {name: x.to("meta") for name, x in _inputs().items()}
    _net(None).encode(_inputs())
    assert seen == []
    size = sum(parameter.numel() for body in _net(None).bodies().values() for parameter in body.parameters())
    for most, calls in ((size, 1), (size - 1, 0)):
        seen.clear()
        monkeypatch.setattr(sequence, "MOST_TOGETHER", most)
        _net(None).to("meta").encode(on_device)
        assert len(seen) == calls


def test_an_export_calls_encoders_one_by_one(joined_calls: list[int]) -> None:
    program = torch.export.export(_net(True).eval(), (_inputs(),))
    assert joined_calls == []
    torch.testing.assert_close(program.module()(_inputs()), _net(True).eval()(_inputs()))


def test_a_pass_without_gradients_draws_the_same_dropout(joined_calls: list[int]) -> None:
    """`--accumulate` needs it, which finds the sums of a batch in a pass of their own."""
    net = _net(True, dataclasses.replace(SIZES, res_dropout=0.4, embed_dropout=0.4))
    torch.manual_seed(2)
    with torch.no_grad():
        before = net.encode(_inputs())
    torch.manual_seed(2)
    torch.testing.assert_close(net.encode(_inputs()), before, rtol=0, atol=0)
    assert joined_calls == [3, 3]


def test_copies_and_new_weights_are_used(joined_calls: list[int]) -> None:
    first = _net(True).double()
    inputs = {name: x.double() for name, x in _inputs().items()}
    first.encode(inputs)
    net = copy.deepcopy(first)
    torch.manual_seed(5)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    net.encoders["audio"] = copy.deepcopy(net.encoders["audio"])
    net.encoders["audio"].proj = nn.Linear(4, 8).double()
    net.encoders["vision"].body.layers[0].fc1.weight = nn.Parameter(torch.randn(32, 8, dtype=torch.float64))  # type: ignore[union-attr, index]
    net.encoders["text"].requires_grad_(False)
    found = _features(net, inputs)
    assert joined_calls == [3, 3]
    for name, encoder in net.encoders.items():
        torch.testing.assert_close(found[name], encoder(inputs[name]), rtol=1e-12, atol=1e-12)
    assert all(
        (parameter.grad is None) == name.startswith("encoders.text")
        for name, parameter in net.named_parameters()
        if name.startswith("encoders.")
    )
    assert all(parameter.grad is None for parameter in first.parameters())


def test_a_wrapped_network_takes_the_features_that_it_is_given() -> None:
    """It puts features in place of what encoders would give."""
    net = _net(True)
    wrapped = wrap(net, encoders={name: f"encoders.{name}" for name in WIDTHS}, head="head")
    features = wrapped.encode(_inputs())
    torch.testing.assert_close(wrapped.fuse(features).logits, net(_inputs()))
    halved = {name: h / 2 for name, h in features.items()}
    torch.testing.assert_close(wrapped.fuse(halved).logits, net.fuse(halved).logits)


def test_compiled_parts_are_what_runs(monkeypatch: pytest.MonkeyPatch, joined_calls: list[int]) -> None:
    torch._dynamo.reset()
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    compile_with = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_with(module, backend=backend))
    found = []
    for compiled in (False, True):
        net = _net(True).double()
        if compiled:
            compile_parts(net, {})
        inputs = {name: x.double() for name, x in _inputs().items()}
        found.append((_features(net, inputs, MASKS["some"]), _gradients(net)))
    # One graph of all bodies; the fusion was not called.
    assert joined_calls == [3, 3]
    assert len(graphs) == 1
    assert graphs[0] > 50
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-10)


def _together(step: TrainingStep) -> None:
    assert isinstance(step.net, SequenceNet)
    step.net.together = True


@pytest.mark.parametrize(
    ("label", "parts"),
    [
        ("none", 1),
        ("none", 2),
        ("cggm", 1),
        ("cggm", 2),
        ("ogm-ge", 1),
        ("mmpareto", 1),
        ("umt", 1),
        ("modality-dropout", 2),
    ],
)
def test_steps_are_those_of_one_by_one(label: str, parts: int, tmp_path: Path, joined_calls: list[int]) -> None:
    """Some samples lack a modality."""
    runtime = LocalRuntime(tmp_path, RunConfig(no_cuda=True))
    values = {"modulation": label, "accumulate": parts, **(drawn_teachers(tmp_path) if label == "umt" else {})}
    kind = "regression" if label == "umt" else "classification"
    alone = steps(kind, values, runtime)
    assert joined_calls == []
    found = steps(kind, values, runtime, prepare=_together)
    assert len(joined_calls) >= len(found["quantities"])
    assert_same(alone, found)


def test_one_graph_of_bodies_that_are_called_together(tmp_path: Path) -> None:
    def prepare(step: TrainingStep) -> None:
        _together(step)
        step.compile_whole(SIZE["batch_size"], said.append, backend="aot_eager")

    said: list[str] = []
    runtime = LocalRuntime(tmp_path, RunConfig(no_cuda=True))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    alone = steps("classification", {"modulation": "cggm"}, runtime)
    assert_same(alone, steps("classification", {"modulation": "cggm"}, runtime, prepare=prepare))
    assert said == []
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
