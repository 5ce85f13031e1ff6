"""Strategies in the readings of their official code: any number of workers, batches in parts, and resumed runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from strategy_cases import assert_same, in_processes, linear_inputs, linear_net, steps
from strategy_runs import assert_resumes

from cggm_ray import Classification
from cggm_ray.core.batch import Batch
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.runtime import LocalRuntime
from cggm_ray.strategies.agm import AGM, AGMReleased
from cggm_ray.strategies.ogm import OGM
from cggm_ray.strategies.opm import OPM

READINGS: list[dict[str, Any]] = [
    {"modulation": "agm", "agm_reading": "released", "agm_bound": 0},
    {"modulation": "ogm", "ogm_bias": "shared", "ogm_rivals": "minimum", "ogm_epochs": 1},
    {"modulation": "ogm-ge", "ogm_parameters": "convolutions"},
    {"modulation": "pmr", "pmr_reading": "released", "pmr_samples": 15, "pmr_ends": 3},
    {"modulation": "pmr", "pmr_reading": "paper", "pmr_samples": 15},
    {"modulation": "mmpareto", "mmpareto_norm": "parameter"},
    {"modulation": "inforeg", "inforeg_reading": "paper", "inforeg_threshold": 0.0},
    {"modulation": "reconboost", "reconboost_reading": "released", "reconboost_epochs": 1, "reconboost_rectify": 1},
]
NAMES = [str(values["modulation"]) for values in READINGS]


@pytest.fixture(scope="module")
def by_workers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[list[dict[str, Any]]]]:
    folder = tmp_path_factory.mktemp("readings")
    cases = [("classification", values) for values in READINGS]
    return {workers: in_processes(folder, cases, workers) for workers in (1, 2)}


@pytest.mark.slow
@pytest.mark.parametrize("case", range(len(READINGS)), ids=NAMES)
def test_two_workers_follow_one(by_workers: dict[int, list[list[dict[str, Any]]]], case: int) -> None:
    (one,), (first, second) = by_workers[1], by_workers[2]
    assert_same(one[case], first[case])
    assert_same(first[case], second[case])


@pytest.mark.parametrize("case", [n for n, name in enumerate(NAMES) if name != "mmpareto"])
def test_a_batch_in_parts(tmp_path: Path, case: int) -> None:
    runtime, values = LocalRuntime(tmp_path, Config().run), READINGS[case]
    whole = steps("classification", values, runtime)
    assert_same(whole, steps("classification", {**values, "accumulate": 2}, runtime))


@pytest.mark.slow
@pytest.mark.parametrize("case", range(len(READINGS)), ids=NAMES)
def test_resume(tmp_path: Path, case: int) -> None:
    flags = [text for field, value in READINGS[case].items() for text in (f"--{field}", str(value))]
    assert_resumes(tmp_path, *flags)


def test_coefficients_of_one_leave_the_gradient_of_joint_training() -> None:
    """In the first step tau is 1, so with scores that are equal the released reading of AGM changes nothing."""
    net, task = linear_net(3), Classification(3)
    inputs, target = linear_inputs(net)
    batch = Batch(inputs=inputs, target=target, index=torch.arange(7))
    balance = AGMReleased(list(net.encoders), net.fuse, task=task, alpha=1e-12)
    features, memo = balance.transform(net.encode(batch), batch)
    terms = balance.terms(net.fuse(features), batch, memo)
    assert float(terms.extra.detach()) == pytest.approx(0)
    (terms.task_loss + terms.extra).backward()
    found = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    task.loss(net(inputs), target).backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


def test_tau_with_and_without_the_running_step() -> None:
    net, seen = linear_net(2), torch.tensor([True, True])
    sums = torch.tensor([[1.0, 1.0], [2.0, 1.0]]).double()
    including, before = (kind(["a", "b"], net.fuse, task=Classification(3)) for kind in (AGM, AGMReleased))
    assert including.decide(sums, seen).tolist() == [1, 1]
    before.decide(sums, seen)
    assert before.diagnostics["tau"].tolist() == [1, 1]
    before.decide(sums, seen)
    assert before.diagnostics["tau"].tolist() == pytest.approx([torch.e, 1 / torch.e])


def test_the_rivals_of_ogm() -> None:
    net = linear_net(3)
    scores = torch.tensor([[0.6, 1], [0.4, 1], [0.2, 1]]).double()
    seen = torch.tensor([True, True, True])
    names, task = ["a", "b", "c"], Classification(3)
    mean, minimum, ratios = (OGM(names, net.fuse, task=task, rivals=r) for r in ("mean", "minimum", "ratios"))
    assert mean.compare(scores, seen).tolist() == pytest.approx([2, 1, 0.4])
    assert minimum.compare(scores, seen).tolist() == pytest.approx([3, 2, 0.5])
    each = [(0.6 / 0.4 + 0.6 / 0.2) / 2, (0.4 / 0.6 + 0.4 / 0.2) / 2, (0.2 / 0.6 + 0.2 / 0.4) / 2]
    assert ratios.compare(scores, seen).tolist() == pytest.approx(each)
    assert OPM(names, net.fuse, task=task, rivals="ratios").compare(scores, seen).tolist() == pytest.approx(each)
    # Without the second modality, whose score is unknown then, one rival is left.
    lacking = torch.tensor([[0.6, 1], [0, 0], [0.2, 1]]).double()
    assert ratios.compare(lacking, torch.tensor([True, False, True])).tolist() == pytest.approx([3, 1, 1 / 3])
