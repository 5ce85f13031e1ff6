"""The released code's BraTS trajectories, loss and schedule, from the recordings."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import Recording, arrays_of, norms, recordings
from torch import Tensor, nn
from torch.optim import SGD

from cggm_ray import CGGM, JointTraining, Segmentation
from cggm_ray.core.batch import Batch
from cggm_ray.engine.schedules import cosine_with_warmup
from cggm_ray.models.deeplab import DeepLab, DeepLabConfig, deeplab_guides
from cggm_ray.models.released import convert_released, guide_name, net_name
from cggm_ray.models.resnet import ResNetConfig
from cggm_ray.tasks.metrics import region_dice

MODEL, GUIDES = 1, 2


def released_task() -> Segmentation:
    """The loss with class weights that are float32 numbers, as they were recorded; this matters after one step already."""
    return Segmentation(tuple(torch.tensor(Segmentation().class_weights).tolist()))


class Slices(Recording):
    """A recording on image slices, whose weights follow from a recipe."""

    modalities = ("flair", "t1ce", "t1", "t2")
    # Dice, the coefficients and the norms were recorded in float32, also of the run in float64.
    floors = Recording.floors | {torch.float64: (2e-7, 2e-7)}

    def target(self, prefix: str) -> Tensor:
        return self.tensor(f"{prefix}.labels").long()

    def weights(self, names: str, shapes: list[tuple[int, ...]], role: int) -> dict[str, Tensor]:
        """Initial weights by released name: a function of name, shape and seed."""
        state = {}
        for name, shape in zip(map(str, self[names]), shapes, strict=True):
            if name.endswith("bias"):
                state[name] = torch.zeros(shape)
            elif len(shape) == 1:
                state[name] = torch.ones(shape)
            else:
                bits = np.random.PCG64([self.meta["seed_used"], role, zlib.crc32(name.encode())])
                uniform = (bits.random_raw(int(np.prod(shape))) >> 40) * 2.0**-24 - 0.5
                scale = np.sqrt(12) * np.sqrt(2 / np.prod(shape[1:]))
                state[name] = torch.from_numpy((uniform * scale).astype(np.float32).reshape(shape))
        return state

    def build(self) -> tuple[DeepLab, dict[str, nn.Module]]:
        config = DeepLabConfig(backbone=ResNetConfig(blocks=tuple(self.meta["blocks"])))
        net = DeepLab(config, self.modalities, 4)
        guides = nn.ModuleDict(deeplab_guides(config, self.modalities, 4))
        by_name, guides_by_name = dict(net.named_parameters()), dict(guides.named_parameters())
        for names, role, module, parameters, rename in (
            ("param_names", MODEL, net, by_name, net_name),
            ("cls_param_names", GUIDES, guides, guides_by_name, guide_name),
        ):
            ours = [str(rename(str(name), self.modalities)) for name in self[names]]
            assert sorted(ours) == sorted(parameters)
            shapes = [tuple(parameters[name].shape) for name in ours]
            state = convert_released(self.weights(names, shapes, role), self.modalities, guides=role == GUIDES)
            missing, unexpected = module.load_state_dict(state, strict=False)
            assert not unexpected
            assert all("running_" in name or "num_batches" in name for name in missing)
        for module in (net, guides):
            module.to(self.dtype)
            for part in module.modules():
                if isinstance(part, nn.Dropout):
                    part.p = 0.0
        return net, dict(guides.items())


def cases() -> list[object]:
    """(file, type, mode); ResNet-101 and joint training only when asked for."""
    result = []
    for name, dtype, marks in (
        ("brats_tiny", torch.float32, ()),
        ("brats", torch.float32, (pytest.mark.slow,)),
        ("brats_f64", torch.float64, (pytest.mark.slow,)),
    ):
        for found in recordings(f"{name}.npz"):
            for mode in ("cggm", "none"):
                wanted = marks if mode == "cggm" else (pytest.mark.slow,)
                values = (*found.values, dtype, mode)
                result.append(pytest.param(*values, marks=(*found.marks, *wanted), id=f"{name}-{mode}"))
    return result


Check = Callable[[str, object, int | None], None]
"""Takes a quantity: its key without the mode, its value, and the step, None after the last."""
SPREAD = 50
"""Tolerance in float64, in units of what one ulp in the weights does.

The network multiplies rounding by some 2,500 in every step. Measured against the recording, first predictions of steps 1, 2,
3: weights one ulp off 1e-11, 3e-8, 7e-5; another order of the sums (channels_last) 7e-12, 9e-8, 3e-4; the processor and the
number of threads of the recording 0, 1e-11, 3e-8, which is all that the recorded noise knows of. So no other processor can be
held to that noise, and the test moves its own run by one ulp instead. Of all quantities the scores move most with the order of
the sums, 24 times as far as with the ulp, since a pixel's class changes or does not.
"""


def plain(values: object) -> np.ndarray:
    """A copy in float64: some quantities are buffers, which the next step overwrites."""
    return np.array(torch.as_tensor(values).detach().double())


def follow(recording: Slices, mode: str, check: Check, one_ulp_off: bool = False) -> None:
    """Goes through a recording and hands every recorded quantity to `check`; the weights may start one ulp off."""
    meta, task = recording.meta, released_task()
    net, guides = recording.build()
    sgd = {"momentum": meta["momentum"], "weight_decay": meta["weight_decay"]}
    strategy = JointTraining(task=task)
    if mode == "cggm":
        strategy = CGGM(
            guides,
            task=task,
            rho=meta["rou"],
            lam=meta["lamda"],
            coefficients="released",
            direction="released",
            optimizer=lambda parameters: SGD(parameters, lr=meta["cls_lr"], **sgd),
            head=net.head,
            # The released code looks for encoders under names that this model does not have, so it scales no gradient.
            bodies={name: nn.Module() for name in guides},
        )
    optimizer = SGD(net.parameters(), lr=meta["base_lr"], **sgd)
    names = [str(name) for name in recording["param_names"]]
    by_name = dict(net.named_parameters())
    parameters = [by_name[str(net_name(name, recording.modalities))] for name in names]
    guides_by_name = dict(nn.ModuleDict(guides).named_parameters())
    guide_parameters = [
        guides_by_name[str(guide_name(str(name), recording.modalities))] for name in recording["cls_param_names"]
    ]
    if one_ulp_off:
        generator = torch.Generator().manual_seed(0)
        for parameter in (*parameters, *guide_parameters):
            signs = 2 * torch.randint(2, parameter.shape, generator=generator) - 1
            parameter.data *= 1 + torch.finfo(parameter.dtype).eps * signs
    np.testing.assert_allclose(norms(parameters), recording["init_param_norms"], rtol=1e-6)
    np.testing.assert_allclose(norms(guide_parameters), recording["init_cls_param_norms"], rtol=1e-6)
    groups = [[i for i, name in enumerate(names) if name.startswith(f"{g}.")] for g in recording["group_names"]]

    for step in range(len(recording[f"{mode}.lr"])):
        prefix = f"in.{step % len(meta['batches'])}"
        for group in optimizer.param_groups:
            group["lr"] = float(recording[f"{mode}.lr"][step])
        optimizer.zero_grad(set_to_none=True)
        batch = Batch.of_loop(recording.target(prefix), inputs=recording.inputs(prefix))
        features, memo = strategy.transform(net.encode(batch.inputs), batch)
        guide_heads = [] if memo is None else [head for head, _ in memo.outputs]
        head = net.fuse(features)
        task_loss, extra, _ = strategy.terms(head, batch, memo)
        check("loss_task", task_loss, step)
        check("train_preds", head.logits[:, :, ::16, ::16], step)
        check("train_preds_norm", float(head.logits.detach().norm()), step)
        if mode == "cggm":
            diagnostics = strategy.diagnostics
            if step:
                check("l_gm_used", diagnostics["direction_loss"], step)
            check("loss_total", task_loss + extra - diagnostics["guide_loss"].sum(), step)
            check("cls_loss", diagnostics["guide_loss"], step)
            check("acc2", diagnostics["score"], step)
            check("coeff", diagnostics["coefficient"] / meta["rou"], step)
            check("cos", diagnostics["cosine"], step)
            check("l_gm", strategy.direction.next_value, step)
            logits = torch.stack([guide.logits[:, :, ::16, ::16] for guide in guide_heads])
            check("train_cls_preds", logits, step)
        (task_loss + extra).backward()
        gradients = norms(parameter.grad for parameter in parameters)
        check("gnorm_params_before", gradients, step)
        check("gnorm_groups_before", [np.linalg.norm([gradients[i] for i in group]) for group in groups], step)
        check("gnorm_total_before", np.linalg.norm(gradients), step)
        check("grad_out_w", net.head.weight.grad.flatten(), step)
        if mode == "cggm":
            check("gnorm_params_after", gradients, step)
            of_guides = [norms(parameter.grad for parameter in guide.parameters()) for guide in guides.values()]
            check("cls_gnorm", [np.linalg.norm(values) for values in of_guides], step)
        strategy.move()
        optimizer.step()
        check("param_norms", norms(parameters), step)
        if mode == "cggm":
            check("cls_param_norms", norms(guide_parameters), step)

    net.eval()
    with torch.no_grad():
        logits = net(recording.inputs("eval"))
    check("val_loss", task.loss(logits, recording.target("eval")), 0)
    check("final_eval_preds_sub", logits[:, :, ::8, ::8], None)
    check("final_eval_preds_norm", float(logits.norm()), None)
    buffers = dict(net.named_buffers())
    running = [buffers[str(net_name(str(name), recording.modalities))] for name in recording["bn_buffer_names"]]
    check("bn_running", norms(running), None)


@pytest.mark.parametrize(("path", "dtype", "mode"), cases())
def test_trajectory(path: Path, dtype: torch.dtype, mode: str) -> None:
    recording = Slices(path, dtype)
    moved: dict[tuple[str, int | None], np.ndarray] = {}

    def keep(key: str, got: object, step: int | None) -> None:
        moved[key, step] = plain(got)

    def check(key: str, got: object, step: int | None) -> None:
        # Where batches differ in size, every step has its own array.
        own = f"{mode}.{key}.{step}"
        spread = SPREAD * float(np.abs(plain(got) - moved[key, step]).max()) if moved else 0.0
        recording.check(own if own in recording else f"{mode}.{key}", got, step, spread=spread)

    if dtype == torch.float64:
        follow(recording, mode, keep, one_ulp_off=True)
    follow(recording, mode, check)


@pytest.fixture
def aux() -> dict[str, np.ndarray]:
    return arrays_of("aux.npz")


@pytest.mark.parametrize("case", [0, 1])
def test_loss_and_dice(aux: dict[str, np.ndarray], case: int) -> None:
    logits = torch.from_numpy(aux[f"seg.{case}.logits"]).double().requires_grad_()
    target = torch.from_numpy(aux[f"seg.{case}.target"]).long()
    loss = released_task().loss(logits, target)
    loss.backward()
    assert loss.item() == pytest.approx(float(aux[f"seg.{case}.loss_f64"]), rel=1e-12)
    np.testing.assert_allclose(logits.grad.numpy(), aux[f"seg.{case}.loss_grad"], rtol=2e-4, atol=1e-9)
    dice = region_dice(logits.argmax(1), target, smooth=1e-3).mean(0)
    np.testing.assert_allclose(dice.numpy(), aux[f"seg.{case}.dice_ET_TC_WT"], rtol=1e-6)
    assert float(dice.mean()) == pytest.approx(float(aux[f"seg.{case}.dice_mean"]), rel=1e-6)


@pytest.mark.parametrize("case", [0, 1, 2])
def test_cosine_schedule(aux: dict[str, np.ndarray], case: int) -> None:
    peak, final, epochs, steps, warmup_epochs, start = aux[f"sched.{case}.args"].tolist()
    total, warmup = int(epochs * steps), int(warmup_epochs * steps)
    got = [cosine_with_warmup(s, total, warmup, peak=peak, final=final, start=start) for s in range(total)]
    np.testing.assert_allclose(got, aux[f"sched.{case}.lr"], rtol=1e-12)
