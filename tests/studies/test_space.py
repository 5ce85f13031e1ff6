"""The yaml of a search: what it draws, and what it refuses."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cggm_ray import Classification, Regression, Segmentation
from cggm_ray.core.errors import UsageError
from cggm_ray.distributed.tune.draws import draw_trials
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.optim import OptimConfig
from cggm_ray.engine.settings import TrainConfig
from cggm_ray.models.settings import ModelConfig
from cggm_ray.studies.space import make_search, read_search, suggest

SPACE: dict[str, Any] = {
    "smoothing": {"uniform": [0.5, 0.99], "when": {"coefficients": "stable"}},
    "rou": {"uniform": [0.5, 2.0]},
    "lr": {"loguniform": [1e-4, 1e-2]},
    "coefficients": {"choice": ["stable", "paper"]},
    "nlevels": {"uniform": [3, 5]},
}


def search(**content: Any) -> Any:
    return make_search({"space": SPACE, **content}, Config(), "file.yaml")


def test_draws_are_a_function_of_the_seed_and_stay_inside() -> None:
    drawn = draw_trials(search(trials=200, seed=4), Config(), "file.yaml")
    assert drawn == draw_trials(search(trials=200, seed=4), Config(), "file.yaml")
    assert drawn != draw_trials(search(trials=200, seed=5), Config(), "file.yaml")
    # More trials of the same seed begin with the same ones.
    assert drawn[:20] == draw_trials(search(trials=20, seed=4), Config(), "file.yaml")
    rates = np.array([values["lr"] for values in drawn])
    assert 1e-4 <= rates.min() < 2e-4
    assert 5e-3 < rates.max() <= 1e-2
    # Half of a log-uniform variable lies below the geometric mean of its bounds.
    assert 0.4 < (rates < 1e-3).mean() < 0.6
    assert {values["nlevels"] for values in drawn} == {3, 4, 5}
    assert all(isinstance(values["nlevels"], int) for values in drawn)
    assert all(0.5 <= values["rho"] <= 2 for values in drawn)


def test_a_condition_decides_whether_a_key_exists_and_nothing_else() -> None:
    drawn = draw_trials(search(trials=50), Config(), "file.yaml")
    assert all(("smoothing" in values) == (values["coefficients"] == "stable") for values in drawn)
    assert {values["coefficients"] for values in drawn} == {"stable", "paper"}
    free = {key: value for key, value in SPACE.items() if key != "smoothing"} | {"smoothing": {"uniform": [0.5, 0.99]}}
    unconditional = draw_trials(make_search({"space": free, "trials": 50}, Config(), "f"), Config(), "f")
    assert [v["lr"] for v in drawn] == [v["lr"] for v in unconditional]


def test_given_points_are_the_first_trials_and_shift_no_draw() -> None:
    points = [{"rou": 1.0, "lr": 1e-3, "coefficients": "paper"}, {"coefficients": "stable", "smoothing": 0.6}]
    base = Config(optim=OptimConfig(lr=5e-4))
    found = make_search({"space": SPACE, "trials": 6, "points_to_evaluate": points}, base, "f")
    drawn = draw_trials(found, base, "f")
    # What a point leaves out is the configuration's own, and an alias is the field that it stands for.
    assert {key: drawn[0][key] for key in ("rho", "lr", "coefficients")} == {
        "rho": 1.0,
        "lr": 1e-3,
        "coefficients": "paper",
    }
    assert "smoothing" not in drawn[0]
    assert drawn[1]["lr"] == 5e-4
    assert drawn[1]["nlevels"] == base.model.nlevels
    assert drawn[1]["smoothing"] == 0.6
    assert drawn[2:] == draw_trials(make_search({"space": SPACE, "trials": 6}, base, "f"), base, "f")


def test_a_list_of_names_is_a_value() -> None:
    space = {"encoders": {"choice": ["", ["a:linear", "b:mlp"]]}}
    drawn = draw_trials(
        make_search({"space": space, "trials": 9, "points_to_evaluate": [{}]}, Config(), "f"), Config(), "f"
    )
    assert drawn == [{"encoders": ""}, {"encoders": "a:linear,b:mlp"}]
    assert Config().replace(drawn[1]).networks["composed"].encoders == ("a:linear", "b:mlp")  # type: ignore[attr-defined]


def test_a_grid_is_crossed_and_every_point_comes_once() -> None:
    space = {"rho": {"grid": [1.0, 1.3]}, "lam": {"grid": [0.01, 0.1, 0.2]}}
    drawn = draw_trials(make_search({"space": space}, Config(), "f"), Config(), "f")
    assert drawn == [{"rho": rho, "lam": lam} for rho in (1.0, 1.3) for lam in (0.01, 0.1, 0.2)]
    space = {
        "coefficients": {"grid": ["stable", "paper"]},
        "smoothing": {"grid": [0.5, 0.9], "when": {"coefficients": "stable"}},
    }
    drawn = draw_trials(make_search({"space": space, "trials": 3}, Config(), "f"), Config(), "f")
    assert drawn == [
        {"coefficients": "stable", "smoothing": 0.5},
        {"coefficients": "stable", "smoothing": 0.9},
        {"coefficients": "paper"},
    ]


def test_optuna_walks_through_the_same_space() -> None:
    optuna = pytest.importorskip("optuna")
    drawn = []
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(40):
        trial = study.ask()
        suggest(search(searcher="optuna"), trial)
        drawn.append(trial.params)
    assert all(("smoothing" in values) == (values["coefficients"] == "stable") for values in drawn)
    assert all(1e-4 <= values["lr"] <= 1e-2 and values["nlevels"] in (3, 4, 5) for values in drawn)


def test_choices_that_fit_together_are_not_refused_one_by_one() -> None:
    space = {"proj_dim": {"choice": [48]}, "num_heads": {"choice": [6, 8]}}
    drawn = draw_trials(make_search({"space": space, "trials": 8}, Config(), "f"), Config(), "f")
    assert {values["num_heads"] for values in drawn} == {6, 8}


def test_what_a_search_says_comes_back(tmp_path: Path) -> None:
    points = [{"rho": 1.0, "coefficients": "paper", "nlevels": 4}]
    scheduler = {"name": "asha", "max_epochs": 9, "grace_period": 2}
    found = search(trials=7, scheduler=scheduler, metric="mae", points_to_evaluate=points)
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(found.to_dict(), sort_keys=False))
    assert read_search(path, Config()) == found


RHO = {"rho": {"uniform": [1, 2]}}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no space": ({}, "space: found None; expected at least one field"),
    "empty space": ({"space": {}}, "space: found {}; expected at least one field"),
    "unknown field": ({"space": {"rhoo": {"uniform": [1, 2]}}}, "space: unknown key 'rhoo' (did you mean rho?)"),
    "field under two names": ({"space": RHO | {"rou": {"choice": [1]}}}, "space: rou: the space has rho twice"),
    "field of the run": ({"space": {"workers": {"choice": [1, 2]}}}, "space: workers: a trial cannot change it"),
    "field that the scheduler sets": (
        {"space": {"num_epochs": {"choice": [1]}}},
        "max_epochs of the scheduler sets it",
    ),
    "field without a kind of draw": ({"space": {"rho": [1, 2]}}, "space: rho: found [1, 2]; expected a mapping"),
    "no kind": ({"space": {"rho": {}}}, "space: rho: found none of choice, uniform, loguniform, grid"),
    "two kinds": ({"space": {"rho": {"choice": [1], "grid": [1]}}}, "found choice, grid of"),
    "misspelt kind": ({"space": {"rho": {"unifrom": [1, 2]}}}, "unknown key 'unifrom' (did you mean uniform?)"),
    "choice that is no list": ({"space": {"rho": {"choice": 1.3}}}, "choice: found 1.3; expected a list"),
    "no choices": ({"space": {"rho": {"choice": []}}}, "choice: found []; expected a list of values"),
    "three bounds": ({"space": {"rho": {"uniform": [1, 2, 3]}}}, "uniform: found 3 values; expected the two bounds"),
    "turned round": ({"space": {"rho": {"uniform": [2, 1]}}}, "expected a smaller and a larger bound"),
    "log of zero": ({"space": {"lam": {"loguniform": [0, 1]}}}, "expected positive bounds"),
    "bounds for a text": ({"space": {"optim": {"uniform": [1, 2]}}}, "optim is no number; expected choice or grid"),
    "wrong type": ({"space": {"rho": {"choice": ["much"]}}}, "space: rho: rho: found 'much'; expected a number"),
    "bound outside the range": (
        {"space": {"rho": {"uniform": [-1, 1]}}},
        "the trial with rho -1.0: rho: found -1.0; expected a positive",
    ),
    "unknown condition": (
        {"space": {"rho": {"uniform": [1, 2], "when": {"lam": 1}}}},
        "when: 'lam' is no key of this space",
    ),
    "condition that never holds": (
        {"space": {"optim": {"choice": ["SGD"]}, "lr": {"uniform": [1, 2], "when": {"optim": "Adam"}}}},
        "space: lr: when: optim never is Adam; it has SGD",
    ),
    "conditions in a circle": (
        {
            "space": {
                "rho": {"choice": [1], "when": {"lam": 1.0}},
                "lam": {"choice": [1], "when": {"rho": 1.0}},
            }
        },
        "the conditions of rho, lam go round in a circle",
    ),
    "misspelt key": ({"space": RHO, "trails": 3}, "unknown key 'trails' (did you mean trials?)"),
    "text in place of a number": ({"space": RHO, "trials": "many"}, "trials: found 'many'; expected a whole number"),
    "no trials": ({"space": RHO, "trials": 0}, "trials: found 0; expected a whole number of at least 1"),
    "unknown scheduler": ({"space": RHO, "scheduler": {"name": "ahsa"}}, "unknown 'ahsa' (did you mean asha?)"),
    "grace longer than a trial": (
        {"space": RHO, "scheduler": {"max_epochs": 3, "grace_period": 5}},
        "grace_period: found 5; a trial has 3 epochs",
    ),
    "reduction by one": ({"space": RHO, "scheduler": {"reduction_factor": 1}}, "expected more than 1"),
    "unknown searcher": ({"space": RHO, "searcher": "bayes"}, "searcher: unknown 'bayes'; available: random, optuna"),
    "unknown mode": ({"space": RHO, "mode": "low"}, "mode: unknown 'low'; available: min, max"),
    "metric of the test split": ({"space": RHO, "metric": "test/mae"}, "a search sees the validation split only"),
    "one and a half GPUs": (
        {"space": RHO, "resources": {"gpu": 1.5}},
        "gpu: found 1.5; expected a fraction, or whole GPUs",
    ),
    "grid for optuna": ({"space": {"rho": {"grid": [1]}}, "searcher": "optuna"}, "use choice in place of grid"),
    "first trials that are no list": (
        {"space": RHO, "points_to_evaluate": {"rho": 1}},
        "points_to_evaluate: found {'rho': 1}; expected a list of mappings",
    ),
    "first trial with an unknown key": (
        {"space": RHO, "points_to_evaluate": [{"lr": 0.1}]},
        "points_to_evaluate: point 1: unknown key 'lr'; available: rho",
    ),
    "first trial outside the space": (
        {"space": RHO, "points_to_evaluate": [{"rho": 1.5}, {"rho": 3}]},
        "points_to_evaluate: point 2: rho is 3.0; expected a value of the space",
    ),
    "first trial with a value that never exists there": (
        {
            "space": {"coefficients": {"choice": ["stable", "paper"]}, "smoothing": SPACE["smoothing"]},
            "points_to_evaluate": [{"coefficients": "paper", "smoothing": 0.9}],
        },
        "point 1: smoothing: leave it out; its 'when' does not hold",
    ),
    "length of a trial": ({"space": {"max_steps": {"choice": [5]}}}, "leave it out; all trials have the same length"),
    "sizes for pbt": ({"space": {"proj_dim": {"choice": [40]}}, "scheduler": {"name": "pbt"}}, "in mid-training"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_search_is_one_line_that_names_file_and_key(case: str) -> None:
    content, expected = BAD[case]
    with pytest.raises(UsageError) as caught:
        make_search(content, Config(), "file.yaml")
    assert str(caught.value).startswith("file.yaml: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_drawn_combination_that_cannot_be_is_named() -> None:
    base = Config(model=ModelConfig(proj_dim=40), train=TrainConfig())
    found = make_search({"space": {"num_heads": {"choice": [3]}}}, base, "f")
    with pytest.raises(UsageError, match="f: the trial with num_heads 3: num_heads: 3 heads do not divide"):
        draw_trials(found, base, "f")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a: [", "is not yaml"), ("- 1", "expected a mapping"), (None, "cannot be read: No such file")],
)
def test_a_file_that_is_no_search(tmp_path: Path, text: str | None, expected: str) -> None:
    path = tmp_path / "search.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=expected):
        read_search(path, Config())


FILES = sorted((Path(__file__).parents[2] / "tune_configs").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_search_files_of_the_project(path: Path) -> None:
    """Each fits the recipe that its own command names, its metric included."""
    command = " ".join(line.removeprefix("#").strip() for line in path.read_text().splitlines() if line.startswith("#"))
    (script,) = {word for word in command.split() if word.startswith("pipelines/")}
    recipe: Config = runpy.run_path(str(Path(__file__).parents[2] / script))["RECIPE"]
    found = read_search(path, recipe)
    drawn = draw_trials(found, recipe, str(path))
    assert len(drawn) == (25 if path.stem == "rho_lambda_grid" else found.trials)
    assert f"--tune tune_configs/{path.name}" in command
    tasks = {"mosi": Regression(), "brats": Segmentation()}
    assert found.metric in (None, *tasks.get(recipe.data.dataset, Classification(4)).metric_names())
