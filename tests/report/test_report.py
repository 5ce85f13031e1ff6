"""The page of a run: what is on it, that it needs nothing else, and that it can be clicked in a browser."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from browser import Browser

from cggm_ray.__main__ import main as command
from cggm_ray.commands.cli import main
from cggm_ray.core.errors import UsageError
from cggm_ray.data.shards.shards import column_values
from cggm_ray.engine.configuration import Config
from cggm_ray.report import html
from cggm_ray.report.page import labels, report, write_page
from cggm_ray.report.run_record import read_run_record
from cggm_ray.studies.store import make_trial
from conftest import SMALL, small_set, write_pickle

VOID = {"meta", "img", "input", "br", "link"}
MOST_BYTES = 3 * 2**20
EVIL = "<script>alert(1)</script>&\"'"


class Page(HTMLParser):
    """Checks nesting, and gathers what a page holds."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        found = dict(attrs)
        assert len(found) == len(attrs), attrs
        self.attributes.append((tag, found))
        self.ids += [found["id"] or ""] if "id" in found else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def check(path: Path) -> Page:
    """What every page must be."""
    text = path.read_text()
    assert text.startswith("<!DOCTYPE html>")
    assert path.stat().st_size < MOST_BYTES
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    for tag, attributes in page.attributes:
        if tag == "html":
            assert attributes["lang"] == "en"
        if tag == "img":
            assert len(attributes["alt"] or "") > 20
        for name in ("src", "href", "action", "data", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:") or (name == "href" and value[1:] in page.ids), (tag, name)
        for name in ("aria-controls", "aria-labelledby", "for"):
            assert attributes.get(name) is None or attributes[name] in page.ids
    assert page.tags["link"] == page.tags["iframe"] == 0
    assert page.tags["script"] == page.tags["style"] == 1
    # The head of uPlot says where it comes from.
    text = text.replace("/*! https://github.com/leeoniya/uPlot (v1.6.32) */", "").replace(
        "http://www.w3.org/2000/svg", ""
    )
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text
    return page


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs: two finished ones, the first with its page, and one that is not finished."""
    folder = tmp_path_factory.mktemp("storage")
    pickle = write_pickle(folder / "small.pkl", small_set())
    places = ["--local", *SMALL, "--data_path", str(pickle), "--storage_path", str(folder), "--name"]
    assert main(Config(), [*places, "one", "--report", "true"]) == 0
    assert main(Config(), [*places, "two", "--modulation", "none", "--lr", "0.002"]) == 0
    shutil.copytree(folder / "one", folder / "open")
    for name in ("best", "report"):
        shutil.rmtree(folder / "open" / name)
    for name in ("summary.json", "balance.json", "predictions.parquet"):
        (folder / "open" / name).unlink()
    return folder


def test_a_run_leaves_its_page(storage: Path) -> None:
    page = check(storage / "one" / "report" / "report.html")
    names = ("curves", "balance", "coefficients", "subsets", "predictions")
    assert {path.stem for path in (storage / "one" / "report").glob("*.png")} == {f"one-{name}" for name in names}
    # The page draws curves and bars itself.
    assert page.tags["img"] == 0
    charts = [json.loads(found["data-chart"] or "") for _, found in page.attributes if "data-chart" in found]
    lines = [json.loads(line) for line in (storage / "one" / "metrics.jsonl").read_text().splitlines()]
    by_label = {line["label"]: line["values"] for chart in charts for line in chart["lines"]}
    assert by_label["training"] == pytest.approx([line["train/loss"] for line in lines], rel=1e-4)
    questions = [chart["title"] for chart in charts]
    assert len(questions) == len(set(questions)) == 8
    (cosine,) = (chart for chart in charts if chart["title"] == "Do the gradients agree?")
    assert (cosine["low"], cosine["high"]) == (-1, 1)
    assert {line["label"] for line in cosine["lines"]} == {"text", "audio", "vision"}
    summary = json.loads((storage / "one" / "summary.json").read_text())
    for split in ("valid", "test"):
        assert f"{summary[split]['mae']:.4f}" in page.text
    balance = json.loads((storage / "one" / "balance.json").read_text())
    for value in balance["shapley"].values():
        assert (f"{value:.4f}" if abs(value) >= 1e-3 else f"{value:.4g}") in page.text
    alternatives = [found["aria-label"] or "" for _, found in page.attributes if found.get("role") == "img"]
    assert f"the best epoch is {summary['best_epoch']}." in alternatives[1]
    # What the modalities do is said first, and the data of a person is not called generated.
    (verdict,) = re.findall(r'<p class="verdict">(.*?)</p>', (storage / "one" / "report" / "report.html").read_text())
    assert (
        "from " + f"{_score(balance, [])} without any modality to {_score(balance, ['text', 'audio', 'vision'])}"
        in verdict
    )
    assert "demonstration data" not in page.text
    assert not (storage / "two" / "report").exists()


def _score(balance: dict[str, Any], present: list[str]) -> str:
    (score,) = [line["score"] for line in balance["scores"] if line["present"] == present]
    return f"{score:.4f}"


def test_several_runs_are_told_apart_by_their_configuration(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(storage / name) for name in ("one", "two", "open")]
    assert command(["report", *runs, "--out", str(tmp_path / "page")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "page" / "report.html")
    page = check(tmp_path / "page" / "report.html")
    text = (tmp_path / "page" / "report.html").read_text()
    differing = {row.split("</th>")[0] for row in text.split('<tr class="differs"><th scope="row">')[1:]}
    assert {"modulation.modulation", "optim.lr", "run.name", "modulation.coefficients"} <= differing
    assert "train.batch_size" not in differing
    assert "This run is not finished: 2 of 2 epochs are there." in page.text
    assert page.text.count("Imbalance degree") == 2
    # The same quantity has the same axis in all runs.
    charts = [json.loads(found["data-chart"] or "") for _, found in page.attributes if "data-chart" in found]
    norms = [(chart["low"], chart["high"]) for chart in charts if chart["y_label"] == "gradient norm"]
    assert len(norms) == 3
    assert len(set(norms)) == 1
    # A run without modulation has gradient norms and neither coefficients nor guides.
    assert not (tmp_path / "page" / "two-coefficients.png").exists()
    assert (tmp_path / "page" / "two-balance.png").exists()
    assert (tmp_path / "page" / "compared.png").exists()
    assert (storage / "two" / "balance.json").exists()


def test_texts_from_files_are_escaped(storage: Path, tmp_path: Path) -> None:
    run = tmp_path / "evil<b>"
    shutil.copytree(storage / "one", run)
    entry = json.loads((run / "provenance.jsonl").read_text())
    entry["versions"][EVIL] = EVIL
    (run / "provenance.jsonl").write_text(json.dumps(entry) + "\n")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps({**line, f"x/{EVIL}": 1.0}) + "\n" for line in lines))
    page = check(report([run], tmp_path / "page"))
    assert page.tags["b"] == 0
    assert f"x/{EVIL}" in page.text
    assert page.text.count("evil<b>") > 2


def test_classes_get_a_confusion_matrix(storage: Path, tmp_path: Path) -> None:
    argv = ["--local", "--storage_path", str(tmp_path), "--name", "classes", *SMALL, "--report", "true"]
    from cggm_ray.data.datasets.features import FeatureOptions
    from cggm_ray.data.settings import DataConfig

    assert (
        main(Config(data=DataConfig(dataset="features"), options=FeatureOptions()), [*argv, "--num_epochs", "1"]) == 0
    )
    path = tmp_path / "classes" / "report" / "report.html"
    page = check(path)
    table = pq.read_table(tmp_path / "classes" / "predictions.parquet")
    truth, logits = (column_values(table.column(name)) for name in ("target", "prediction"))
    right = int((logits.argmax(1) == truth).sum())
    assert f"{right} of {len(truth)} test samples are right" in page.text
    counts = [int(found) for found in re.findall(r'% of the true class">(\d+)</td>', path.read_text())]
    classes = logits.shape[1]
    assert sum(counts) == len(truth)
    assert sum(counts[:: classes + 1]) == right


@pytest.mark.slow
def test_twelve_runs_stay_small_and_thirteen_are_refused(storage: Path, tmp_path: Path) -> None:
    run = read_run_record(storage / "one")
    from dataclasses import replace

    page = check(write_page([replace(run, label=f"run {number}") for number in range(12)], tmp_path))
    assert page.tags["section"] == 12
    with pytest.raises(UsageError, match="report: found 13 runs; expected at most 12"):
        report([storage / "one"] * 13)


def test_labels_differ() -> None:
    assert labels([Path("/a/x"), Path("/b/x"), Path("/a/y")]) == ["x (1)", "x (2)", "y"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.yaml", None, "config.yaml does not exist; expected the folder of a run"),
        ("config.yaml", "train: [", "is not yaml"),
        ("config.yaml", "data: 3", "section data holds 3"),
        ("metrics.jsonl", "5\n", "metrics.jsonl, line 1: expected an object with the number 'epoch'"),
        ("metrics.jsonl", '{"epoch": 1, "train/loss": "low"}\n', "metrics.jsonl, line 1: expected numbers or null"),
        ("summary.json", "{", "summary.json cannot be read"),
        ("summary.json", '{"best_epoch": 1, "valid": 2, "test": 3}', "'valid' and 'test' are no mappings"),
        (
            "balance.json",
            '{"metric": "mae", "better": "min", "split": "valid", "epoch": 1, "modalities": ["a"], "scores": []}',
            "balance.json cannot be read: its scores are not those of all subsets",
        ),
        ("balance.json", "[]", "balance.json cannot be read"),
        ("predictions.parquet", "PAR1", "predictions.parquet cannot be read"),
        ("best/training.json", "{}", "best cannot be read"),
    ],
)
def test_bad_input_is_one_line(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, content: str | None, message: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(storage / "one", run)
    (run / file).unlink()
    if content is not None:
        (run / file).write_text(content)
    assert command(["report", str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_run_whose_page_cannot_be_drawn_is_a_run(
    small_pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise MemoryError("no room\nfor pictures")

    monkeypatch.setattr("cggm_ray.report.page.write_page", fail)
    places = ["--data_path", str(small_pickle), "--storage_path", str(tmp_path), "--name", "run"]
    assert main(Config(), ["--local", *SMALL, *places, "--report", "true", "--num_epochs", "1"]) == 0
    printed = capsys.readouterr().out
    assert "the report was not drawn: MemoryError: no room" in printed
    assert "best epoch 1" in printed


def test_nothing_that_is_no_number_breaks_a_cell() -> None:
    assert html.text(float("nan")) == "not finite"
    assert html.text(None) == "-"
    assert html.text(True) == "yes"
    assert html.text([1, "two"]) == "1, two"


def test_the_page_can_be_used(storage: Path, tmp_path: Path, browser: Browser) -> None:
    path = report([storage / "one", storage / "two"], tmp_path / "page")
    browser.open(path)
    visible = "[...document.querySelectorAll('{}')].filter(e => e.offsetParent !== null).length"
    # Runs stand below each other, and every chart is drawn.
    assert browser.value(visible.format("section")) == 2
    charts = browser.value("document.querySelectorAll('.curves').length")
    assert browser.value("document.querySelectorAll('.curves canvas').length") == charts > 8
    assert browser.value("[...document.querySelectorAll('.curves canvas')].every(c => c.width > 200)")
    # A line can be switched off, and values are read below the pointer.
    button = ".curves .legend button"
    browser.click(button)
    assert browser.value(f"document.querySelector('{button}').getAttribute('aria-pressed')") == "false"
    browser.click(".curves .u-over")
    browser.wait("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert "epoch" in browser.value("document.querySelector('.curves .read').textContent")
    assert re.search(r"\d", browser.value("document.querySelector('.curves .legend .at').textContent"))
    rows = visible.format("#configuration tbody tr")
    few = browser.value(rows)
    assert few == browser.value("document.querySelectorAll('#configuration tr.differs').length")
    browser.click("#only-differing")
    assert browser.value(rows) == browser.value("document.querySelectorAll('#configuration tbody tr').length") > few
    browser.click("#only-differing")
    assert browser.value(rows) == few
    browser.click("#run-1 summary")
    assert browser.value("document.querySelector('#run-1 details').open") is True
    assert not browser.errors
    assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []


def test_trials_make_no_page(tmp_path: Path) -> None:
    assert Config().run.report
    assert not make_trial(Config(), tmp_path, 0, "trial-000", {"rho": 1.1}, tmp_path).config.run.report
