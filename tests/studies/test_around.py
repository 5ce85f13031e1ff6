"""The search that the presets stand for: what it varies around which configuration."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

from cggm_ray.distributed.tune.draws import draw_trials
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.presets import with_preset
from cggm_ray.models.composed.network import DROPOUT
from cggm_ray.models.net import MultimodalNet
from cggm_ray.models.registry import NETWORKS, NetworkPlan
from cggm_ray.models.settings import ModelConfig
from cggm_ray.studies.around import encoder_families, search_around
from cggm_ray.studies.space import Search, make_search

KINDS = {"words": "sequence", "face": "image", "age": "vector"}
SHAPES = {"words": (5, 3), "face": (8, 8), "age": (4,)}


def quick(**values: object) -> Config:
    recipe: Config = runpy.run_path(str(Path(__file__).parents[2] / "pipelines" / "features.py"))["RECIPE"]
    return with_preset(recipe, "quick").replace({"standardise": "on", **values})


def found(base: Config, kinds: dict[str, str], *fixed: str, minutes: float = 1) -> Search:
    return make_search(search_around(base, kinds, 30, minutes, classes=True, fixed=fixed), base, "preset good")


@pytest.mark.parametrize("kinds", [KINDS, {"a": "vector", "b": "vector"}, {"a": "vector"}], ids=str)
def test_the_first_trial_is_the_configuration_itself(kinds: dict[str, str]) -> None:
    base = quick()
    search = found(base, kinds)
    drawn = draw_trials(search, base, "preset good")
    # What the network takes for classes by default.
    assert base.replace(drawn[0]) == base.replace({"dropout": DROPOUT, "linear_path": "off"})
    # The points that follow differ from it in something, each in its own way.
    points = drawn[: len(search.points_to_evaluate)]
    assert len({tuple(point.items()) for point in points}) == len(points)
    assert set(points[1]["encoders"].replace(",", ":").split(":")[1::2]) == {"linear"}
    assert {"standardise": "modality"}.items() <= points[3 if len(kinds) > 1 else 2].items()
    assert ("fusion" in drawn[0]) == (len(kinds) > 1)


def test_every_network_of_the_search_can_be_built() -> None:
    base = quick()
    for values in draw_trials(found(base, KINDS), base, "preset good")[:25]:
        config = base.replace(values)
        plan = NetworkPlan(
            shapes=SHAPES, kinds=KINDS, outputs=3, sizes=ModelConfig(), options=config.network_options("composed")
        )
        net: MultimodalNet = NETWORKS.get("composed").build(plan)[0]
        assert net.eval()({name: torch.zeros(2, *shape) for name, shape in SHAPES.items()}).shape == (2, 3)


def test_families_are_named_by_the_encoder_that_they_have_where_it_fits() -> None:
    families = encoder_families(KINDS)
    assert families[""] == ""
    assert families["linear"] == "words:linear,face:linear,age:linear"
    assert families["transformer"] == "words:transformer,face:resnet,age:mlp"
    # That of vectors alone is the default.
    assert set(encoder_families({"a": "vector"})) == {"", "linear"}


def test_what_flags_set_is_not_searched() -> None:
    base = quick(lr=0.05, width=96)
    search = found(base, KINDS, "lr", "encoders", "standardise")
    assert not {"lr", "encoders", "standardise"} & {p.key for p in search.space}
    # A value of a file is where the search starts, in its space or not.
    (width,) = (p for p in found(base, KINDS).space if p.key == "width")
    (rate,) = (p for p in found(base, KINDS).space if p.key == "lr")
    assert width.holds(96)
    assert rate.values[1] == 0.05
    assert found(base, KINDS).points_to_evaluate[0]["width"] == 96


def test_a_linear_path_by_the_task_that_a_flag_sets_stays() -> None:
    search = found(quick(linear_path="auto"), KINDS, "linear_path")
    assert "linear_path" not in {p.key for p in search.space}
    assert search.points_to_evaluate


def test_another_network_keeps_its_own_sizes() -> None:
    search = found(quick(network="shaped"), KINDS)
    assert {p.key for p in search.space} == {"standardise", "lr", "weight_decay", "label_smoothing"}


def test_more_minutes_draw_more_of_the_same_trials() -> None:
    base = quick()
    few, many = (draw_trials(found(base, KINDS, minutes=minutes), base, "f") for minutes in (1, 3))
    assert len(few) < len(many)
    assert many[: len(few)] == few
