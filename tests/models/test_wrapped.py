"""Modules without `encode` and `fuse`: a CLIP of transformers, taken apart at its encoders."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from cggm_ray import CGGM, OGM, Classification, HeadOutput, MMPareto, Strategy, UsageError, wrap
from cggm_ray.__main__ import main as command

CLASSES = 3
SIZE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = {"vocab_size": 50, "max_position_embeddings": 12, "bos_token_id": 48, "eos_token_id": 49}
VISION = {"image_size": 16, "patch_size": 8, "num_channels": 3}
PATHS = {"text": "clip.text_model", "image": "clip.vision_model"}


class Pair(nn.Module):
    """A classifier on both embeddings of a small random CLIP, as a person would write it."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = CLIPModel(CLIPConfig(text_config=SIZE | TEXT, vision_config=SIZE | VISION, projection_dim=8))
        self.hidden, self.head = nn.Linear(16, 12), nn.Linear(12, CLASSES)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        found = self.clip(input_ids=text.long(), pixel_values=image)
        return self.head(self.hidden(torch.cat([found.text_embeds, found.image_embeds], 1)).relu())


class ByHand(Pair):
    """The same in two halves, from the parts of CLIP."""

    def encode(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        text = self.clip.text_model(input_ids=inputs["text"].long()).pooler_output
        return {"text": text, "image": self.clip.vision_model(pixel_values=inputs["image"]).pooler_output}

    def fuse(self, features: dict[str, Tensor]) -> HeadOutput:
        text, image = self.clip.text_projection(features["text"]), self.clip.visual_projection(features["image"])
        both = [one / one.norm(dim=-1, keepdim=True) for one in (text, image)]
        hidden = self.hidden(torch.cat(both, 1)).relu()
        return HeadOutput(self.head(hidden), hidden)


class Guide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(16, 12), nn.Linear(12, CLASSES)

    def forward(self, feature: Tensor) -> HeadOutput:
        hidden = self.hidden(feature).relu()
        return HeadOutput(self.head(hidden), hidden)


def batch(samples: int = 8) -> tuple[dict[str, Tensor], Tensor]:
    draw = torch.Generator().manual_seed(5)
    inputs = {
        "text": torch.randint(48, (samples, 12), generator=draw),
        "image": torch.randn(samples, 3, 16, 16, generator=draw),
    }
    return inputs, torch.randint(CLASSES, (samples,), generator=draw)


def balance_of(kind: str, net: Any) -> Strategy:
    torch.manual_seed(1)
    guides, task = {"text": Guide(), "image": Guide()}, Classification(CLASSES)
    if kind == "cggm":
        return CGGM(guides, task=task)
    if kind == "ogm":
        return OGM(("text", "image"), net.fuse, task=task)
    encoders = (
        {"text": net.clip.text_model, "image": net.clip.vision_model} if isinstance(net, ByHand) else net.encoders
    )
    return MMPareto(guides, encoders, task=task)


def trained(net: Any, kind: str) -> dict[str, Tensor]:
    balance, (inputs, target) = balance_of(kind, net), batch()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        features = balance.modulate(net.encode(inputs), target)
        sum(balance.losses(net.fuse(features), target)).backward()  # type: ignore[union-attr]
        optimizer.step()
        balance.step()
    return {name.removeprefix("module."): tensor for name, tensor in net.state_dict().items()}


@pytest.mark.parametrize("kind", ["cggm", "ogm", "mmpareto"])
def test_it_trains_as_the_two_halves_by_hand(kind: str) -> None:
    torch.manual_seed(0)
    by_hand = ByHand()
    plain = Pair()
    plain.load_state_dict(by_hand.state_dict())
    wanted, found = trained(by_hand, kind), trained(wrap(plain, encoders=PATHS, head="head"), kind)
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


def test_the_module_is_as_it_was() -> None:
    torch.manual_seed(0)
    plain, (inputs, _) = Pair(), batch()
    before = plain(**inputs)
    net = wrap(plain, encoders=PATHS, head="head")
    head = net.fuse(net.encode(inputs))
    assert torch.equal(head.logits, before)
    assert torch.equal(plain.head(head.hidden), before)
    assert torch.equal(plain(**inputs), before)
    assert "forward" not in vars(plain.clip.text_model)
    assert torch.equal(copy.deepcopy(net)(inputs), before)
    # Other features come through to the prediction, and no encoder runs for them.
    changed = net.fuse({name: torch.zeros(8, 16) for name in PATHS}).logits
    assert not torch.equal(changed, before)


class Fields(nn.Module):
    """Outputs of every form that an encoder may have, and a dictionary of inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out, self.unused = (
            nn.LSTM(4, 3, batch_first=True),
            nn.Linear(4, 3),
            nn.Linear(6, 2),
            nn.Linear(1, 1),
        )

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, str]:
        steps, _ = self.a(inputs["a"])
        return self.out(torch.cat([steps.mean(1), self.b(inputs["b"])], 1)), "more"


def test_outputs_with_several_fields() -> None:
    net = wrap(Fields(), encoders={"a": "a", "b": "b"}, head="out")
    inputs = {"a": torch.randn(2, 5, 4), "b": torch.randn(2, 4)}
    features = net.encode(inputs)
    assert features["a"].shape == (2, 5, 3)
    assert torch.equal(net.fuse(features).logits, net.module(inputs)[0])
    with pytest.raises(UsageError, match="the encoder 'a' gave tuple with 0, 1; expected a tensor, or the name"):
        wrap(Fields(), encoders={"a": "a:1", "b": "b"}, head="out").encode(inputs)


@pytest.mark.parametrize(
    ("encoders", "head", "message"),
    [
        (
            {"text": "clip.txt_model", "image": "clip.vision_model"},
            "head",
            "text: Pair has no part 'clip.txt_model'; expected",
        ),
        (PATHS, "heat", "head: Pair has no part 'heat'; expected one such as head"),
        (PATHS, "clip", "head: 'clip' is a CLIPModel; expected a linear layer"),
        (PATHS | {"image": "clip.text_model.encoder"}, "head", "is part of that of text; expected one for each"),
        (PATHS | {"image": "clip.text_model"}, "head", "is part of that of"),
        ({}, "head", "found no encoders"),
    ],
)
def test_what_is_needed_is_said_in_one_line(encoders: dict[str, str], head: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        wrap(Pair(), encoders=encoders, head=head)
    assert "\n" not in str(error.value)


def test_what_the_forward_pass_does_not_do() -> None:
    inputs = {"a": torch.randn(2, 5, 4), "b": torch.randn(2, 4)}
    with pytest.raises(UsageError, match="the forward pass of Fields did not call unused; expected encoders"):
        wrap(Fields(), encoders={"a": "a", "b": "unused"}, head="out").encode(inputs)
    net = wrap(Fields(), encoders={"a": "a", "b": "b"}, head="unused")
    with pytest.raises(UsageError, match="called the head 'unused' 0 times; expected once"):
        net.fuse(net.encode(inputs))
    with pytest.raises(RuntimeError, match="before fuse"):
        wrap(Fields(), encoders={"a": "a", "b": "b"}, head="out").fuse({})


def test_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(0)
    label = np.arange(48) % 2
    text = draw.integers(1, 20, (48, 12)) + 20 * label[:, None]
    image = draw.normal(size=(48, 3, 16, 16)).astype(np.float32) + label[:, None, None, None]
    np.savez(tmp_path / "d.npz", text=text.astype(np.float32), image=image, label=label)
    (tmp_path / "clips.py").write_text(
        "import torch\nfrom torch import nn\nfrom transformers import CLIPConfig, CLIPModel\nimport cggm_ray\n"
        f"SIZE, TEXT, VISION = {SIZE!r}, {TEXT!r}, {VISION!r}\n"
        "class Pair(nn.Module):\n"
        "    def __init__(self, outputs):\n"
        "        super().__init__()\n"
        "        self.clip = CLIPModel(CLIPConfig(text_config=SIZE | TEXT, vision_config=SIZE | VISION, projection_dim=8))\n"
        "        self.head = nn.Linear(16, outputs)\n"
        "    def forward(self, text, image):\n"
        "        found = self.clip(input_ids=text.long().clamp(0, 47), pixel_values=image)\n"
        "        return self.head(torch.cat([found.text_embeds, found.image_embeds], 1))\n"
        "def build(plan):\n"
        f"    return cggm_ray.wrap(Pair(plan.outputs), encoders={PATHS!r}, head='head')\n"
    )
    places = [
        "--data_path",
        str(tmp_path / "d.npz"),
        "--storage_path",
        str(tmp_path),
        "--name",
        "r",
        "--kinds",
        "image:image",
    ]
    more = [
        "--standardise",
        "off",
        "--net",
        f"{tmp_path / 'clips.py'}:build",
        "--num_epochs",
        "2",
        "--batch_size",
        "8",
    ]
    assert command(["train", "features", "--local", "--report", "false", *places, *more]) == 0, capsys.readouterr()
    assert command(["verify", str(tmp_path / "r")]) == 0
    assert command(["predict", str(tmp_path / "r"), "--data_path", str(tmp_path / "d.npz")]) == 0
