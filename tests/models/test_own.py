"""Networks that are plain modules of a person's own: by file and function, and by value."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from feature_sets import arrays, as_npz
from torch import Tensor, nn

import cggm_ray
from cggm_ray.__main__ import main
from cggm_ray.core.batch import Batch, HeadOutput
from cggm_ray.core.errors import UsageError
from cggm_ray.engine.assembly import new_state
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.runtime import LocalRuntime, RunConfig
from cggm_ray.engine.step import TrainingStep, train_step
from cggm_ray.models.own import OwnNet, PooledGuide, own_network
from cggm_ray.models.registry import NetworkOptions, NetworkPlan
from cggm_ray.models.settings import ModelConfig
from cggm_ray.strategies.registry import STRATEGIES
from cggm_ray.tasks import Classification
from conftest import SMALL

ROOT = Path(__file__).parents[2]
FILE = '''
import torch
from torch import nn


class Two(nn.Module):
    """Nothing in it is of the package."""

    def __init__(self, plan):
        super().__init__()
        self.words = nn.GRU(plan.shapes["words"][-1], 6, batch_first=True)
        self.age = nn.Linear(plan.shapes["age"][-1], 5)
        self.hidden, self.last = nn.Linear(11, 9), nn.Linear(9, plan.outputs)

    def encode(self, inputs):
        return {"words": self.words(inputs["words"])[0], "age": self.age(inputs["age"]).relu()}

    def fuse(self, features):
        hidden = self.hidden(torch.cat([features["words"].mean(1), features["age"]], 1)).relu()
        return self.last(hidden), hidden


def build(plan):
    return Two(plan)


def nothing(plan):
    return nn.Linear(2, 2)
'''


def flags(folder: Path, *more: str) -> list[str]:
    """A run on two modalities of the small set; sizes are those of the package's own networks and left out."""
    if not (folder / "f.npz").exists():
        as_npz(folder, arrays())
        (folder / "two.py").write_text(FILE)
    places = ["--local", "--data_path", str(folder / "f.npz"), "--storage_path", str(folder), "--split", "part"]
    sizes = ["--modalities", "words,age", "--batch_size", "6", "--num_epochs", "2", "--preset", "released"]
    return ["train", "features", *places, *sizes, *SMALL[SMALL.index("--report") :], *more]


def plan(shapes: dict[str, tuple[int, ...]]) -> NetworkPlan[Any]:
    kinds = dict.fromkeys(shapes, "sequence")
    return NetworkPlan(shapes=shapes, kinds=kinds, outputs=3, sizes=ModelConfig(), options=NetworkOptions())


class Plain(nn.Module):
    """Encoders in a ModuleDict; both methods take masks."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({"a": nn.Linear(4, 5), "b": nn.Linear(2, 5)})
        self.head = nn.Linear(5, 3)
        self.seen: list[Any] = []

    def encode(self, inputs: dict[str, Tensor], masks: Any) -> dict[str, Tensor]:
        self.seen.append(masks)
        return {name: encoder(inputs[name]) for name, encoder in self.encoders.items()}

    def fuse(self, features: dict[str, Tensor], masks: Any) -> HeadOutput:
        hidden = features["a"].mean(1) + features["b"]
        return HeadOutput(self.head(hidden), hidden)


def test_a_file_and_a_function_train_and_predict_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags(tmp_path, "--net", f"{tmp_path}/two.py:build", "--name", "run")) == 0
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for command in (["verify"], ["predict", "--split", "test"]):
        done = subprocess.run(
            [sys.executable, "-m", "cggm_ray", command[0], str(tmp_path / "run"), *command[1:]],
            check=False,
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert f"imports {tmp_path}/two.py" in done.stderr


def test_what_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for network, said in {
        "two.py:buidl": "two.py has no function 'buidl' (did you mean build?)",
        "two.py:nothing": "two.py:nothing gave Linear without encode and fuse; expected encode(inputs)",
        "three.py:build": "three.py does not exist; expected a Python file",
    }.items():
        assert main(flags(tmp_path, "--network", f"{tmp_path}/{network}", "--name", "bad")) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert said in lines[0]


def test_a_module_is_copied_for_every_run(tmp_path: Path) -> None:
    flags(tmp_path)
    torch.manual_seed(0)
    namespace: dict[str, Any] = {}
    exec(FILE, namespace)
    shapes = {"words": arrays()["words"].shape[1:], "age": arrays()["age"].shape[1:]}
    net = namespace["Two"](plan(shapes))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    run = cggm_ray.train(
        "features",
        network=net,
        data_path=tmp_path / "f.npz",
        split="part",
        storage_path=tmp_path,
        name="module",
        local=True,
        modalities=["words", "age"],
        preset="released",
        batch_size=6,
        num_epochs=1,
        report=False,
    )
    assert len(run.metrics) == 1
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


def test_masks_and_guides() -> None:
    info = own_network("plain", Plain)
    net, guides = info.build(plan({"a": (7, 4), "b": (2,)}))
    assert isinstance(net, OwnNet)
    assert {name: type(guide) for name, guide in guides.items()} == {"a": PooledGuide, "b": PooledGuide}
    inputs = {"a": torch.randn(3, 7, 4), "b": torch.randn(3, 2)}
    inputs["a"][0, 4:] = torch.nan
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[0, 4:] = False
    features = net.encode(inputs, {"a": mask})
    assert net.module.seen[-1] is not None  # type: ignore[index, union-attr]
    feature = features["a"]
    assert isinstance(feature, Tensor)
    assert not feature[0, 4:].any()
    expected = feature[0, :4].mean(0)
    guide = guides["a"]
    assert isinstance(guide, PooledGuide)
    hidden = nn.functional.gelu(guide.hidden(expected))
    torch.testing.assert_close(guide(feature, mask).logits[0], guide.head(hidden))
    # The parameters are counted once, those of the encoders among them.
    assert len(list(net.parameters())) == 6
    assert set(net.encoders) == {"a", "b"}
    assert net.head is net.module.head  # type: ignore[union-attr]


def test_an_encoder_that_is_no_feature_by_itself_is_refused_where_it_is_called_alone() -> None:
    namespace: dict[str, Any] = {}
    exec(FILE, namespace)
    net, _ = own_network("two", namespace["build"]).build(plan({"words": (5, 3), "age": (4,)}))
    # The network applies a function to what the layer gives.
    with pytest.raises(UsageError, match="Linear alone does not give the feature that encode gives"):
        net.encoders["age"](torch.randn(2, 4))


def test_a_network_that_does_not_take_the_samples_says_so() -> None:
    with pytest.raises(UsageError, match=r"plain fails for inputs a \[2, 7, 5\], b \[2, 2\]: RuntimeError"):
        own_network("plain", Plain).build(plan({"a": (7, 5), "b": (2,)}))
    with pytest.raises(UsageError, match="without an encoder for 'c'"):
        own_network("plain", Plain).build(plan({"a": (7, 4), "c": (2,)}))


@pytest.mark.parametrize(
    "name", [name for name in STRATEGIES.names() if STRATEGIES.get(name).serves(Classification(3))]
)
def test_every_strategy_balances_a_plain_module(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cggm_ray.engine.assembly.find_teachers", lambda *given: {})
    monkeypatch.setattr("cggm_ray.engine.assembly.load_teachers", lambda encoders, found: (copy.deepcopy(encoders), {}))
    extra = {"mslr": {"mslr_strategy": "dynamic"}}.get(name, {})
    config = Config().replace({"modulation": name, **extra})
    torch.manual_seed(3)
    net, guides = own_network("plain", Plain).build(plan({"a": (7, 4), "b": (2,)}))
    net = STRATEGIES.get(name).network_of(net, guides, config.strategy)
    runtime = LocalRuntime(tmp_path, RunConfig(no_cuda=True))
    state = new_state(config, net, guides, Classification(3), runtime)
    step = TrainingStep(net, state.strategy, "fp32").train()
    inputs = {"a": torch.randn(6, 7, 4), "b": torch.randn(6, 2)}
    present = {"b": torch.arange(6) != 2}
    masks = {"b": present["b"][:, None]}
    batch = Batch(inputs=inputs, target=torch.arange(6) % 3, index=torch.arange(6), present=present, masks=masks)
    before = {key: value.clone() for key, value in net.named_parameters()}
    for _ in range(2):
        train_step(state, step, batch, runtime, accumulate=1, clip=0.8)
    assert any(not torch.equal(value, before[key]) for key, value in net.named_parameters())
