"""Every recorded trajectory of the released code on sequences of features, followed step by step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import FoodRecording, Recording, norms, recordings
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cggm_ray import CGGM, JointTraining, Task
from cggm_ray.core.batch import Batch
from cggm_ray.engine.optim import clip_by_total_norm
from cggm_ray.models import sequence
from cggm_ray.models.released import guide_name
from cggm_ray.models.stacked import call_together

TYPES = {"f64": torch.float64, "f32": torch.float32}


def in_types(files: Iterable[Any]) -> Iterator[Any]:
    """Every recording in double and in single precision; whether a network of full size is followed, double precision says."""
    for file in files:
        for name, dtype in TYPES.items():
            slow = [pytest.mark.slow] if name == "f32" and str(file.id).endswith("_full") else []
            yield pytest.param((*file.values, dtype), id=f"{file.id}-{name}", marks=[*file.marks, *slow])


@pytest.fixture(params=in_types(each for kind in ("mosi", "iemo", "food") for each in recordings(f"{kind}*.npz")))
def recording(request: pytest.FixtureRequest) -> Recording:
    file, dtype = request.param
    return (FoodRecording if file.stem.startswith("food") else Recording)(file, dtype)


def released_strategy(
    recording: Recording, net: torch.nn.Module, guides: dict[str, torch.nn.Module], task: Task
) -> CGGM:
    return CGGM(
        guides,
        task=task,
        rho=recording.meta["rou"],
        lam=recording.meta["lamda"],
        coefficients="released",
        direction="released",
        optimizer=lambda parameters: recording.optimizer(parameters, "cls"),
        head=net.head,
        bodies=net.bodies(),
    )


def groups_of(recording: Recording, names: list[str]) -> dict[str, list[int]]:
    """Indices of the parameters in each recorded group: 'proj.0', 'encoders.2', 'fusion', and 'head' for the rest."""
    members: dict[str, list[int]] = {str(group): [] for group in recording["group_names"]}
    for index, name in enumerate(names):
        owner = next((group for group in members if name.startswith(f"{group}.")), "head")
        members[owner].append(index)
    return members


def total_norm(gradients: Iterable[torch.Tensor | None]) -> float:
    """L2 norm of all of them together; those that are None do not count."""
    return float(np.linalg.norm(norms(gradient for gradient in gradients if gradient is not None)))


@pytest.mark.parametrize("mode", ["none", "cggm"])
def test_trajectory(recording: Recording, mode: str) -> None:
    follow(recording, mode)


@pytest.mark.parametrize("mode", ["none", "cggm"])
@pytest.mark.parametrize("file", recordings("mosi_explode.npz"))
def test_trajectory_with_encoders_called_together(file: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself a network calls them together on a GPU only. The sequences of this recording have one length."""
    calls: list[int] = []

    def noting(modules: list[torch.nn.Module], *inputs: torch.Tensor) -> Any:
        calls.append(len(modules))
        return call_together(modules, *inputs)

    monkeypatch.setattr(sequence, "call_together", noting)
    recording = Recording(file)
    follow(recording, mode, together=True)
    assert calls == [3] * recording.meta["num_steps"]


def follow(recording: Recording, mode: str, *, together: bool | None = None) -> None:
    """Takes the steps of a recording and compares all that was recorded.

    Args:
        recording: in the type in which steps are taken.
        mode: 'none' or 'cggm'.
        together: that of the network.
    """
    torch.manual_seed(0)
    meta, task = recording.meta, recording.task
    net, guides = recording.build()
    net.together = together
    strategy = released_strategy(recording, net, guides, task) if mode == "cggm" else JointTraining(task=task)
    optimizer = recording.optimizer(net.parameters())
    schedule = ReduceLROnPlateau(optimizer, factor=0.1, patience=meta.get("when", 10))

    names = [str(name) for name in recording["param_names"]]
    by_name = dict(net.named_parameters())
    parameters = [by_name[recording.net_name(name)] for name in names]
    assert len(parameters) == len(by_name)
    guide_by_name = dict(torch.nn.ModuleDict(guides).named_parameters())
    guide_names = [str(name) for name in recording["cls_param_names"]]
    guide_parameters = [guide_by_name[str(guide_name(name, recording.modalities))] for name in guide_names]
    assert len(guide_parameters) == len(guide_by_name)
    # The key third of this bias has a zero gradient; Adam turns its rounding noise into moves (golden README).
    settled = np.array([not name.endswith("in_proj_bias") for name in names])
    guide_settled = np.array([not name.endswith("in_proj_bias") for name in guide_names])
    groups = groups_of(recording, names)
    batches = len(meta["batches"])

    def check(key: str, got: object, step: int, only: np.ndarray | None = None) -> None:
        recording.check(f"{mode}.{key}", got, step, only=only)

    for step in range(meta["num_steps"]):
        inputs, target = recording.inputs(f"in.{step % batches}"), recording.target(f"in.{step % batches}")
        assert optimizer.param_groups[0]["lr"] == pytest.approx(float(recording[f"{mode}.lr"][step]), rel=1e-6)
        optimizer.zero_grad(set_to_none=True)
        batch = Batch.of_loop(target, inputs=inputs)
        features, memo = strategy.transform(net.encode(inputs), batch)
        guide_logits = [] if memo is None else [head.logits for head, _ in memo.outputs]
        head = net.fuse(features)
        task_loss, extra, _ = strategy.terms(head, batch, memo)
        loss = task_loss + extra

        check("loss_task", task_loss, step)
        predictions = f"train_preds.{step}" if f"{mode}.train_preds.{step}" in recording else "train_preds"
        check(predictions, head.logits, step)
        if mode == "cggm":
            diagnostics = strategy.diagnostics
            if step:
                check("l_gm_used", diagnostics["direction_loss"], step)
            guide_loss = diagnostics["guide_loss"]
            check("loss_total", loss - guide_loss.sum(), step)
            check("cls_loss", guide_loss, step)
            check("cls_loss_sum", guide_loss.sum(), step)
            check("acc2", diagnostics["score"], step)
            check("coeff", diagnostics["coefficient"] / meta["rou"], step)
            check("cos", diagnostics["cosine"], step)
            check("l_gm", strategy.direction.next_value, step)
            guide_key = predictions.replace("train_preds", "train_cls_preds")
            check(guide_key, torch.stack(guide_logits), step)
            # What the released code has before it modulates: the same backward pass with all gates at one.
            scale = strategy.body_gates._scale_M
            strategy.body_gates.open(torch.ones_like(scale))
            before = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            strategy.body_gates.open(scale)
        loss.backward()
        after = [parameter.grad for parameter in parameters]
        before = before if mode == "cggm" else after

        check("gnorm_params_before", norms(before), step, settled)
        check("gnorm_groups_before", [total_norm(before[i] for i in g) for g in groups.values()], step)
        check("gnorm_total_before", total_norm(before), step)
        check("grad_out_w", net.head.weight.grad.flatten(), step)
        if mode == "cggm":
            check("gnorm_params_after", norms(after), step, settled)
            check("gnorm_groups_after", [total_norm(after[i] for i in g) for g in groups.values()], step)
            check("cls_gnorm", [total_norm(p.grad for p in guide.parameters()) for guide in guides.values()], step)

        strategy.move()
        total, _ = clip_by_total_norm(parameters, recording.encoders(net), meta["clip"])
        check("gnorm_total_clip", total, step)
        optimizer.step()
        check("param_norms", norms(parameters), step, settled)
        if mode == "cggm":
            check("cls_param_norms", norms(guide_parameters), step, guide_settled)

        if (step + 1) % batches == 0:
            net.eval()
            with torch.no_grad():
                logits = net(recording.inputs("eval"))
                loss = task.loss(logits, recording.target("eval"))
            net.train()
            check("val_loss", loss, step // batches)
            schedule.step(float(loss))

    net.eval()
    with torch.no_grad():
        features = net.encode(recording.inputs("eval"))
        recording.check(f"{mode}.final_eval_preds", net.fuse(features).logits)
        recording.check(f"{mode}.final_eval_hs_norm", norms(features.values()))
        if mode == "cggm":
            strategy.eval()
            logits = torch.stack([guide(features[name]).logits for name, guide in strategy.guides.items()])
            recording.check("cggm.final_eval_cls_preds", logits)
            recording.check("cggm.final_cls_param_norms", norms(guide_parameters), only=guide_settled)
    recording.check(f"{mode}.final_param_norms", norms(parameters), only=settled)


@pytest.mark.parametrize("prefix", ["init_eval", "pad"])
def test_initial_forward(recording: Recording, prefix: str) -> None:
    if f"{prefix}.preds" not in recording:
        pytest.skip(f"this recording has no {prefix}.* arrays")
    net, guides = recording.build()
    net.eval()
    inputs = recording.inputs("eval" if prefix == "init_eval" else "pad.in")
    with torch.no_grad():
        if prefix == "pad":
            for encoder in net.encoders.values():
                encoder.proj.bias[0] = 0
        features = net.encode(inputs)
        recording.check(f"{prefix}.preds", net.fuse(features).logits)
        logits = torch.stack([guide.eval()(features[name]).logits for name, guide in guides.items()])
        recording.check(f"{prefix}.cls_preds", logits)
    recording.check(f"{prefix}.hs_norm", norms(features.values()))
    recording.check(f"{prefix}.hs_tok0", torch.stack([h[:, 0] for h in features.values()]))
    recording.check(f"{prefix}.hs_last", torch.stack([h[:, -1] for h in features.values()]))
