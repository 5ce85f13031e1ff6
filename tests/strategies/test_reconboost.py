"""ReconBoost and the uni-modal ensemble: what is predicted, who moves when, and by which loss."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from strategy_runs import assert_resumes, assert_workers_follow_one, last, lines, pipeline, run_steps
from torch import Tensor, nn

from cggm_ray import Classification, HeadOutput
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.runtime import LocalRuntime, RunConfig
from cggm_ray.models.ensemble import Ensemble, ensemble_net
from cggm_ray.models.net import MultimodalNet
from cggm_ray.strategies.reconboost import ReconBoost
from cggm_ray.strategies.registry import STRATEGIES
from cggm_ray.strategies.ume import UME

NAMES = ("a", "b", "c")
NOTHING = torch.zeros(0)


class Guide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, feature: Tensor, mask: Tensor | None = None) -> HeadOutput:
        return HeadOutput(self.head(feature), feature)


class Encoder(nn.Linear):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x)


def setting(mean: bool = False) -> tuple[MultimodalNet, Ensemble, dict[str, Tensor], Tensor]:
    torch.manual_seed(0)
    guides = {name: Guide().double() for name in NAMES}
    whole = MultimodalNet({name: Encoder(5, 4).double() for name in NAMES}, nn.Identity(), nn.Linear(4, 3))
    net = ensemble_net(whole, guides, mean=mean)
    inputs = {name: torch.randn(6, 5).double() for name in NAMES}
    assert isinstance(net.fusion, Ensemble)
    return net, net.fusion, inputs, torch.tensor([0, 1, 2, 1, 0, 2])


def member(net: MultimodalNet, name: str, inputs: dict[str, Tensor]) -> Tensor:
    logits: Tensor = net.fusion.members[name](net.encoders[name](inputs[name])).logits
    return logits


@pytest.mark.parametrize("mean", [False, True])
def test_the_prediction_is_that_of_the_members_whom_a_sample_has(mean: bool) -> None:
    net, _, inputs, _ = setting(mean)
    logits = {name: member(net, name, inputs) for name in NAMES}
    total = sum(logits.values()) / (3 if mean else 1)
    torch.testing.assert_close(net(inputs), total)
    masks = {"a": torch.tensor([[True], [False], [True], [True], [True], [True]])}
    inputs["a"][1] = math.nan
    got = net(inputs, masks)
    torch.testing.assert_close(got[1], (logits["b"] + logits["c"])[1] / (2 if mean else 1))
    torch.testing.assert_close(got[0], total[0])


def boost(net: MultimodalNet, ensemble: Ensemble, **options: float) -> ReconBoost:
    return ReconBoost(dict(net.encoders.items()), ensemble, task=Classification(3), epochs=1, rectify=1, **options)


def backward(net: MultimodalNet, balance: ReconBoost | UME, inputs: dict[str, Tensor], target: Tensor) -> Tensor:
    net.zero_grad()
    head = net.fuse(balance.modulate(net.encode(inputs), target))
    task_loss, extra = balance.losses(head, target)
    (task_loss + extra).backward()
    balance.adjust()
    return (task_loss + extra).detach()


def softmax(values: list[float]) -> list[float]:
    parts = [math.exp(value) for value in values]
    return [part / sum(parts) for part in parts]


def by_hand(logits: dict[str, np.ndarray], target: list[int], moving: str, before: str | None) -> float:
    """The loss of a learner, sample by sample: weight1 5, weight2 2, alpha 0.5."""
    found = 0.0
    for row, label in enumerate(target):
        p = softmax(list(logits[moving][row]))
        loss = -5 * math.log(p[label]) / 3
        if before is not None:
            q = softmax([sum(logits[name][row][k] for name in NAMES if name != moving) for k in range(3)])
            r = softmax(list(logits[before][row]))
            loss += 2 * q[label] * math.log(p[label]) / 3
            loss += 0.5 * sum((p[k] - r[k]) ** 2 for k in range(3)) / 3
        found += loss / len(target)
    return found


def test_turns_losses_and_who_moves() -> None:
    net, ensemble, inputs, target = setting()
    balance = boost(net, ensemble, weight1=5.0, weight2=2.0, alpha=0.5)
    turns = [("a", None), (None, None), ("b", "a"), (None, "a"), ("c", "b"), (None, "b"), ("a", "c")]
    logits = {name: member(net, name, inputs).detach().numpy() for name in NAMES}
    for moving, before in turns:
        assert balance.moving == moving
        got = backward(net, balance, inputs, target)
        if moving is None:
            want = float(F.cross_entropy(net(inputs), target).detach())
        else:
            want = by_hand(logits, target.tolist(), moving, before)
        assert float(got) == pytest.approx(want, rel=1e-12)
        for name in NAMES:
            gradients = [p.grad for part in (net.encoders[name], ensemble.members[name]) for p in part.parameters()]
            moves = moving in (None, name)
            assert all((gradient is not None) == moves for gradient in gradients), (moving, name)
        balance.end_epoch({}, {}, NOTHING)


def test_only_its_own_gradient_reaches_the_learner() -> None:
    net, ensemble, inputs, target = setting()
    balance = boost(net, ensemble, weight1=5.0, weight2=0.0, alpha=0.0)
    backward(net, balance, inputs, target)
    got = [parameter.grad.clone() for parameter in net.encoders["a"].parameters() if parameter.grad is not None]
    net.zero_grad()
    (5 / 3 * F.cross_entropy(member(net, "a", inputs), target)).backward()
    for mine, parameter in zip(got, net.encoders["a"].parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad)


def test_what_the_others_know_counts_less() -> None:
    net, ensemble, inputs, target = setting()
    norms = []
    for knows in (0.0, 20.0):
        balance = boost(net, ensemble, weight1=1.0, weight2=1.0, alpha=0.0)
        balance._epoch = 2
        with torch.no_grad():
            ensemble.members["a"].head.weight.zero_()
            ensemble.members["a"].head.bias.copy_(knows * F.one_hot(target[0], 3))
        one = {name: values[:1] for name, values in inputs.items()}
        backward(net, balance, one, target[:1])
        norms.append(float(sum(p.grad.norm() for p in net.encoders["b"].parameters() if p.grad is not None)))
    assert norms[1] < 1e-3 * norms[0]


def test_frozen_learners_do_not_move_by_momentum(tmp_path: Path) -> None:
    changes = {"modulation": "reconboost", "reconboost_epochs": 1, "reconboost_rectify": 0, "optim": "Adam"}
    run = run_steps({**changes, "weight_decay": 0.1}, LocalRuntime(tmp_path, RunConfig(no_cuda=True)))
    # Five steps an epoch; the turn is that of text, audio, vision and again text.
    moving = [values["moving"].tolist() for values in run["logged"]]
    assert moving == [[1, 0, 0]] * 5 + [[0, 1, 0]] * 5 + [[0, 0, 1]] * 5 + [[1, 0, 0]] * 5
    for values in run["logged"]:
        assert ((values["grad_norm"] > 0) == (values["moving"] > 0)).all()


def test_members_of_ume_are_trained_alone() -> None:
    net, _, inputs, target = setting(mean=True)
    loss = backward(net, UME(task=Classification(3)), inputs, target)
    got = {name: [p.grad.clone() for p in net.encoders[name].parameters() if p.grad is not None] for name in NAMES}
    net.zero_grad()
    alone = [F.cross_entropy(member(net, name, inputs), target) for name in NAMES]
    total = torch.stack(alone).sum()
    total.backward()
    assert float(loss) == pytest.approx(float(total.detach()), rel=1e-12)
    for name in NAMES:
        for mine, parameter in zip(got[name], net.encoders[name].parameters(), strict=True):
            torch.testing.assert_close(mine, parameter.grad)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"modulation": "reconboost", "reconboost_epochs": 1, "reconboost_rectify": 1}, "classes"),
        pytest.param({"modulation": "ume"}, "classes", marks=pytest.mark.slow),
        pytest.param({"modulation": "ume"}, "values", marks=pytest.mark.slow),
    ],
)
def test_workers_follow_one(tmp_path: Path, changes: dict[str, object], kind: str) -> None:
    assert_workers_follow_one(tmp_path, changes, kind=kind)


@pytest.mark.parametrize(
    "flags", [("ume",), ("reconboost", "--reconboost_epochs", "1", "--reconboost_rectify", "1")], ids=["ume", "boost"]
)
def test_resume(tmp_path: Path, flags: tuple[str, ...]) -> None:
    run = assert_resumes(tmp_path, "--modulation", *flags)
    if flags[0] == "reconboost":
        assert [line["moving/words"] for line in lines(run)] == [1, 1, 0]
        assert json.loads((last(run) / "training.json").read_text())["strategy"]["_extra_state"] == {"epoch": 3}
    # The test's predictions are those of the ensemble: there is no fusion in the checkpoint.
    assert len(pq.read_table(run / "predictions.parquet")) == 5
    assert STRATEGIES.get(flags[0]).network is not None


def test_bf16_in_parts(tmp_path: Path) -> None:
    flags = ("--precision", "bf16", "--accumulate", "2", "--reconboost_epochs", "1", "--reconboost_rectify", "0")
    run = pipeline(tmp_path, "run", "--modulation", "reconboost", *flags)
    assert all(line["train/loss"] is not None for line in lines(run))


def test_defaults_are_those_of_the_released_code() -> None:
    options = Config().replace({"modulation": "reconboost"}).to_dict()["reconboost"]
    assert list(options.values()) == [4, 4, 5.0, 1.0, 0.5, "joined"]
