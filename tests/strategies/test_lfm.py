"""LFM: its loss sample by sample for both alignments, and the share of the labels over the epochs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from strategy_cases import LinearGuide, linear_inputs, linear_net, softmax
from strategy_runs import assert_resumes, lines
from torch import nn

from cggm_ray import Classification
from cggm_ray.models.ensemble import ensemble_net
from cggm_ray.strategies.lfm import ALIGNMENTS, LFM

TASK = Classification(3)


@pytest.mark.parametrize("kind", ALIGNMENTS)
def test_loss(kind: str) -> None:
    plain = linear_net(3)
    guides: dict[str, nn.Module] = {name: LinearGuide(4, 3).double() for name in plain.encoders}
    net = ensemble_net(plain, guides, mean=True)
    inputs, target = linear_inputs(plain)
    there = torch.tensor([True, False, True, True, False, True, True])
    balance = LFM(task=TASK, share=0.3, alignment=kind)
    features = balance.modulate(net.encode(inputs), target, {"a": there})
    head = net.fuse(features, {"a": there[:, None]})
    extra = balance.losses(head, target)[1]
    z = {name: guides[name](features[name]).logits.detach().numpy() for name in guides}
    fit, apart = [], {"ab": [], "ac": [], "bc": []}
    for i in range(7):
        has = "abc" if there[i] else "bc"
        fit.append(-np.log(softmax(np.mean([z[name][i] for name in has], 0)[None])[0, target[i]]))
        for pair, found in apart.items():
            if not set(pair) <= set(has):
                continue
            p, q = (softmax(z[name][i][None])[0] for name in pair)
            m = (p + q) / 2
            if kind == "released":
                found.append(((m * np.log(m / p)).sum() + (m * np.log(m / q)).sum()) / 2)
            else:
                found.append(((p * np.log(p / m)).sum() + (q * np.log(q / m)).sum()) / 2)
    want = 2 * (0.3 * np.mean(fit) + 0.7 * np.mean([np.mean(found) for found in apart.values()]))
    assert (TASK.loss(head.logits, target) + extra).item() == pytest.approx(want, rel=1e-10)


def test_the_schedule_runs_over_the_epochs_that_it_is_given() -> None:
    whole, short = LFM(task=TASK), LFM(task=TASK, epochs=20)
    for _ in range(10):
        short.end_epoch({}, {}, torch.zeros(0))
    for _ in range(100):
        whole.end_epoch({}, {}, torch.zeros(0))
    assert float(short.share) == pytest.approx(float(whole.share))
    for _ in range(50):
        short.end_epoch({}, {}, torch.zeros(0))
    assert 0.9 < float(short.share) < 0.91


@pytest.mark.slow
def test_resume(tmp_path: Path) -> None:
    run = assert_resumes(tmp_path, "--modulation", "lfm", "--lfm_epochs", "3")
    shares = [line["train/share_of_labels"] for line in lines(run)]
    assert sorted(shares) == shares
    assert shares[0] < shares[-1]
