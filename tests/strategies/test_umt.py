"""UMT against its formula; and the runs that it takes for teachers."""

from __future__ import annotations

import doctest
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from strategy_cases import linear_inputs, linear_net, lines, run, umt_flags
from torch import nn

import cggm_ray.strategies.umt
from cggm_ray import Classification, UsageError
from cggm_ray.commands.cli import main
from cggm_ray.engine.checkpoints import Checkpoints
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.state import TENSORS, WEIGHTS
from cggm_ray.engine.teachers import find_teachers
from cggm_ray.strategies.umt import UMT
from conftest import SMALL, small_set, write_pickle

ALPHA = 0.7
TASK = Classification(3)


def test_loss_and_gradients() -> None:
    net = linear_net(3)
    torch.manual_seed(8)
    teachers = {name: nn.Linear(5, 4).double() for name in net.encoders}
    before = {name: [p.clone() for p in teacher.parameters()] for name, teacher in teachers.items()}
    inputs, target = linear_inputs(net)
    there = torch.tensor([True, False, True, True, False, True, True])
    rows = {"a": there.numpy(), "b": np.ones(7, bool), "c": np.ones(7, bool)}
    mean_square, slope = {}, {}
    for name, encoder in net.encoders.items():
        x = inputs[name].numpy()
        w, b = (p.detach().numpy() for p in encoder.parameters())
        v, c = (p.detach().numpy() for p in teachers[name].parameters())
        apart = ((x @ w.T + b) - (x @ v.T + c))[rows[name]]
        mean_square[name] = (apart**2).mean()
        slope[name] = 2 * apart.T @ x[rows[name]] / apart.size
    net.zero_grad()
    TASK.loss(net(inputs), target).backward()
    joint = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()

    balance = UMT(teachers, task=TASK, alpha=ALPHA).train()
    balance.see(inputs)
    features = net.encode(inputs)
    seen = balance.modulate(features, target, {"a": there})
    assert all(seen[name] is features[name] for name in features)
    head = net.fuse(seen)
    extra = balance.loss(head.logits, head.hidden, target)
    assert extra.item() == pytest.approx(ALPHA * sum(mean_square.values()), rel=1e-12)
    (TASK.loss(head.logits, target) + extra).backward()
    for name, encoder in net.encoders.items():
        want = joint[f"encoders.{name}.weight"].numpy() + ALPHA * slope[name]
        assert np.allclose(encoder.weight.grad.numpy(), want, rtol=1e-10), name
        assert all(
            p.grad is None and torch.equal(p, q) for p, q in zip(teachers[name].parameters(), before[name], strict=True)
        )
    assert torch.allclose(net.head.weight.grad, joint["head.weight"], rtol=1e-12)


def test_teachers_stay_in_evaluation_mode() -> None:
    balance = UMT({"a": nn.Dropout(0.5), "b": nn.Dropout(0.5)}, task=TASK)
    nn.ModuleList([balance]).train()
    assert not any(part.training for part in balance.teachers.modules())
    assert balance.training


def test_what_was_not_seen_is_an_error() -> None:
    net = linear_net()
    inputs, target = linear_inputs(net)
    balance = UMT(dict(net.encoders), task=TASK)
    with pytest.raises(RuntimeError, match=r"call balance\.see\(inputs\)"):
        balance.modulate(net.encode(inputs), target)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """Data, the folder of runs with a teacher for each modality, and the flag that names them."""
    folder = tmp_path_factory.mktemp("taught")
    pickle = write_pickle(folder / "small.pkl", small_set())
    return pickle, folder, umt_flags(pickle, folder)


def refused(taught: tuple[Path, Path, list[str]], capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    pickle, folder, _ = taught
    places = ["--local", "--data_path", str(pickle), "--storage_path", str(folder), "--name", "student"]
    capsys.readouterr()
    assert main(Config(), [*places, *SMALL, "--modulation", "umt", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_runs_that_are_no_teachers(
    taught: tuple[Path, Path, list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pickle, folder, (flag, names) = taught
    whole = run(pickle, folder, "whole", "--modulation", "none", "--num_epochs", "1")
    assert "found none; expected a finished run for each of text, audio, vision" in refused(taught, capsys)
    assert "found teachers of audio, text; expected one for each" in refused(
        taught, capsys, flag, "teacher-text,teacher-audio"
    )
    assert "are of 'text'; expected one of them" in refused(
        taught, capsys, flag, f"{names},teacher-text/../teacher-text"
    )
    assert f"{folder / 'nobody' / 'best'} is not the best checkpoint" in refused(taught, capsys, flag, "nobody")
    assert "was trained with all modalities; expected one" in refused(taught, capsys, flag, str(whole))
    assert "was trained with proj_dim 8, this run has 4" in refused(taught, capsys, flag, names, "--proj_dim", "4")
    shutil.copytree(folder / "teacher-text", tmp_path / "damaged")
    tensors = load_file(tmp_path / "damaged" / "best" / WEIGHTS)
    tensors["encoders.text.proj.weight"] = tensors["encoders.text.proj.weight"][:, 1:].contiguous()
    save_file(tensors, tmp_path / "damaged" / "best" / WEIGHTS)
    teachers = f"{tmp_path / 'damaged'},teacher-audio,teacher-vision"
    assert "does not fit the encoder of 'text' in this run: " in refused(taught, capsys, flag, teachers)


def test_another_dataset_is_refused(taught: tuple[Path, Path, list[str]]) -> None:
    _, folder, _ = taught
    config = Config().replace({"dataset": "iemocap", "storage_path": str(folder)})
    with pytest.raises(UsageError, match="was trained on 'mosi', this run is on 'iemocap'"):
        find_teachers(config, ["teacher-text"], ["text"])


def test_features_come_nearer_and_the_state_holds_the_teachers(taught: tuple[Path, Path, list[str]]) -> None:
    pickle, folder, flags = taught
    chosen = ["--modulation", "umt", *flags, "--umt_alpha", "5"]
    whole = run(pickle, folder, "taught", *chosen, "--num_epochs", "6", "--lr", "0.003")
    records = lines(whole)
    for name in ("text", "audio", "vision"):
        assert float(str(records[-1][f"distance/{name}"])) < float(str(records[0][f"distance/{name}"])), name
    checkpoint = Checkpoints(folder / "taught").newest()
    assert checkpoint is not None
    weights = load_file(checkpoint / TENSORS)
    teacher = load_file(folder / "teacher-text" / "best" / WEIGHTS)
    kept = "/strategy/teachers.encoders.text.proj.weight"
    assert torch.equal(weights[kept], teacher["encoders.text.proj.weight"])


def test_a_comparison_finds_teachers_by_their_names(taught: tuple[Path, Path, list[str]]) -> None:
    """Its runs have another `storage_path` than the one in which the names are."""
    pickle, folder, flags = taught
    run(pickle, folder, "pair", *flags, "--compare", "none,umt", "--num_epochs", "1")
    config = yaml.safe_load((folder / "pair" / "trials" / "umt-seed-666" / "config.yaml").read_text())
    assert config["umt"]["umt_teachers"] == [str(folder / f"teacher-{name}") for name in ("text", "audio", "vision")]


def test_its_example() -> None:
    result = doctest.testmod(cggm_ray.strategies.umt)
    assert result.attempted > 10
    assert result.failed == 0
