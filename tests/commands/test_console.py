"""The console program: recipes by name, flags as people type them, and the runs of a folder."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cggm_ray.__main__ import main
from cggm_ray.commands.flags import REFUSED, SYNONYMS, build_parser
from cggm_ray.engine.configuration import Config
from cggm_ray.recipes.base import RECIPES, SEARCHES
from cggm_ray.strategies.registry import STRATEGIES
from conftest import small_set, write_pickle

ROOT = Path(__file__).parents[2]


def settings(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, dict[str, object]]:
    assert main([*argv, "--dry_run"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("name", ["brats", "features", "food101", "iemocap", "mosi", "table"])
def test_a_recipe_is_its_pipeline(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = ROOT / "pipelines" / f"{name}.py"
    if not script.exists():
        pytest.skip("the pipelines are not beside the tests")
    monkeypatch.setattr(sys, "argv", [str(script), "--dry_run"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert settings(capsys, "train", name) == yaml.safe_load(printed)


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    told = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +\S", told, re.MULTILINE) for name in RECIPES.names())
    assert main(["train"]) == 2


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["train", "mosy"], "unknown recipe 'mosy' (did you mean mosi?)"),
        (["train", "--local", "mosi"], "expected RECIPE before the flags"),
        (["tune", "mosi"], "tune: found mosi; expected RECIPE SEARCH before the flags, such as mosi mosi_asha"),
        (["tune", "mosi", "mosi_ash"], "no search of that name (did you mean mosi_asha?)"),
        (["compare", "mosi", "none"], "expected at least two different strategies"),
        (["train", "mosi", "--learning_rat", "1"], "unknown flag --learning_rat (did you mean lr?)"),
        (["train", "mosi", "--resume"], "resume: a run goes on where it stopped"),
    ],
)
def test_one_line_for(argv: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    told = capsys.readouterr()
    assert expected in told.err
    assert told.err.count("\n") == 1
    assert not told.out


@pytest.mark.parametrize(
    ("flags", "section", "field", "value"),
    [
        (["--num-epochs", "3"], "train", "num_epochs", 3),
        (["--epochs=3"], "train", "num_epochs", 3),
        (["--learning-rate", "0.25"], "optim", "lr", 0.25),
        (["--learning_rate=0.25"], "optim", "lr", 0.25),
        (["--strategy", "ogm"], "modulation", "modulation", "ogm"),
        (["--output-dir", "a-b"], "run", "storage_path", "a-b"),
        (["--use-gpu", "--name", "x-y"], "run", "name", "x-y"),
    ],
)
def test_flags_as_people_type_them(
    flags: list[str], section: str, field: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert settings(capsys, "train", "mosi", *flags)[section][field] == value


def test_a_synonym_means_a_flag_and_is_none_itself() -> None:
    flags = {name for action in build_parser(Config())._actions for name in action.option_strings}
    assert {f"--{name}" for name in SYNONYMS.values()} <= flags
    assert not {f"--{name}" for name in SYNONYMS} & flags


def test_the_page_lists_synonyms_and_what_is_refused() -> None:
    page = (ROOT / "docs" / "migration.md").read_text()
    part = page[page.index("## Flags of other programs") : page.index("## What differs on purpose")]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| `--")]
    found = {name.strip("`-"): meaning for names, meaning in rows for name in names.split(", ")}
    wanted = {name: f"`--{flag}`" for name, flag in SYNONYMS.items()} | REFUSED
    assert found == {name: meaning for name, meaning in wanted.items() if name != "attn_mask"}


def test_the_help_has_the_flags_of_what_is_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*argv: str) -> str:
        with pytest.raises(SystemExit):
            main(["train", "mosi", *argv])
        return capsys.readouterr().out

    assert "--agm_alpha" not in shown("--help")
    assert "--agm_alpha" in shown("--modulation", "agm", "--help")
    assert "--fusion" not in shown("--help")
    assert "--fusion" in shown("--network", "composed", "--help")
    assert all(name in shown("--help-all") for name in ("--agm_alpha", "--fusion"))
    assert "--rho float" in shown("--help")
    joint, composed = shown("--modulation", "none", "--help"), shown("--network", "composed", "--help")
    assert not any(f"\n  {name} " in joint for name in ("--rho", "--lam", "--coefficients", "--direction", "--gate"))
    assert "\n  --nlevels " in joint
    assert "\n  --nlevels " not in composed
    assert f"one of {', '.join(STRATEGIES.names())}"[:30] in " ".join(shown("--help").split())


def test_searches_by_name() -> None:
    names = {path.stem for path in SEARCHES.glob("*.yaml")}
    assert "mosi_asha" in names
    linked = ROOT / "tune_configs"
    if linked.is_dir():
        assert {path.stem for path in linked.glob("*.yaml")} == names
        assert all(path.resolve().parent == SEARCHES for path in linked.glob("*.yaml"))


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs, one of them moved aside, and one that has not begun to train."""
    small_pickle = write_pickle(tmp_path_factory.mktemp("raw") / "small.pkl", small_set())
    storage = tmp_path_factory.mktemp("runs")
    flags = ["--local", "--data_path", str(small_pickle), "--storage_path", str(storage), "--num_epochs", "2"]
    flags += ["--nlevels", "3", "--report", "false"]
    assert main(["train", "mosi", *flags, "--name", "first"]) == 0
    assert main(["train", "mosi", *flags, "--name", "first", "--fresh", "--modulation", "none"]) == 0
    shutil.copytree(storage / "first", storage / "second")
    (storage / "second" / "summary.json").unlink()
    return storage


def test_runs_are_listed(storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "list", str(storage)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines.keys() == {"run", "first", "first.1", "second"}
    assert " finished " in lines["first"]
    assert " none " in lines["first"]
    assert " cggm " in lines["first.1"]
    assert "stopped after epoch 2 of 2" in lines["second"]
    (tmp_path / "good" / "search").mkdir(parents=True)
    assert main(["runs", "list", str(tmp_path)]) == 0
    assert "search before a run, not finished" in capsys.readouterr().out
    assert main(["runs", "list", str(storage / "nothing")]) == 2


def test_a_run_is_shown(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "show", str(storage / "first")]) == 0
    told = capsys.readouterr().out
    assert re.search(r"modulation.modulation +none", told)
    assert "best epoch" in told
    assert "started:" in told


def test_a_reader_that_has_gone_ends_the_command_without_a_word(storage: Path) -> None:
    command = [sys.executable, "-m", "cggm_ray", "runs", "show", str(storage / "first")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_cleaning_keeps_what_results_need(storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "runs"
    shutil.copytree(storage, mine)
    shutil.copytree(next((mine / "shards").glob("mosi-*")), mine / "shards" / "mosi-other")
    (mine / "second" / ".x.0123abcd.part").write_text("half")
    before = set(mine.rglob("*"))
    assert main(["runs", "clean", str(mine)]) == 0
    told = capsys.readouterr().out
    assert set(mine.rglob("*")) == before
    paths = {line.split()[0] for line in told.splitlines() if line.startswith(str(mine))}
    expected = {"first/checkpoints", "first.1", "second/.x.0123abcd.part", "shards/mosi-other"}
    assert paths == {str(mine / name) for name in expected}
    assert main(["runs", "clean", str(mine), "--delete"]) == 0
    assert not any((mine / name).exists() for name in expected)
    capsys.readouterr()
    # What is left is whole: the finished run is verified, and the other one goes on.
    assert main(["verify", str(mine / "first")]) == 0
    assert (mine / "second" / "checkpoints").is_dir()


def test_cleaning_leaves_a_run_that_is_being_written(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "runs"
    shutil.copytree(storage, mine)
    hold = (
        "import sys; from pathlib import Path; from cggm_ray.runs.folder import sole_owner\n"
        "with sole_owner(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(mine / "first")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    try:
        assert main(["runs", "list", str(mine)]) == 0
        assert re.search(r"^first +running", capsys.readouterr().out, re.MULTILINE)
        assert main(["runs", "clean", str(mine), "--delete"]) == 0
    finally:
        holder.communicate()
    assert (mine / "first" / "checkpoints").exists()
    assert list((mine / "shards").glob("mosi-*"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cggm tr", {"train"}),
        ("cggm train mo", {"mosei", "mosi"}),
        ("cggm train mosi --num_e", {"--num_epochs"}),
        ("cggm tune mosi mosi_a", {"mosi_asha"}),
        ("cggm runs cl", {"clean"}),
    ],
)
def test_a_shell_completes(line: str, expected: set[str], tmp_path: Path) -> None:
    environment = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    environment |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "found"), "_ARGCOMPLETE_IFS": " ", "IFS": " "}
    subprocess.run(
        [sys.executable, "-m", "cggm_ray"], env=os.environ | environment, check=True, capture_output=True, cwd=ROOT
    )
    assert {word.strip() for word in (tmp_path / "found").read_text().split()} == expected


def test_a_flag_of_lists_that_may_be_repeated_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--modality", "tab=age,site", "--modality=lab=crp", "--column", "age=numeric"]
    options = settings(capsys, "train", "table", *flags)["options"]
    assert options["modality"] == ["tab=age", "site", "lab=crp"]
    assert options["column"] == ["age=numeric"]
