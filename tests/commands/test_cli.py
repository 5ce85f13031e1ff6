"""Flags, files and their order; the released code's names."""

from __future__ import annotations

import dataclasses
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cggm_ray.commands.cli import main, parse
from cggm_ray.commands.flags import build_parser
from cggm_ray.core.errors import UsageError
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.settings import TrainConfig
from conftest import SMALL

RELEASED = {
    "--modulation cggm": ("modulation", "modulation", "cggm"),
    "--data_path x.pkl": ("data", "data_path", "x.pkl"),
    "--attn_dropout 0.3": ("model", "attn_dropout", 0.3),
    "--relu_dropout 0.3": ("model", "relu_dropout", 0.3),
    "--embed_dropout 0.3": ("model", "embed_dropout", 0.3),
    "--res_dropout 0.3": ("model", "res_dropout", 0.3),
    "--out_dropout 0.3": ("model", "out_dropout", 0.3),
    "--nlevels 4": ("model", "nlevels", 4),
    "--cls_layers 1": ("model", "cls_layers", 1),
    "--num_heads 8": ("model", "num_heads", 8),
    "--proj_dim 80": ("model", "proj_dim", 80),
    "--batch_size 32": ("train", "batch_size", 32),
    "--clip 0.5": ("optim", "clip", 0.5),
    "--lr 2e-3": ("optim", "lr", 2e-3),
    "--cls_lr 1e-4": ("optim", "cls_lr", 1e-4),
    "--optim AdamW": ("optim", "optim", "AdamW"),
    "--num_epochs 7": ("train", "num_epochs", 7),
    "--when 3": ("optim", "when", 3),
    "--rou 1.1": ("modulation", "rho", 1.1),
    "--rho 1.1": ("modulation", "rho", 1.1),
    "--lamda 0.1": ("modulation", "lam", 0.1),
    "--lambda 0.1": ("modulation", "lam", 0.1),
    "--log_interval 5": ("train", "log_interval", 5),
    "--seed 1": ("train", "seed", 1),
    "--no_cuda": ("run", "no_cuda", True),
}


@pytest.mark.parametrize("flag", RELEASED)
def test_released_flags_keep_their_names(flag: str) -> None:
    section, field, value = RELEASED[flag]
    config = parse(Config(), flag.split()).config
    assert getattr(getattr(config, section), field) == value


def test_released_defaults() -> None:
    config = Config().to_dict()
    want = {
        "model": {
            "attn_dropout": 0.15,
            "relu_dropout": 0.15,
            "embed_dropout": 0.2,
            "res_dropout": 0.1,
            "out_dropout": 0.1,
        }
        | {"nlevels": 5, "cls_layers": 2, "num_heads": 5, "proj_dim": 40},
        "optim": {"clip": 0.8, "lr": 1e-3, "cls_lr": 5e-4, "optim": "Adam", "when": 10},
        "train": {"batch_size": 64, "num_epochs": 30, "log_interval": 30, "seed": 666},
        "modulation": {"rho": 1.3, "lam": 0.2},
    }
    for section, fields in want.items():
        assert {name: config[section][name] for name in fields} == fields


def test_flags_go_before_the_file_and_the_file_before_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("lambda: 0.05\ntrain: {batch_size: 8, seed: 2}\nmodulation: none\n")
    recipe = Config(train=TrainConfig(batch_size=4, seed=1, num_epochs=9))
    config = parse(recipe, ["--seed", "3", "--config", str(file)]).config
    assert (config.train.seed, config.train.batch_size, config.train.num_epochs) == (3, 8, 9)
    assert (config.modulation.lam, config.modulation.modulation) == (0.05, "none")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bath_size: 3", "unknown key 'bath_size' (did you mean batch_size?)"),
        ("- 1", "holds a list; expected a mapping"),
        ("a: [", "is not yaml"),
        ("train: 3", "section train holds 3; expected a mapping"),
        ("batch_size: many", "batch_size: found 'many'; expected a whole number"),
        ("x: !!python/object/apply:os.system ['true']", "is not yaml"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as error:
        parse(Config(), ["--config", str(file)])
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["workers: 2:8", "workers: '2:8'", "run: {workers: 2:8}"])
def test_a_range_of_workers_is_no_number_to_base_60(tmp_path: Path, text: str) -> None:
    file = tmp_path / "elastic.yaml"
    file.write_text(text)
    config = parse(Config(), ["--config", str(file)]).config
    assert (config.run.workers, config.run.min_workers, config.run.max_workers) == ("2:8", 2, 8)
    file.write_text(yaml.safe_dump(config.to_dict()))
    assert yaml.safe_load(file.read_text())["run"]["workers"] == "2:8"
    assert parse(Config(), ["--config", str(file)]).config.run == config.run


def test_a_number_of_workers(tmp_path: Path) -> None:
    file = tmp_path / "fixed.yaml"
    file.write_text("workers: 4")
    run = parse(Config(), ["--config", str(file)]).config.run
    assert (run.workers, run.min_workers, run.max_workers) == ("4", 4, 4)


def test_dry_run_prints_what_config_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--rou", "1.1", "--modulation", "cggm-released", "--modalities", "text,audio", "--use_gpu"]
    assert main(Config(), [*flags, "--dry_run"]) == 0
    printed = capsys.readouterr().out
    resolved = yaml.safe_load(printed)
    assert resolved["modulation"]["coefficients"] == "released"
    assert resolved["modulation"]["gate"] == "body"
    file = tmp_path / "resolved.yaml"
    file.write_text(printed)
    again = parse(Config(), ["--config", str(file)]).config
    assert again.to_dict() == resolved


def test_parts_can_be_set_by_themselves() -> None:
    flags = ["--modulation", "cggm", "--coefficients", "paper", "--direction", "off", "--gate", "body"]
    config = parse(Config(), flags).config
    assert config.to_dict()["modulation"]["coefficients"] == "paper"
    assert (config.modulation.direction, config.modulation.gate) == ("off", "body")
    assert Config().to_dict()["modulation"]["coefficients"] == "stable"


def test_every_field_has_a_flag_with_help() -> None:
    parser = build_parser(Config())
    helps = {action.dest: action.help for action in parser._actions}
    for _, key in Config().fields():
        assert helps[key.name]
    assert "--lamda" in parser.format_help()


SETTING_UP = {"at_least", "one_of", "__post_init__", "build_parser", "replace", "to_dict"}
"""Functions that read all fields to check, copy or write them, which is no use of a field."""
READ_ELSEWHERE = {
    *("resize_interval", "max_failures", "contributions_seconds", "headroom_seconds", "allow_config_change", "minutes"),
}
"""Fields of runs on Ray, of searches, of the report, of the head-room and of continued runs, which other tests cover."""


def test_a_run_uses_every_field(small_pickle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag whose value is never read would be accepted and ignored."""
    used = set()

    def observed(names: set[str]) -> Callable[[object, str], object]:
        def read(part: object, name: str) -> object:
            if name in names and sys._getframe(1).f_code.co_name not in SETTING_UP:
                used.add(name)
            return object.__getattribute__(part, name)

        return read

    config = Config()
    sections = {name: config.sections()[name] for name in ("data", "model", "modulation", "train", "optim", "run")}
    fields = {name: {key.name for key in dataclasses.fields(part)} for name, part in sections.items()}
    for name, part in sections.items():
        monkeypatch.setattr(type(part), "__getattribute__", observed(fields[name]))
    flags = ["--local", "--data_path", str(small_pickle), "--storage_path", str(tmp_path), *SMALL, "--num_epochs", "1"]
    for schedule in ("plateau", "cosine", "step"):
        assert main(Config(), [*flags, "--name", schedule, "--schedule", schedule]) == 0
    assert set().union(*fields.values()) - used == READ_ELSEWHERE


@pytest.mark.parametrize(
    ("flags", "network", "told"),
    [
        ([], "composed", False),
        (["--nlevels", "3"], None, True),
        (["--network", "sequence", "--nlevels", "3"], "sequence", False),
        (["--preset", "released", "--nlevels", "3"], None, False),
    ],
)
def test_a_size_keeps_the_network_that_has_it(flags: list[str], network: str | None, told: bool) -> None:
    recipe = runpy.run_path(str(Path(__file__).parents[2] / "pipelines" / "features.py"))["RECIPE"]
    command = parse(recipe, flags)
    assert command.config.model.network == network
    # Another network than the preset's has none of its options, which it would refuse.
    assert (command.config.networks == Config().networks) == (network != "composed")
    assert bool(command.remarks) == told
    assert all("nlevels" in remark and "composed" in remark for remark in command.remarks)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ["--fusion", "gated"],
            "fusion: the network 'sequence' has no such option; leave it out, or take --network composed",
        ),
        (["--network", "composed", "--nlevels", "3"], "nlevels: the network 'composed' has no such size"),
    ],
)
def test_what_belongs_to_another_network_is_refused(
    small_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], expected: str
) -> None:
    argv = ["--local", "--data_path", str(small_pickle), "--storage_path", str(tmp_path), "--name", "run", *flags]
    assert main(Config(), argv) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
