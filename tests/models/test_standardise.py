"""The module that standardises, alone and in a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cggm_ray.config.parsing import read_yaml
from cggm_ray.core.errors import UsageError
from cggm_ray.core.kinds import feature_shape
from cggm_ray.data.statistics import Moments
from cggm_ray.engine.configuration import Config
from cggm_ray.models.ensemble import ensemble_net
from cggm_ray.models.net import MultimodalNet
from cggm_ray.models.standardise import InputConfig, Standardise, standardise_modules


def filled(values: np.ndarray, shape: tuple[int, ...], clip: float = 0.0) -> Standardise:
    """With mean and deviation of these vectors."""
    module = Standardise(shape)
    module.fill(torch.from_numpy(values.mean(0)), torch.from_numpy(1 / values.std(0)), clip)
    return module


def test_vectors_are_standardised_as_by_numpy() -> None:
    x = np.random.default_rng(0).normal([1e3, -2, 0], [50, 1e-3, 1], (100, 3))
    found = filled(x, (3,))(torch.from_numpy(x).float())
    np.testing.assert_allclose(found, (x - x.mean(0)) / x.std(0), atol=5e-3)
    assert found.dtype == torch.float32


def test_values_far_away_are_clipped() -> None:
    x = np.array([[-1.0], [1.0]])
    module = filled(x, (1,), clip=5)
    assert module(torch.tensor([[-9.0], [4.0], [5.5]])).tolist() == [[-5], [4], [5]]
    assert filled(x, (1,))(torch.tensor([[1e9]])).item() == 1e9


def test_features_may_share_a_scale() -> None:
    x = np.random.default_rng(0).normal([5, 0, 2, 7], [1, 10, 0.1, 0], (100, 4)).astype(np.float32)
    moments = Moments.of(x, None, (4,))
    module = Standardise((4,))
    assert not module.shares_scale
    module.fill(torch.from_numpy(moments.mean), torch.from_numpy(moments.scale), 2.0, moments.whole_scale)
    assert not module.shares_scale
    module.share_scale()
    assert module.shares_scale
    expected = (x - x.mean(0)) / np.sqrt((x - x.mean(0)).astype(np.float64).var(0).mean())
    np.testing.assert_allclose(module(torch.from_numpy(x)), expected, atol=1e-5)
    assert np.abs(expected).max() > 2
    other = Standardise((4,))
    other.load_state_dict(module.state_dict())
    assert other.shares_scale
    assert Moments.of(np.ones((5, 4)), None, (4,)).whole_scale == 1


def test_it_begins_and_ends_as_the_identity_which_its_state_says() -> None:
    x = torch.randn(50, 7, 4) * 1e6
    module = Standardise((1, 4))
    assert torch.equal(module(x), x)
    module.fill(torch.full((1, 4), 3.0), torch.full((1, 4), 2.0), 1.0)
    assert not torch.equal(module(x), x)
    module.disable()
    assert torch.equal(module(x), x)
    other = Standardise((1, 4))
    other.fill(torch.full((1, 4), 3.0), torch.full((1, 4), 2.0), 1.0)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), x)


@pytest.mark.parametrize(
    ("kind", "shape", "expected"),
    [
        ("vector", (5,), (5,)),
        ("vector", (2, 3), (2, 3)),
        ("sequence", (7, 5), (1, 5)),
        ("image", (8, 9), (1, 1)),
        ("image", (3, 8, 8), (3, 1, 1)),
        ("image", (8, 9, 4), (1, 1, 4)),
        ("image", (1, 3, 3), (1, 1, 1)),
    ],
)
def test_shape_of_a_value_per_feature(kind: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert feature_shape(kind, shape) == expected
    assert np.broadcast_shapes((2, *shape), expected) == (2, *shape)


class Sum(nn.Module):
    def forward(self, features: dict[str, Tensor], masks: object = None) -> Tensor:
        return torch.stack([h.flatten(1).sum(1) for h in features.values()], 1)


class Plain(nn.Module):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x


def test_a_network_standardises_before_it_masks() -> None:
    net = MultimodalNet({"words": Plain(), "age": Plain()}, Sum(), nn.Identity(), {"words": Standardise((1, 2))})
    net.inputs["words"].fill(torch.tensor([[10.0, 20.0]]), torch.tensor([[1.0, 0.5]]))
    words = torch.tensor([[[11.0, 22.0], [torch.nan, torch.inf]]])
    features = net.encode({"words": words, "age": torch.ones(1, 3)}, {"words": torch.tensor([[True, False]])})
    assert features["words"].tolist() == [[[1, 1], [0, 0]]]
    assert features["age"].tolist() == [[1, 1, 1]]


def test_an_ensemble_keeps_what_standardises() -> None:
    inputs = standardise_modules({"age": (3,)}, {"age": "vector"})
    net = MultimodalNet({"age": Plain()}, Sum(), nn.Identity(), inputs)
    assert ensemble_net(net, {"age": nn.Identity()}, mean=False).inputs["age"] is inputs["age"]


def test_without_it_the_state_is_as_it_was() -> None:
    parts = {"age": nn.Linear(3, 2)}
    assert list(MultimodalNet(parts, Sum(), nn.Linear(1, 1)).state_dict()) == [
        "encoders.age.weight",
        "encoders.age.bias",
        "head.weight",
        "head.bias",
    ]


def test_on_and_off_in_yaml_are_texts_and_switches(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("standardise: on\nreport: off\nuse_gpu: On\nlocal: no\n")
    config = Config.from_dict(read_yaml(tmp_path / "c.yaml", "config"))
    assert config.inputs.standardise == "on"
    assert not config.run.report
    assert config.run.use_gpu
    assert not config.run.local
    assert Config().replace({"standardise": "off", "report": "off"}) == Config().replace({"report": False})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"standardise": "of"}, r"standardise: unknown .of. \(did you mean"),
        ({"standardise": "on", "clip_inputs": -1.0}, "clip_inputs: found -1.0; expected zero or a positive number"),
    ],
)
def test_settings_that_cannot_be(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        InputConfig(**values)  # type: ignore[arg-type]
