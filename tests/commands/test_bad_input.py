"""Bad input: one clear line, exit code 2, before any worker starts and before anything is written."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cggm_ray.__main__ import main as program
from cggm_ray.commands.cli import main
from cggm_ray.engine.configuration import Config
from cggm_ray.report.run_record import read_run_record
from cggm_ray.runs.result import read_summary
from conftest import SMALL, sets, small_set, write_pickle

Content = dict[str, dict[str, Any]]


class Command:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def drop(split: str, field: str | None = None) -> Callable[[Content], Any]:
    def change(content: Content) -> Any:
        del (content[split] if field else content)[field or split]
        return content

    return change


def put(split: str, field: str, value: Callable[[np.ndarray], Any]) -> Callable[[Content], Any]:
    def change(content: Content) -> Any:
        content[split][field] = value(content[split][field])
        return content

    return change


def with_value(index: tuple[int, ...], value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[index] = value
        return array

    return change


def empty(content: Content) -> Content:
    content["valid"] = {name: values[:0] for name, values in content["valid"].items()}
    return content


CONTENTS: dict[str, tuple[Callable[[Content], Any], list[str]]] = {
    "not a dict": (lambda content: [1], ["found a list", "train, valid, test"]),
    "missing split": (drop("valid"), ["split valid is missing", "found train, test"]),
    "split is no dict": (lambda c: c | {"test": 3}, ["split test", "found a int"]),
    "missing modality": (drop("test", "audio"), ["split test", "field audio is missing"]),
    "missing labels": (drop("train", "labels"), ["split train", "field labels is missing"]),
    "counts differ": (put("train", "vision", lambda a: a[:-1]), ["split train, field vision", "21 samples", "has 22"]),
    "two axes in place of three": (
        put("valid", "text", lambda a: a[:, 0]),
        ["split valid, field text", "2 axes", "[N, T, D]"],
    ),
    "width differs": (put("test", "audio", lambda a: a[:, :, :3]), ["split test, field audio", "(4, 3)", "(4, 16)"]),
    "NaN in text": (
        put("train", "text", with_value((7, 2, 1), np.nan)),
        ["split train, field text, sample 7", "nan", "step 2"],
    ),
    "NaN in audio": (
        put("test", "audio", with_value((3, 0, 0), np.nan)),
        ["split test, field audio, sample 3", "nan"],
    ),
    "infinite vision": (
        put("test", "vision", with_value((2, 0, 0), np.inf)),
        ["split test, field vision, sample 2", "inf"],
    ),
    "label that is not a number": (
        put("valid", "labels", with_value((5, 0, 0), np.nan)),
        ["split valid, target labels, row 5", "nan"],
    ),
    "two labels a sample": (
        put("train", "labels", lambda a: a.repeat(2, 1)),
        ["target labels", "(22, 2, 1)", "one number for each sample", "--target_index 0 to 1"],
    ),
    "empty split": (empty, ["split valid: the split is empty"]),
    "texts in place of numbers": (
        put("train", "audio", lambda a: a.astype(str)),
        ["split train, field audio", "expected an array of numbers"],
    ),
    "rows of several widths": (
        put("train", "audio", lambda a: [*a[:-1], a[-1][:, :3]]),
        ["field audio, row 21", "shape (4, 3)", "row 0 has (4, 16)"],
    ),
    "no time step": (
        put("train", "audio", lambda a: a[:, :0]),
        ["field audio", "(22, 0, 16)", "at least one time step"],
    ),
    "fewer names than samples": (
        lambda c: c | {"test": c["test"] | {"id": np.arange(3)}},
        ["split test, field id", "3 names", "7 samples"],
    ),
}


@pytest.fixture
def failing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command line; returns its one line of error, after checking code 2 and that nothing was started."""

    def run(*flags: str | Path) -> str:
        storage = tmp_path / "storage"
        code = main(Config(), [*SMALL, "--storage_path", str(storage), "--name", "run", *map(str, flags)])
        captured = capsys.readouterr()
        lines = captured.err.splitlines()
        assert code == 2, captured.err
        assert len(lines) == 1, captured.err
        assert lines[0].startswith("error: ")
        # The first lines of a run say where it is, before its data is looked at.
        assert all(line.startswith(("run: ", "  ")) for line in captured.out.splitlines())
        assert not (storage / "run").exists()
        assert not sets(storage / "shards")
        ray = sys.modules.get("ray")
        assert ray is None or not ray.is_initialized()
        return lines[0]

    return run


@pytest.mark.parametrize("local", [True, False], ids=["local", "ray"])
@pytest.mark.parametrize("name", CONTENTS)
def test_content(failing: Callable[..., str], tmp_path: Path, name: str, local: bool) -> None:
    change, expected = CONTENTS[name]
    path = write_pickle(tmp_path / "bad.pkl", change(small_set()))
    line = failing("--data_path", path, *(["--local"] if local else []))
    for text in [str(path), *expected]:
        assert text in line


def test_missing_file(failing: Callable[..., str], tmp_path: Path) -> None:
    assert f"{tmp_path / 'none.pkl'} does not exist" in failing("--data_path", tmp_path / "none.pkl")


def test_folder_without_pickle(failing: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert "found 0 .pkl files; expected mosi_data_noalign.pkl" in failing("--data_path", tmp_path / "data")


def test_truncated(failing: Callable[..., str], tmp_path: Path, small_pickle: Path) -> None:
    path = tmp_path / "short.pkl"
    path.write_bytes(small_pickle.read_bytes()[:-1000])
    assert "short.pkl" in failing("--data_path", path)


def test_code_is_refused_and_not_run(failing: Callable[..., str], tmp_path: Path) -> None:
    path = write_pickle(tmp_path / "evil.pkl", small_set() | {"more": Command(f"touch {tmp_path / 'executed'}")})
    line = failing("--data_path", path)
    assert "evil.pkl: refused to load" in line
    assert "system" in line
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--batch_size 2 --workers 3", "batch_size: found 2 samples for 3 workers"),
        ("--num_heads 3", "num_heads: 3 heads do not divide the width proj_dim 8"),
        (
            "--modulation cgm",
            "unknown strategy 'cgm' (did you mean cggm?); available: agm, amco, cggm, ",
        ),
        ("--coefficients stabel", "coefficients: unknown 'stabel' (did you mean stable?)"),
        ("--modulation none --direction off", "direction: the strategy 'none' has no such part"),
        ("--nlevels 2", "nlevels: found 2; expected a whole number of at least 3"),
        ("--lr fast", "lr: found 'fast'; expected a number"),
        ("--lr nan", "lr: found 'nan'; expected a number"),
        ("--num_epochs 0", "num_epochs: found 0"),
        ("--num_epochs 1.5", "num_epochs: found '1.5'; expected a whole number"),
        ("--attn_dropout 1", "attn_dropout: found 1.0; expected a probability in [0, 1)"),
        ("--optim Adm", "optim: unknown 'Adm' (did you mean Adam?)"),
        ("--warmup 3", "unknown flag --warmup (did you mean warmup_epochs, warmup_share, warmup_lr?)"),
        ("--bacth_size 3", "unknown flag --bacth_size (did you mean batch_size?)"),
        ("--attn_mask", "attn_mask: the released code parsed this flag and never used it"),
        ("stray", "unexpected argument 'stray'"),
        ("--seed", "argument --seed: expected one argument"),
        ("--use_gpu --no_cuda", "use_gpu: given together with no_cuda"),
        ("--local --workers 2", "workers: found 2 with --local"),
        ("--local --workers 1:2", "workers: found 1:2 with --local"),
        ("--batch_size 7 --workers 2:8", "batch_size: found 7 samples for 8 workers"),
        ("--workers 0", "workers: found '0'; expected a whole number of at least 1"),
        (
            "--workers 4:2",
            "workers: found '4:2'; expected a whole number of at least 1, or the smallest and the largest",
        ),
        ("--workers 2:b", "workers: found '2:b'; expected"),
        ("--max_failures -1", "max_failures: found -1; expected a whole number of at least 0"),
        ("--storage_path http://host/x", "storage_path: found the URL"),
        ("--name a/b", "name: found 'a/b'; expected a plain folder name"),
        ("--config none.yaml", "config: none.yaml cannot be read"),
        ("--dataset mosy", "unknown dataset 'mosy' (did you mean mosi?)"),
    ],
)
def test_flags(failing: Callable[..., str], small_pickle: Path, flags: str, expected: str) -> None:
    assert expected in failing("--data_path", small_pickle, *flags.split())


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--utility dice", "utility: Regression has no utility 'dice'; available: mae, sign"),
        (
            "--select accuracy",
            "select: no validation metric 'accuracy' (did you mean acc7?); available: loss, mae, corr",
        ),
        (
            "--modalities text,smell --modulation none",
            "modalities: mosi has no 'smell'; available: text, audio, vision",
        ),
        ("--modalities text --modulation ogm", "modulation: 'ogm' balances at least two modalities, found 1: text"),
    ],
)
def test_what_only_the_data_can_tell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], small_pickle: Path, flags: str, expected: str
) -> None:
    argv = [*SMALL, "--local", "--data_path", str(small_pickle), "--storage_path", str(tmp_path), "--name", "run"]
    assert main(Config(), [*argv, *flags.split()]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert expected in lines[0]
    assert not (tmp_path / "run").exists()


def test_one_modality_alone_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str], small_pickle: Path) -> None:
    argv = [
        *SMALL,
        "--local",
        "--data_path",
        str(small_pickle),
        "--storage_path",
        str(tmp_path),
        "--modalities",
        "audio",
    ]
    assert main(Config(), [*argv, "--name", "none", "--modulation", "none"]) == 0
    capsys.readouterr()
    assert main(Config(), [*argv, "--name", "default"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("modulation: ")]
    assert said == [
        "modulation: cggm balances at least two modalities, and there is one, audio: it is trained without balancing "
        "(--modulation none)"
    ]
    assert read_summary(tmp_path / "default").test == read_summary(tmp_path / "none").test
    assert program(["verify", str(tmp_path / "default")]) == 0
    assert read_run_record(tmp_path / "default").config.modulation.modulation == "none"
    assert main(Config(), [*argv, "--name", "both", "--compare", "none,cggm"]) == 2
    assert "compare: strategies balance at least two modalities, found 1: audio" in capsys.readouterr().err
