"""AMCo against its formulas written out."""

from __future__ import annotations

import math

import pytest
import torch
from strategy_cases import LinearGuide, linear_inputs, linear_net, softmax

from cggm_ray import Classification
from cggm_ray.core.batch import Batch
from cggm_ray.strategies.amco import AMCo, draws


def test_shares_masks_and_losses() -> None:
    torch.manual_seed(5)
    net, task = linear_net(), Classification(3)
    guides = {name: LinearGuide(4, 3).double() for name in net.encoders}
    balance = AMCo(guides, task=task, sigma=0.45, eps=0.3, optimizer=lambda own: torch.optim.SGD(own, lr=0.0))
    inputs, target = linear_inputs(net)
    batch = Batch(inputs=inputs, target=target, index=torch.arange(7))
    dependent = torch.zeros(2, dtype=torch.bool)
    masked = 0
    for epoch in range(3):
        for step in range(2):
            features, memo = balance.transform(net.encode(batch), batch)
            plain = {name: part.detach() for name, part in net.encode(batch).items()}
            p = math.sin(math.pi / 2 * min(0.3, step * epoch / 10) / 0.3)
            for index, name in enumerate(net.encoders):
                gone = (features[name] == 0).all(0)
                assert int(gone.sum()) == (int(p * 4) if dependent[index] else 0)
                assert torch.equal(features[name][:, ~gone], plain[name][:, ~gone])
                masked += int(gone.sum())
            terms = balance.terms(net.fuse(features), batch, memo)
            logits = torch.cat([guides[name].head(plain[name]) for name in net.encoders], 1)
            share = softmax(logits.detach().numpy()).reshape(7, 2, 3).sum(2).mean(0)
            assert balance.diagnostics["share"].tolist() == pytest.approx(share.tolist())
            dependent = torch.tensor(share > 0.45)
            want = sum(task.loss(guides[name].head(plain[name]), target) for name in net.encoders)
            assert float(terms.extra.detach()) == pytest.approx(float(want.detach()))
        balance.end_epoch({}, {}, torch.zeros(0))
    assert masked > 0


def test_draws_differ_by_step_and_stream_and_are_even() -> None:
    first = [draws(8, 1, torch.tensor(step)).argsort()[:2].tolist() for step in range(400)]
    assert first != [draws(8, 2, torch.tensor(step)).argsort()[:2].tolist() for step in range(400)]
    counts = torch.bincount(torch.tensor(first).flatten(), minlength=8)
    assert int(counts.min()) > 70
    assert int(counts.max()) < 130
