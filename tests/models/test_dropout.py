"""Dropout drawn by the package: its rates, and its gradients against plain formulas in double precision."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil

import pytest
import torch
from torch import Tensor, nn

from cggm_ray.models import dropout as module
from cggm_ray.models.dropout import add_dropped, dropout, dropped_attention, rate, relu_dropout_linear
from cggm_ray.models.transformer import TransformerConfig, TransformerEncoder


def gradients(out: Tensor, of: list[Tensor]) -> list[Tensor]:
    torch.manual_seed(99)
    return list(torch.autograd.grad(out, of, torch.randn(out.shape, dtype=out.dtype)))


def close(a: list[Tensor], b: list[Tensor]) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.99])
def test_the_share_and_the_scale_are_those_of_p(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    x = torch.ones(1001, 999, dtype=dtype)
    y = dropout(x, p, True)
    count = x.numel()
    dropped = float((y == 0).sum())
    assert abs(dropped - p * count) < 5 * math.sqrt(p * (1 - p) * count)
    assert float(y[y != 0][0]) == pytest.approx(1 / (1 - p), rel=0.01 if dtype is torch.bfloat16 else 1e-3)


def test_rows_and_columns_are_independent() -> None:
    torch.manual_seed(2)
    kept = dropout(torch.ones(4000, 8), 0.25, True) != 0
    correlation = torch.corrcoef(kept.float().T) - torch.eye(8)
    assert correlation.abs().max() < 5 / math.sqrt(4000)
    lagged = torch.corrcoef(torch.stack([kept.flatten()[:-1], kept.flatten()[1:]]).float())[0, 1]
    assert abs(float(lagged)) < 5 / math.sqrt(32000)


def test_the_seed_of_torch_decides() -> None:
    x = torch.ones(64, 64)
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append((dropout(x, 0.5, True), dropout(x, 0.5, True)))
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert torch.equal(drawn[0][1], drawn[1][1])
    assert not torch.equal(drawn[0][0], drawn[0][1])
    assert not torch.equal(drawn[0][0], drawn[2][0])


def test_nothing_is_dropped_in_evaluation() -> None:
    x = torch.randn(5, 7)
    assert torch.equal(dropout(x, 0.5, False), x)
    assert torch.equal(add_dropped(x, x, 0.5, False), 2 * x)


def test_gradients_of_the_feed_forward() -> None:
    p = 0.3
    x, residual = (torch.randn(40, 12, dtype=torch.float64, requires_grad=True) for _ in range(2))
    linear = nn.Linear(12, 5).double()
    torch.manual_seed(5)
    mask = dropout(torch.ones_like(x), p, True)
    torch.manual_seed(5)
    ours = relu_dropout_linear(x, linear, p, True)
    plain = linear(x.relu() * mask)
    close([ours], [plain])
    wanted = [x, linear.weight, linear.bias]
    close(gradients(ours, wanted), gradients(plain, wanted))

    torch.manual_seed(5)
    ours, plain = add_dropped(residual, x, p, True), residual + x * mask
    close([ours], [plain])
    close(gradients(ours, [residual, x]), gradients(plain, [residual, x]))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("block", [1, 100, 2**20])
def test_attention(monkeypatch: pytest.MonkeyPatch, masked: bool, block: int) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    samples, heads, steps, p = 4, 3, 6, 0.4
    # As many channels as steps: with the identity as values, the output is the dropped weights.
    qkv = torch.randn(samples, steps, 3 * heads * steps, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(samples, steps) < 0.7 if masked else None
    if mask is not None:
        mask[:, 0] = True

    def split(x: Tensor) -> list[Tensor]:
        return [part.unflatten(-1, (heads, steps)).transpose(1, 2) for part in x.chunk(3, -1)]

    with torch.no_grad():
        seen = qkv.clone()
        seen[..., -heads * steps :] = torch.eye(steps, dtype=torch.float64).repeat(1, heads)
        torch.manual_seed(6)
        weights = dropped_attention(seen, heads, mask, p).unflatten(-1, (heads, steps)).transpose(1, 2)
    torch.manual_seed(6)
    ours = dropped_attention(qkv, heads, mask, p)

    q, k, v = split(qkv)
    scores = q @ k.mT / math.sqrt(steps)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -math.inf)
    plain_weights = scores.softmax(-1) * (weights != 0) * rate(p).scale
    close([plain_weights.detach()], [weights])
    assert 0 < int((weights == 0).sum()) < weights.numel()
    plain = (plain_weights @ v).transpose(1, 2).flatten(2)
    close([ours], [plain])
    close(gradients(ours, [qkv]), gradients(plain, [qkv]))


def test_in_a_compiled_graph_the_backward_pass_has_the_bits_of_the_forward_pass() -> None:
    if not has_compiler():
        pytest.skip("no C++ compiler")
    compiled = torch.compile(lambda qkv: dropped_attention(qkv, 3, None, 0.3))
    qkv = torch.randn(4, 6, 3 * 12, requires_grad=True)
    out = compiled(qkv)
    (grad,) = torch.autograd.grad(out.sum(), qkv)
    # The output is linear in the values: with other bits the products would differ.
    torch.testing.assert_close((grad * qkv)[..., -12:].sum(), out.sum().detach())


def has_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))


def test_a_module_without_dropout_and_one_with_hardly_any_agree() -> None:
    config = TransformerConfig(width=12, heads=3, layers=2)
    hardly = dataclasses.replace(config, attn_dropout=1e-12, relu_dropout=1e-12, res_dropout=1e-12, embed_dropout=1e-12)
    x, mask = torch.randn(4, 7, 12), torch.rand(4, 7) < 0.6
    for first in (False, True):
        plain = TransformerEncoder(config, first_step_only=first)
        dropping = TransformerEncoder(hardly, first_step_only=first)
        dropping.load_state_dict(plain.state_dict())
        for steps in (None, mask):
            torch.testing.assert_close(dropping(x, steps), plain(x, steps))


def test_attention_leaves_its_input_alone_where_one_sample_has_one_step() -> None:
    # Such a tensor is contiguous in every order of its axes.
    qkv = torch.randn(1, 1, 12)
    before = qkv.clone()
    torch.testing.assert_close(dropped_attention(qkv, 2, None, 0.0), before[..., 8:])
    assert torch.equal(qkv, before)
