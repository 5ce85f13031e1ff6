"""The network `composed`: what padding, missing modalities and other samples may not change, and formulas written out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from composed_nets import CLASSES, KINDS, OF_KIND, SAMPLES, SHAPES, composed, inputs, masks
from torch import Tensor

from cggm_ray.core.errors import UsageError
from cggm_ray.core.kinds import IMAGE, SEQUENCE, VECTOR
from cggm_ray.models.composed.images import CHANNELS, ChannelsFirst
from cggm_ray.models.composed.network import ComposedOptions
from cggm_ray.models.composed.registry import FUSIONS
from cggm_ray.models.composed.steps import AttentionPooling, shares, summary
from cggm_ray.models.net import MultimodalNet, mask_of
from cggm_ray.models.registry import NETWORKS, NetworkPlan
from cggm_ray.models.settings import ModelConfig
from cggm_ray.models.standardise import standardisers

CASES = [("segments", "concat"), ("pool", "late"), ("transformer", "attention"), ("transformer", "concat")]
"""Encoder of the sequence and fusion."""


@torch.no_grad()
def logits(net: MultimodalNet, x: dict[str, Tensor], found: dict[str, Tensor] | None) -> Tensor:
    return net.eval()(x, found)


@pytest.mark.parametrize(("encoder", "fusion"), CASES)
def test_padded_steps_change_nothing_wherever_they_stand(encoder: str, fusion: str) -> None:
    net, guides = composed({"audio": encoder}, fusion)
    x, found = inputs(), masks()
    x["audio"] = x["audio"] * found["audio"][..., None]
    expected = logits(net, x, found)
    for before, after in ((0, 3), (2, 0), (1, 4)):
        sizes = [(SAMPLES, count) for count in (before, after)]
        filler = [torch.full((*size, 3), math.nan) for size in sizes]
        absent = [torch.zeros(size, dtype=torch.bool) for size in sizes]
        longer = x | {"audio": torch.cat([filler[0], x["audio"], filler[1]], 1)}
        mask = found | {"audio": torch.cat([absent[0], found["audio"], absent[1]], 1)}
        torch.testing.assert_close(logits(net, longer, mask), expected, rtol=1e-4, atol=1e-5)
        h, h_longer = (net.encode(*each)["audio"] for each in ((x, found), (longer, mask)))
        for guide, pair in ((guides["audio"], ((h, found), (h_longer, mask))),):
            short, long = (guide(feature, each["audio"]).logits for feature, each in pair)
            torch.testing.assert_close(long, short, rtol=1e-4, atol=1e-5)


def all_choices() -> list[tuple[dict[str, str], str]]:
    """All encoders with the fusion `concat`, and all fusions with tokens."""
    several = [
        {name: OF_KIND[kind][number % len(OF_KIND[kind])] for name, kind in KINDS.items()}
        for number in range(max(map(len, OF_KIND.values())))
    ]
    tokens = {"audio": "transformer", "face": "patches"}
    return [(choice, "concat") for choice in several] + [(tokens, fusion) for fusion in FUSIONS.names()]


@pytest.mark.parametrize(("encoders", "fusion"), all_choices())
def test_what_stands_in_a_missing_modality_never_matters(encoders: dict[str, str], fusion: str) -> None:
    found, x = masks(), inputs()
    for name in SHAPES:
        found[name][3] = False
    results = []
    for filler in (0.0, 1e4, math.nan):
        # Anew, because running statistics move.
        net, guides = composed(encoders, fusion, dropout=0.0)
        net.train()
        changed = {}
        for name, mask in found.items():
            there = mask if name == "audio" else mask[:, 0]
            changed[name] = torch.where(
                there.reshape(*there.shape, *[1] * (x[name].ndim - there.ndim)), x[name], filler
            )
        features = net.encode(changed, found)
        output = net.fuse(features, found).logits
        said = [guide(features[name], found[name]).logits for name, guide in guides.items()]
        (output.square().sum() + sum(each.square().sum() for each in said)).backward()
        gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
        results.append([output, *said, *gradients])
        assert all(torch.isfinite(values).all() for values in results[-1])
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], result, strict=True))


@pytest.mark.parametrize(
    ("encoders", "fusion"), [choice for choice in all_choices() if "resnet18" not in choice[0].values()]
)
def test_a_sample_is_predicted_alone_as_among_others(encoders: dict[str, str], fusion: str) -> None:
    """In training too, so a batch in parts, and one over workers, has the gradient of the whole batch.

    `resnet18` alone is normalised over the batch.
    """
    net, _ = composed(encoders, fusion, dropout=0.0)
    x, found = inputs(), masks()
    net.train()
    whole = net(x, found)
    for rows in (slice(0, 1), slice(1, 4), slice(4, None)):
        part = net({name: v[rows] for name, v in x.items()}, {name: v[rows] for name, v in found.items()})
        torch.testing.assert_close(part, whole[rows], rtol=1e-4, atol=1e-5)
    order = torch.randperm(SAMPLES)
    moved = net({name: v[order] for name, v in x.items()}, {name: v[order] for name, v in found.items()})
    torch.testing.assert_close(moved, whole[order], rtol=1e-4, atol=1e-5)
    # No statistics of the batch that would move in training.
    fixed = {f"{owner}.{name}" for owner in standardisers(net) for name in ("mean", "scale", "limit")}
    assert not {name for name, _ in net.named_buffers()} - fixed


@pytest.mark.parametrize("fusion", FUSIONS.names())
def test_masks_of_true_are_no_masks(fusion: str) -> None:
    net, _ = composed({"audio": "transformer"}, fusion)
    x = inputs()
    whole = {name: torch.ones_like(mask) for name, mask in masks().items()}
    torch.testing.assert_close(logits(net, x, whole), logits(net, x, None), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("encoder", "matters"), [("pool", False), ("segments", True), ("transformer", True)])
def test_the_order_of_the_steps_matters_but_to_pool(encoder: str, matters: bool) -> None:
    net, _ = composed({"audio": encoder})
    x = inputs()
    turned = x | {"audio": x["audio"].flip(1)}
    assert torch.allclose(logits(net, x, None), logits(net, turned, None), atol=1e-5) != matters


def test_the_order_of_the_modalities_does_not_matter_to_a_mean() -> None:
    net, _ = composed(fusion="late")
    features = net.eval().encode(inputs())
    reverse = dict(reversed(features.items()))
    torch.testing.assert_close(net.fuse(reverse).logits, net.fuse(features).logits)


def test_late_is_the_mean_of_what_single_modalities_say() -> None:
    net, _ = composed(fusion="late")
    x, there = inputs(), {name: torch.ones(SAMPLES, 1, dtype=torch.bool) for name in SHAPES}
    alone = {
        name: logits(net, x, {other: there[other] if other == name else ~there[other] for other in SHAPES})
        for name in SHAPES
    }
    torch.testing.assert_close(logits(net, x, there), torch.stack(list(alone.values())).mean(0))
    two = logits(net, x, there | {"age": ~there["age"]})
    torch.testing.assert_close(two, (alone["audio"] + alone["face"]) / 2)


def test_segments_are_means_of_equal_parts() -> None:
    """Against a loop over the parts of each sequence, step by step in fine fractions."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(4, 9, 2))
    mask = np.arange(9) < np.array([9, 4, 1, 0])[:, None]
    mask[1] = np.roll(mask[1], 3)
    share = shares(torch.tensor(mask), 3).double()
    got = (share @ torch.tensor(x)).numpy()
    for sample in range(3):
        steps = np.repeat(x[sample][mask[sample]], 300, axis=0)
        parts = np.stack([part.mean(0) for part in np.split(steps, 3)])
        np.testing.assert_allclose(got[sample], parts, atol=1e-6)
    assert not got[3].any()
    assert torch.equal(shares(torch.ones(1, 64, dtype=torch.bool), 64)[0], torch.eye(64))
    assert torch.equal(shares(torch.ones(1, 28, dtype=torch.bool), 28)[0], torch.eye(28))


def test_summary_is_that_of_numpy() -> None:
    x = torch.randn(3, 6, 4, dtype=torch.float64)
    mask = torch.arange(6) < torch.tensor([6, 2, 0])[:, None]
    got = summary(x, mask).numpy()
    for sample, count in enumerate((6, 2)):
        v = x[sample, :count].numpy()
        np.testing.assert_allclose(got[sample], np.concatenate([v.mean(0), v.max(0), v.std(0)]), atol=2e-3)
    assert not got[2].any()


def test_attention_pooling_is_a_weighted_mean() -> None:
    pooling = AttentionPooling(4)
    h = torch.randn(2, 5, 4)
    torch.testing.assert_close(pooling(h), h.mean(1))
    torch.nn.init.normal_(pooling.score.weight)
    mask = torch.tensor([[True, True, False, True, False], [False] * 5])
    v, w = h[0][mask[0]].numpy(), pooling.score.weight[0].detach().numpy()
    weight = np.exp(v @ w) / np.exp(v @ w).sum()
    np.testing.assert_allclose(pooling(h, mask)[0].detach(), weight @ v, rtol=1e-4, atol=1e-6)
    assert not pooling(h, mask)[1].any()


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight + bias


def attended(x: np.ndarray, y: np.ndarray, weight: np.ndarray, bias: np.ndarray, heads: int) -> np.ndarray:
    """Attention of the rows of x over those of y, before the output layer, one head after the other."""
    q_w, k_w, v_w = np.split(weight, 3)
    q_b, k_b, v_b = np.split(bias, 3)
    q, k, v = x @ q_w.T + q_b, y @ k_w.T + k_b, y @ v_w.T + v_b
    out, d = np.zeros_like(q), q.shape[1] // heads
    for head in range(heads):
        part = slice(head * d, (head + 1) * d)
        score = q[:, part] @ k[:, part].T / np.sqrt(d)
        p = np.exp(score - score.max(1, keepdims=True))
        out[:, part] = p / p.sum(1, keepdims=True) @ v[:, part]
    return out


def test_the_transformer_is_its_formula() -> None:
    net, _ = composed({"audio": "transformer"}, depth=2)
    encoder = net.encoders["audio"].double().eval()
    w = {name: value.detach().numpy() for name, value in encoder.state_dict().items()}
    x = torch.randn(1, 6, 3, dtype=torch.float64)
    mask = torch.tensor([[False, True, True, True, True, False]])
    got = encoder(x, mask)[0, 1:5].detach().numpy()

    places, width = np.arange(1, 5)[:, None], 8
    angles = places * 10000.0 ** (-np.arange(width // 2) / (width // 2 - 1))
    h = x[0, 1:5].numpy() @ w["proj.weight"].T + w["proj.bias"] + np.concatenate([np.sin(angles), np.cos(angles)], 1)
    for number in range(2):
        p = {name.removeprefix(f"layers.layers.{number}."): value for name, value in w.items()}
        z = layer_norm(h, p["layer_norms.0.weight"], p["layer_norms.0.bias"])
        out = attended(z, z, p["self_attn.in_proj_weight"], p["self_attn.in_proj_bias"], heads=2)
        h = h + out @ p["self_attn.out_proj.weight"].T + p["self_attn.out_proj.bias"]
        z = layer_norm(h, p["layer_norms.1.weight"], p["layer_norms.1.bias"])
        h = h + np.maximum(z @ p["fc1.weight"].T + p["fc1.bias"], 0) @ p["fc2.weight"].T + p["fc2.bias"]
    expected = (
        layer_norm(h, w["layers.norm.weight"], w["layers.norm.bias"]) @ w["layers.out.weight"].T + w["layers.out.bias"]
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_images_in_any_layout() -> None:
    x = torch.randn(2, 3, 5, 6)
    for shape, given in (((3, 5, 6), x), ((5, 6, 3), x.movedim(1, -1)), ((5, 6), x[:, 0])):
        images = ChannelsFirst(shape)
        assert (images.height, images.width) == (5, 6)
        assert torch.equal(images(given), x if len(shape) == 3 else x[:, :1])


@pytest.mark.parametrize("encoder", ["resnet", "patches"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7, 5), (90, 60, 3), (4, 224, 224)])
def test_images_of_any_size(encoder: str, shape: tuple[int, ...]) -> None:
    options = ComposedOptions(encoders=(f"x:{encoder}",), width=8, inner_width=8, heads=2, depth=1)
    plan = NetworkPlan(shapes={"x": shape}, kinds={"x": IMAGE}, outputs=2, sizes=ModelConfig(), options=options)
    net, _ = NETWORKS.get("composed").build(plan)
    features = net.encode({"x": torch.randn(2, *shape)})["x"]
    assert features.shape[0] == 2
    assert features.shape[2] == 8
    assert features.shape[1] <= 64
    assert CHANNELS[0] % 8 == 0


def test_masks_of_features() -> None:
    mask = torch.tensor([[True, False, False], [False] * 3])
    assert mask_of(torch.zeros(2, 3, 4), mask) is mask
    assert mask_of(torch.zeros(2, 5, 4), mask[:, :1]).shape == (2, 1)
    for feature in (torch.zeros(2, 1, 4), torch.zeros(2, 5, 4), torch.zeros(2, 4), torch.zeros(2, 3)):
        assert mask_of(feature, mask).tolist() == [[True], [False]]
    assert mask_of(torch.zeros(2, 3, 4), None) is None


def test_a_longer_sequence_than_an_mlp_has_seen() -> None:
    net, _ = composed({"audio": "mlp"})
    x = inputs()
    short = logits(net, x | {"audio": x["audio"][:, :3]}, None)
    padded = torch.cat([x["audio"][:, :3], torch.zeros(SAMPLES, 2, 3)], 1)
    torch.testing.assert_close(short, logits(net, x | {"audio": padded}, None))
    with pytest.raises(UsageError, match=r"found samples of shape \[6, 3\] for an encoder of 15 numbers"):
        logits(net, x | {"audio": torch.zeros(SAMPLES, 6, 3)}, None)


@pytest.mark.parametrize("encoder", ["segments", "pool", "mlp"])
@pytest.mark.parametrize("fusion", ["concat", "late"])
def test_a_linear_path_is_added_to_what_the_layers_give(encoder: str, fusion: str) -> None:
    plain, _ = composed({"audio": encoder, "face": "mlp"}, fusion)
    net, _ = composed({"audio": encoder, "face": "mlp"}, fusion, linear_path="on")
    net.load_state_dict(plain.state_dict(), strict=False)
    x = inputs()
    with torch.no_grad():
        before, after = plain.eval().encode(x), net.eval().encode(x)
        weight = net.encoders["age"].layers.linear[0].weight.numpy()
        added = x["age"].numpy() @ weight.T
        np.testing.assert_allclose(
            after["age"][:, 0].numpy(), before["age"][:, 0].numpy() + added, rtol=1e-4, atol=1e-5
        )
        for found in net.encoders.values():
            # Nothing is left but the linear path, and the logits are linear in what the encoder sees.
            found.layers.layers[0].weight.zero_()
            found.layers.layers[0].bias.zero_()
        seen = {name: x[name] for name in ("age", "face")}
        logits = [
            net.fuse(net.encode(x | {n: factor * v for n, v in seen.items()})).logits for factor in (0.0, 1.0, 2.0)
        ]
    torch.testing.assert_close(logits[2] - logits[1], logits[1] - logits[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits[1], logits[0])


def test_what_depends_on_the_task_and_the_size_of_the_set() -> None:
    def built(regression: bool, samples: int | None, **options: object) -> MultimodalNet:
        shapes, kinds = (
            {"age": (2,), "audio": (2, 2), "face": (9, 9)},
            {"age": VECTOR, "audio": SEQUENCE, "face": IMAGE},
        )
        made = ComposedOptions(**{"width": 8, "inner_width": 8, "heads": 2, **options})  # type: ignore[arg-type]
        plan = NetworkPlan(
            shapes=shapes,
            kinds=kinds,
            outputs=1,
            sizes=ModelConfig(),
            options=made,
            regression=regression,
            samples=samples,
        )
        net: MultimodalNet = NETWORKS.get("composed").build(plan)[0]
        return net

    def dropped(net: MultimodalNet) -> float:
        age, audio = (net.encoders[name].layers.dropout.p for name in ("age", "audio"))
        assert age == audio
        return float(age)

    assert dropped(built(True, 94)) == 0.06
    assert dropped(built(True, 2)) == 0.5
    assert dropped(built(True, None)) == 0.5
    assert dropped(built(True, 2, dropout=0.6)) == 0.6
    assert dropped(built(False, 94)) == 0.15
    assert dropped(built(True, 94, input_dropout=0.2)) == 0.2
    for chosen, on in (("auto", {True: 1, False: 0}), ("on", {True: 1, False: 1}), ("off", {True: 0, False: 0})):
        for regression in (True, False):
            assert len(built(regression, 94, linear_path=chosen).encoders["age"].layers.linear) == on[regression]


def test_heads_are_as_wide_as_those_of_the_guides() -> None:
    for fusion, width in itertools.product(FUSIONS.names(), (8, 16)):
        net, guides = composed(fusion=fusion, width=width)
        assert net.head.weight.shape == (CLASSES, width)
        for guide in guides.values():
            assert guide.head.weight.shape == (CLASSES, width)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoders": ("audio:resnett",)}, "encoders: unknown 'resnett' for audio.*did you mean resnet"),
        (
            {"encoders": ("audio:resnet",)},
            r"'resnet' takes no sequence, found audio of shape \[5, 3\]; available: .*segments",
        ),
        ({"encoders": ("age:transformer",)}, "'transformer' takes no vector"),
        ({"encoders": ("adio:mlp",)}, "encoders: no modality 'adio'.*did you mean audio.*available: audio, age, face"),
        ({"encoders": ("audio",)}, "encoders: found 'audio'; expected modality:encoder"),
        ({"encoders": ("audio:mlp", "audio:pool")}, "encoders: found 'audio:pool'; expected .* once"),
        ({"fusion": "concatt"}, "fusion: unknown 'concatt'.*did you mean concat.*available: attention, bilinear"),
        ({"width": 10, "heads": 4}, "heads: 4 heads do not divide width 10; expected a divisor"),
        ({"inner_width": 10, "heads": 4}, "heads: 4 heads do not divide inner_width 10"),
        ({"depth": 0}, "depth: found 0; expected a whole number of at least 1"),
        ({"dropout": 1.0}, "dropout: found 1.0; expected a probability"),
    ],
)
def test_bad_values_get_one_line(options: dict[str, object], message: str) -> None:
    check = NETWORKS.get("composed").check
    assert check is not None

    def configured() -> None:
        made = ComposedOptions(**options)  # type: ignore[arg-type]
        check(NetworkPlan(shapes=SHAPES, kinds=KINDS, outputs=CLASSES, sizes=ModelConfig(), options=made))

    with pytest.raises(UsageError, match=message):
        configured()


def test_defaults_by_kind() -> None:
    net, _ = composed()
    found = {name: type(encoder).__name__ for name, encoder in net.encoders.items()}
    assert found == {"audio": "SegmentsEncoder", "age": "FlatEncoder", "face": "ResNetEncoder"}
    assert set(KINDS.values()) == {SEQUENCE, VECTOR, IMAGE}


@pytest.mark.parametrize(("encoder", "fusion"), CASES)
def test_it_is_exported_for_any_number_of_samples(encoder: str, fusion: str) -> None:
    net, _ = composed({"audio": encoder}, fusion)
    net.eval()
    samples = torch.export.Dim("samples", min=1)
    rows = {name: {0: samples} for name in SHAPES}
    for given, fewer in (((inputs(), masks()), (inputs(3), masks(3))), ((inputs(),), (inputs(3),))):
        program = torch.export.export(net, given, dynamic_shapes=tuple(rows for _ in given)).module()
        torch.testing.assert_close(program(*fewer), net(*fewer))
