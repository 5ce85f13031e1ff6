"""Missing modalities and padding: what is not there reaches neither predictions nor gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cggm_ray import CGGM, Classification
from cggm_ray.models.net import MultimodalNet
from cggm_ray.models.sequence import sequence_guides, sequence_net
from cggm_ray.models.settings import ModelConfig

WIDTHS = {"text": 5, "audio": 3}
SMALL = ModelConfig(
    nlevels=3, proj_dim=8, num_heads=2, attn_dropout=0, relu_dropout=0, embed_dropout=0, res_dropout=0, out_dropout=0
)


def setting(coefficients: str = "stable") -> tuple[MultimodalNet, CGGM, Classification]:
    torch.manual_seed(0)
    task = Classification(3)
    net = sequence_net(SMALL, WIDTHS, 3)
    balance = CGGM(sequence_guides(SMALL, WIDTHS, 3), task=task, coefficients=coefficients)
    return net.double(), balance.double(), task


def batch() -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
    """Six samples: the first lacks text, the second lacks audio, the third has two of four steps of audio."""
    torch.manual_seed(1)
    inputs = {"text": torch.randn(6, 3, 5).double(), "audio": torch.randn(6, 4, 3).double()}
    masks = {"text": torch.ones(6, 1, dtype=torch.bool), "audio": torch.ones(6, 4, dtype=torch.bool)}
    masks["text"][0] = masks["audio"][1] = False
    masks["audio"][2, 2:] = False
    return inputs, torch.tensor([0, 1, 2, 0, 1, 2]), masks


def step(
    inputs: dict[str, Tensor], target: Tensor, masks: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
    """Logits, diagnostics, and all gradients of two steps, so that coefficients come from a change."""
    net, balance, _ = setting()
    for _ in range(2):
        net.zero_grad()
        balance.zero_grad()
        present = {name: mask.any(1) for name, mask in masks.items()}
        features = balance.modulate(net.encode(inputs, masks), target, present, masks=masks)
        head = net.fuse(features, masks)
        task_loss, extra = balance.losses(head, target)
        (task_loss + extra).backward()
    return head.logits, balance.diagnostics, [p.grad for module in (net, balance) for p in module.parameters()]


@pytest.mark.parametrize("content", [1000.0, float("nan"), float("inf")])
def test_content_of_what_is_missing_does_not_matter(content: float) -> None:
    inputs, target, masks = batch()
    wanted = step(inputs, target, masks)
    inputs["text"][0] = content
    inputs["audio"][1] = content
    inputs["audio"][2, 2:] = content
    got = step(inputs, target, masks)
    assert torch.equal(got[0], wanted[0])
    for name, value in wanted[1].items():
        assert torch.equal(got[1][name], value), name
    for new, old in zip(got[2], wanted[2], strict=True):
        assert bool(torch.isfinite(old).all())
        assert torch.equal(new, old)
    # The same content where it is not masked does matter.
    inputs, target, masks = batch()
    inputs["text"][3] += 1
    assert not torch.equal(step(inputs, target, masks)[0], wanted[0])


def test_score_is_that_of_the_samples_that_have_the_modality() -> None:
    inputs, target, masks = batch()
    net, balance, task = setting()
    present = {name: mask.any(1) for name, mask in masks.items()}
    features = balance.modulate(net.encode(inputs, masks), target, present, masks=masks)
    balance.losses(net.fuse(features, masks), target)
    rows = masks["text"].any(1)
    logits = balance.guides["text"](net.encode({k: v[rows] for k, v in inputs.items()})["text"]).logits
    assert float(balance.diagnostics["score"][0]) == pytest.approx(
        float((logits.argmax(1) == target[rows]).double().mean())
    )
    loss = task.loss(logits, target[rows])
    assert float(balance.diagnostics["guide_loss"][0]) == pytest.approx(float(loss.detach()), rel=1e-9)


def test_masked_prediction_is_that_of_the_shorter_sequence() -> None:
    inputs, _, masks = batch()
    net, _, _ = setting()
    net.eval()
    whole = net(inputs, masks)
    short = net({"text": inputs["text"][2:3], "audio": inputs["audio"][2:3, :2]})
    torch.testing.assert_close(whole[2:3], short, rtol=1e-9, atol=1e-12)
    every = {name: torch.ones_like(mask) for name, mask in masks.items()}
    torch.testing.assert_close(net(inputs, every), net(inputs), rtol=1e-9, atol=1e-12)


def test_encoder_of_a_modality_that_the_batch_lacks_gets_no_gradient() -> None:
    inputs, target, masks = batch()
    masks["audio"][:] = False
    net, balance, _ = setting()
    present = {name: mask.any(1) for name, mask in masks.items()}
    features = balance.modulate(net.encode(inputs, masks), target, present, masks=masks)
    task_loss, extra = balance.losses(net.fuse(features, masks), target)
    (task_loss + extra).backward()

    def largest(module: nn.Module) -> float:
        return max(float(p.grad.abs().max()) for p in module.parameters() if p.grad is not None)

    assert largest(net.encoders["audio"]) == largest(balance.guides["audio"]) == 0
    assert largest(net.encoders["text"]) > 0
    assert float(balance.diagnostics["guide_loss"][1]) == 0
