"""A strategy that is defined outside of the package brings its own flags, and says which tasks it serves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cggm_ray.commands.cli import main, parse
from cggm_ray.commands.flags import build_parser
from cggm_ray.config.fields import check, option
from cggm_ray.core.errors import UsageError
from cggm_ray.data.settings import DataConfig
from cggm_ray.engine.configuration import Config
from cggm_ray.runs.folder import differences
from cggm_ray.strategies.joint import JointTraining
from cggm_ray.strategies.registry import STRATEGIES, StrategyInfo, StrategyOptions
from cggm_ray.tasks import Classification


@dataclass(frozen=True, kw_only=True)
class QuietOptions(StrategyOptions):
    quiet_alpha: float = option(0.5, "how quiet")

    def __post_init__(self) -> None:
        check(self.quiet_alpha > 0, self, "quiet_alpha", "a positive number")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    STRATEGIES.names()
    info = StrategyInfo(
        build=lambda config, net, guides, task, reduce: JointTraining(task=task, reduce=reduce),
        options=QuietOptions,
        tasks=(Classification,),
    )
    STRATEGIES.register("quiet")(info)
    yield
    del STRATEGIES._entries["quiet"]


def test_its_flags_are_those_of_every_pipeline() -> None:
    assert "--quiet_alpha" in build_parser(Config()).format_help()
    config = parse(Config(), ["--modulation", "quiet", "--quiet_alpha", "2"]).config
    assert config.strategy == QuietOptions(quiet_alpha=2.0)


def test_only_the_chosen_strategys_options_are_part_of_a_run() -> None:
    chosen, other = Config().replace({"modulation": "quiet"}), Config()
    assert chosen.to_dict()["quiet"] == {"quiet_alpha": 0.5}
    assert "quiet" not in other.to_dict()
    assert Config.from_dict(chosen.to_dict()) == chosen
    changed = {"quiet_alpha": 3.0}
    assert differences(chosen.replace(changed), chosen.to_dict()) == ["quiet_alpha: was 0.5, now 3.0"]
    assert differences(other.replace(changed), other.to_dict()) == []


def test_a_value_that_cannot_be() -> None:
    with pytest.raises(UsageError, match=r"^quiet_alpha: found -1.0; expected a positive number$"):
        parse(Config(), ["--quiet_alpha", "-1"])


def test_a_task_that_it_does_not_serve(tmp_path: Path, small_pickle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = ["--data_path", str(small_pickle), "--storage_path", str(tmp_path), "--local"]
    assert main(Config(data=DataConfig(dataset="mosi")), [*places, "--modulation", "quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: modulation: 'quiet' is not defined for regression; these are: ")
    assert "cggm, " in line


def test_two_strategies_may_share_a_section() -> None:
    chosen = parse(Config(), ["--modulation", "ogm-ge", "--ogm_alpha", "0.7"]).config
    assert vars(chosen.strategy)["ogm_alpha"] == 0.7
    assert chosen.to_dict()["ogm"] == vars(chosen.strategy)
    assert "ogm-ge" not in chosen.to_dict()
    assert Config.from_dict(chosen.to_dict()) == chosen
    assert "ogm" not in Config().to_dict()


def test_a_check_of_its_own_comes_before_the_conversion(
    tmp_path: Path, small_pickle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--data_path", str(small_pickle), "--storage_path", str(tmp_path), "--local"]
    assert main(Config(), [*places, "--modulation", "umt"]) == 2
    assert capsys.readouterr().err.startswith("error: umt_teachers: found none; expected a finished run for each of ")
    assert not list((tmp_path / "shards").glob("mosi-*"))
