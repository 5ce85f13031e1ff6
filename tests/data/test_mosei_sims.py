"""CMU-MOSEI and CH-SIMS: the layouts in which they are spread, and the metrics of SIMS against numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from cggm_ray.core.batch import Batch
from cggm_ray.data.datasets.mosi import MosiOptions, planted_imbalance
from cggm_ray.data.datasets.sentiment_layouts import PADDING
from cggm_ray.data.loading.split import load_split
from cggm_ray.data.shards.shards import open_set, write_shards_here
from cggm_ray.engine.assembly import build_dataset, prepare_data
from cggm_ray.engine.configuration import Config
from cggm_ray.recipes import mosei, sims
from cggm_ray.tasks.sims import SimsMetrics

RECIPES = {"mosei": mosei.RECIPE, "sims": sims.RECIPE}


def config(name: str, folder: Path, layout: str) -> Config:
    flat = {"storage_path": str(folder), "local": True, "demonstration": layout, "target_index": None}
    return RECIPES[name].replace(flat)


@pytest.mark.parametrize("layout", ["released", "mmsa", "mult"])
@pytest.mark.parametrize("name", RECIPES)
def test_generated_sets_are_read_in_every_layout(tmp_path: Path, name: str, layout: str) -> None:
    settings = config(name, tmp_path, layout)
    folder = prepare_data(settings, write_shards_here)
    manifest = open_set(folder)
    assert manifest is not None
    assert manifest.dataset == name
    planted = planted_imbalance(settings.train.seed)
    for split, part in planted.items():
        found = load_split(folder, manifest, split, ("text", "audio", "vision"), torch.device("cpu"))
        np.testing.assert_array_equal(found.inputs["text"].numpy(), part["text"])
        audio = np.pad(part["audio"], ((0, 0), (0, PADDING if layout == "mmsa" else 0), (0, 0)))
        np.testing.assert_array_equal(found.inputs["audio"].numpy(), audio)
        assert set(found.masks) == ({"audio", "vision"} if layout == "mmsa" else set())
        for mask in found.masks.values():
            assert mask.sum(1).tolist() == [part["audio"].shape[1]] * len(mask)
        unit = 3 if name == "sims" else 1
        np.testing.assert_allclose(found.target.numpy().reshape(-1), part["labels"].reshape(-1) / unit, rtol=1e-6)
    metrics = build_dataset(settings).task(manifest).metrics()
    assert isinstance(metrics, SimsMetrics) == (name == "sims")


def test_metrics_of_sims_are_those_of_mmsa() -> None:
    """Classes are written out with numpy; scores are those of scikit-learn."""
    rng = np.random.default_rng(0)
    truth = rng.integers(-5, 6, 200).astype(np.float32) / 5
    said = np.clip(truth + rng.normal(0, 0.4, 200), -1.3, 1.3).astype(np.float32)
    metrics = SimsMetrics()
    for rows in (slice(0, 120), slice(120, 200)):
        target = torch.from_numpy(truth[rows])[:, None]
        metrics.update(torch.from_numpy(said[rows])[:, None], Batch.of_loop(target))
    found = metrics.compute(metrics.sums)
    bounds = {2: [0.0], 3: [-0.1, 0.1], 5: [-0.7, -0.1, 0.1, 0.7]}
    for classes, edges in bounds.items():
        # A value on an edge belongs to the class below it.
        want, got = (sum((v > np.float32(edge)).astype(int) for edge in edges) for v in (truth, said))
        assert found[f"acc{classes}_sims"] == pytest.approx(accuracy_score(want, got))
        if classes == 2:
            assert found["f1_sims"] == pytest.approx(f1_score(want, got, average="weighted"))
    assert found["mae"] == pytest.approx(np.abs(said - truth).mean(), rel=1e-6)
    assert found["corr"] == pytest.approx(np.corrcoef(said, truth)[0, 1], rel=1e-6)


def test_the_layout_of_a_generated_set_is_checked() -> None:
    with pytest.raises(Exception, match=r"demonstration: unknown .mulT.*did you mean mult"):
        MosiOptions(demonstration="mulT")
