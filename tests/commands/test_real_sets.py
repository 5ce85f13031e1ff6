"""The benchmarks on real sets ask the pipelines for what they know: hours of runs must not end at a flag."""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from cggm_ray.commands.cli import Command, parse
from cggm_ray.strategies.registry import STRATEGIES
from cggm_ray.studies.space import read_search
from cggm_ray.tasks import Classification, Regression

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The scripts, by name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "science"))
    names = ("real_sets", "strategies", "tuned", "variants")
    found = {name: __import__(name) for name in names}
    for name in names:
        monkeypatch.delitem(sys.modules, name)
    return found


@pytest.fixture
def flags(benchmarks: dict[str, ModuleType], tmp_path: Path) -> dict[str, list[str]]:
    """The flags of every set, of files that are there and empty."""
    parser = argparse.ArgumentParser()
    benchmarks["real_sets"].add_sets(parser)
    (tmp_path / "data").touch()
    sets = [f"{name}={tmp_path / 'data'}" for name in benchmarks["real_sets"].SETS]
    arguments = parser.parse_args([*sets, "--bert", str(tmp_path), "--storage_path", str(tmp_path)])
    return {name: list(found) for name, found in benchmarks["real_sets"].given_sets(arguments, parser).items()}


def parsed(benchmarks: dict[str, ModuleType], name: str, flags: list[str]) -> Command:
    pipeline = ROOT / "pipelines" / benchmarks["real_sets"].SETS[name].pipeline
    return parse(runpy.run_path(str(pipeline))["RECIPE"], flags)


def test_every_variant_is_a_configuration(benchmarks: dict[str, ModuleType], flags: dict[str, list[str]]) -> None:
    seen = set()
    for name, given in flags.items():
        for variant in benchmarks["variants"].VARIANTS:
            config = parsed(benchmarks, name, [*given, *benchmarks["variants"].flags_of(variant, name)]).config
            seen.add((name, str(config.resolved_modulation)))
    assert len(seen) == len(flags) * len(benchmarks["variants"].VARIANTS)


def test_every_strategy_is_compared_where_it_serves(benchmarks: dict[str, ModuleType]) -> None:
    serving = benchmarks["strategies"].serving
    assert sorted(serving(Classification(3))) == sorted(STRATEGIES.names())
    of_classes = {"amco", "cml", "greedy", "lfm", "mbsd", "mla", "mmcosine", "pmr", "reconboost"}
    of_classes |= {"relearning", "valuation"}
    assert set(STRATEGIES.names()) - set(serving(Regression())) == of_classes
    assert serving(Regression())[:2] == ["none", "cggm"]


def test_both_spaces_are_searches(
    benchmarks: dict[str, ModuleType], flags: dict[str, list[str]], tmp_path: Path
) -> None:
    tuned = benchmarks["tuned"]
    for strategy, space in (("none", tuned.BOTH), ("cggm", tuned.BOTH | tuned.OWN)):
        for name, given in flags.items():
            config = parsed(benchmarks, name, [*given, "--modulation", strategy]).config
            file = tmp_path / "search.yaml"
            file.write_text(yaml.safe_dump({"trials": 8, "scheduler": {"name": "none"}, "space": space}))
            assert {parameter.key for parameter in read_search(file, config).space} == set(space)


def test_a_set_that_is_not_there_is_refused(
    benchmarks: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    benchmarks["real_sets"].add_sets(parser)
    for text, says in (("mosi=nowhere.pkl", "nowhere.pkl is not there"), ("digits=x", "expected NAME=DATA")):
        with pytest.raises(SystemExit) as stop:
            benchmarks["real_sets"].given_sets(parser.parse_args([text]), parser)
        assert stop.value.code == 2
        assert says in capsys.readouterr().err
