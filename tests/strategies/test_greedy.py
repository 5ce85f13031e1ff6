"""The balanced algorithm of Wu et al. against its formulas written out."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from strategy_cases import LinearGuide, linear_inputs, linear_net
from strategy_runs import assert_resumes, assert_workers_follow_one

from cggm_ray import Classification, UsageError
from cggm_ray.core.batch import Batch
from cggm_ray.strategies.greedy import GatedEnsemble, Greedy, GreedyOptions, greedy_net


def squares(parameters: list[torch.nn.Parameter], of_gradients: bool) -> float:
    return sum(float(((p.grad if of_gradients else p.data) ** 2).sum()) for p in parameters)


def test_gates_losses_speeds_and_held_gates() -> None:
    torch.manual_seed(5)
    task, window = Classification(3), 2
    members = {name: LinearGuide(4, 3).double() for name in ("a", "b")}
    net = greedy_net(linear_net(), members, GreedyOptions()).train()
    fusion = net.fusion
    assert isinstance(fusion, GatedEnsemble)
    balance = Greedy(dict(net.encoders.items()), fusion, task=task, epsilon=0.01, window=window, start=0)
    inputs, target = linear_inputs(linear_net(), samples=7)
    batch = Batch(inputs=inputs, target=target % 3, index=torch.arange(7))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3)
    averages, speeds, held, left, seen = {"a": 0.0, "b": 0.0}, {}, None, 0, set()
    for number in range(9):
        optimizer.zero_grad()
        features, memo = balance.transform(net.encode(batch), batch)
        head = net.fuse(features)
        with torch.no_grad():
            hidden = {name: features[name] for name in members}
            inner = torch.relu(torch.cat(list(hidden.values()), 1) @ fusion.squeeze.weight.T + fusion.squeeze.bias)
            gates = {n: torch.sigmoid(inner @ fusion.excite[n].weight.T + fusion.excite[n].bias) for n in members}
            used = {n: averages[n] if n == held else gates[n] for n in members}
            z = {n: members[n].head(hidden[n] * used[n]) for n in members}
        torch.testing.assert_close(head.logits.detach(), (z["a"] + z["b"]) / 2)
        terms = balance.terms(head, batch, memo)
        want = sum(float(task.loss(logits, batch.target)) for logits in z.values())
        assert float((terms.task_loss + terms.extra).detach()) == pytest.approx(want)
        (terms.task_loss + terms.extra).backward()
        averages = {n: (gates[n].mean(0) + averages[n] * number) / (number + 1) for n in members}
        balance.adjust_gradients(memo)
        if left == 0:
            for n in members:
                bypass = [*fusion.squeeze.parameters(), *fusion.excite[n].parameters()]
                main = [*net.encoders[n].parameters(), *members[n].parameters()]
                for kind, group in (("bypass", bypass), ("main", main)):
                    speeds[kind, n] = speeds.get((kind, n), 0.0) + squares(group, True) / squares(group, False)
            s = {n: math.log10(speeds["bypass", n] / speeds["main", n]) for n in members}
            fastest = max(s, key=lambda n: s[n])
            begins = s[fastest] - min(s.values()) > 0.01
            held, left = (fastest, window) if begins else (None, 0)
        else:
            left -= 1
            held = held if left else None
        seen.add(held)
        assert balance.held_M.tolist() == [n == held for n in members]
        optimizer.step()
    assert None in seen
    assert len(seen) > 1
    net.eval()
    assert torch.isfinite(net.fuse(net.encode(batch)).logits).all()


def test_a_guide_without_a_linear_head() -> None:
    with pytest.raises(UsageError, match="the guide of a has none"):
        GatedEnsemble({"a": torch.nn.Identity()}, 4.0)


@pytest.mark.slow
def test_two_workers_follow_one(tmp_path: Path) -> None:
    one = assert_workers_follow_one(tmp_path, {"modulation": "greedy"})
    assert any(float(step["held"].max()) > 0 for step in one["logged"])


@pytest.mark.slow
def test_resume(tmp_path: Path) -> None:
    assert_resumes(tmp_path, "--modulation", "greedy", "--greedy_start", "0")
