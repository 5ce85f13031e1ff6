"""The average of the weights: its formula, what a checkpoint keeps, and a resume to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_probes import run, write_set

from cggm_ray.engine.ema import MovingAverage
from cggm_ray.engine.state import TENSORS, WEIGHTS
from cggm_ray.engine.tracking import read_metrics
from cggm_ray.models.sequence import sequence_net
from cggm_ray.models.settings import ModelConfig


def test_the_average_follows_its_formula() -> None:
    net = sequence_net(ModelConfig(nlevels=3, num_heads=1, proj_dim=4), {"a": 3}, 2)
    ema = MovingAverage(net, decay=0.5)
    head = net.head
    expected = head.weight.detach().clone()
    for step in range(12):
        with torch.no_grad():
            head.weight.add_(step + 1.0)
        ema.update(net)
        decay = min(0.5, (1 + step) / (10 + step))
        current = head.weight.detach().clone()
        expected = decay * expected + (1 - decay) * current
        assert torch.allclose(ema.net.head.weight, expected, rtol=1e-5)


def last(run: Path) -> Path:
    return max((run / "checkpoints").iterdir())


def test_a_run_keeps_and_resumes_its_average(tmp_path: Path) -> None:
    data = write_set(tmp_path / "set.npz", scale=1.0, noise=1.0, columns=4)
    whole = run(data, tmp_path, "whole", "--ema", "0.9")
    run(data, tmp_path, "parts", "--ema", "0.9", "--num_epochs", "2")
    parts = run(data, tmp_path, "parts", "--ema", "0.9")
    lines = [[line["valid/loss"] for line in read_metrics(folder)] for folder in (whole, parts)]
    assert lines[0] == lines[1]
    for name in (WEIGHTS, TENSORS):
        a, b = (load_file(last(folder) / name) for folder in (whole, parts))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    averaged, trained = load_file(last(whole) / WEIGHTS), load_file(last(whole) / TENSORS)
    assert not torch.equal(averaged["head.weight"], trained["/trained/head.weight"])
    plain = run(data, tmp_path, "plain")
    assert "/trained/head.weight" not in load_file(last(plain) / TENSORS)
    # Training does not depend on the average; only what is validated does.
    assert [line["train/loss"] for line in read_metrics(plain)] == pytest.approx(
        [line["train/loss"] for line in read_metrics(whole)], abs=0
    )
