"""Pages in Chromium at three widths, light and dark: nothing is cut off, and axe-core has no serious finding.

The screenshots stay in the folder that CGGM_SCREENSHOTS names.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from accessibility import axe, drawn, serious_findings
from brats_files import write_released
from browser import Browser, find_chromium
from PIL import Image
from test_bench import results, written
from test_study_page import comparison, search, write_study

from cggm_ray.commands.cli import main
from cggm_ray.commands.train import run
from cggm_ray.data.datasets.brats.brats import BratsOptions
from cggm_ray.data.datasets.features import FeatureOptions
from cggm_ray.data.settings import DataConfig
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.runtime import RunConfig
from cggm_ray.engine.settings import TrainConfig
from cggm_ray.models.deeplab import DeepLabOptions
from cggm_ray.report.leaderboard import write_leaderboard
from cggm_ray.report.page import report
from cggm_ray.report.study_page import study_report
from cggm_ray.studies.bench import read_bench
from conftest import SMALL, small_set, write_pickle

__all__ = ["axe", "comparison", "search", "write_study"]
WIDTHS = (390, 1280, 1920)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of a regression, one with classes, and one of a segmentation."""
    find_chromium()
    folder = tmp_path_factory.mktemp("runs")
    pickle = write_pickle(folder / "small.pkl", small_set())
    flags = ["--local", *SMALL, "--storage_path", str(folder)]
    for name, strategy in (("one", "cggm"), ("two", "none")):
        assert main(Config(), [*flags, "--data_path", str(pickle), "--name", name, "--modulation", strategy]) == 0
    features = Config(data=DataConfig(dataset="features"), options=FeatureOptions())
    assert main(features, [*flags, "--name", "classes"]) == 0
    run(
        Config(
            data=DataConfig(dataset="brats", data_path=str(write_released(folder / "h5"))),
            train=TrainConfig(batch_size=2, num_epochs=1),
            run=RunConfig(storage_path=str(folder), name="segmentation", local=True),
            options=BratsOptions(crop=16),
            networks={"deeplab": DeepLabOptions(backbone="resnet18")},
        )
    )
    return folder


@pytest.mark.parametrize("kind", ["run", "classes", "segmentation", "runs", "search", "comparison", "benchmark"])
def test_pages_at_three_widths(
    kind: str, runs: Path, tmp_path: Path, browser: Browser, axe: str, request: pytest.FixtureRequest
) -> None:
    if kind in ("search", "comparison"):
        page = study_report(request.getfixturevalue(kind), tmp_path / "page")
    elif kind == "benchmark":
        found, standings = results()
        sets = {name: {"recipe": "features"} for name in standings}
        bench = read_bench(written(tmp_path, sets=sets, arms={"none": {}, "cggm": {}}, trials=0, space={}))
        page = write_leaderboard(tmp_path, bench, found, standings)
    else:
        names = {"run": ["one"], "classes": ["classes"], "segmentation": ["segmentation"], "runs": ["one", "two"]}[kind]
        page = report([runs / name for name in names], tmp_path / "page")
    screens = Path(os.environ.get("CGGM_SCREENSHOTS", tmp_path / "screens"))
    screens.mkdir(parents=True, exist_ok=True)
    for scheme in ("light", "dark"):
        tones = []
        for width in WIDTHS:
            browser.look(width, scheme)
            browser.open(page)
            drawn(browser)
            assert browser.value("document.documentElement.scrollWidth <= window.innerWidth"), (kind, width)
            cut = "[...document.querySelectorAll('figure,p,h1,h2,h3')].filter(e => e.scrollWidth > e.clientWidth + 1)"
            assert browser.value(f"{cut}.map(e => e.outerHTML.slice(0, 80))") == [], (kind, width)
            picture = screens / f"{kind}-{width}-{scheme}.png"
            browser.screenshot(picture)
            with Image.open(picture) as image:
                tones.append(image.convert("L").getpixel((2, 2)))
        assert all(tone > 200 if scheme == "light" else tone < 60 for tone in tones)
        assert serious_findings(browser, axe) == []
    assert not browser.errors
