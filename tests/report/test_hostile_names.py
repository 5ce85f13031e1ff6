"""Names that attack whoever opens a page: of classes, columns, files, samples, runs, trials and values.

Real runs and studies with such names are drawn and opened in Chromium. Their texts are there as texts, and nothing happens.
"""

from __future__ import annotations

import dataclasses
import json
import random
import shlex
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from browser import Browser
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from tables import table_config
from test_bench import results, written
from test_study_page import write_study, write_trial

from cggm_ray.commands.train import run
from cggm_ray.report.leaderboard import write_leaderboard
from cggm_ray.report.live import server
from cggm_ray.report.notebook import run_html
from cggm_ray.report.page import report
from cggm_ray.report.study_page import study_report
from cggm_ray.runs.card import CARD
from cggm_ray.studies.bench import read_bench
from cggm_ray.studies.store import FAILED, FINISHED, Record, write_record

DO = "window.hostile=1"
CLASSES = (
    f"</script><script>{DO};alert(1)</script>",
    f"javascript:{DO} ${{7*7}}",
    f"<!-- ]]> --!><svg onload={DO}>\u202e",
    f"a\nb\t'\"`<iframe srcdoc='<script>parent.{DO}</script>'>",
)
COLUMNS = (
    f"<script>{DO}</script>",
    f'"><img src=https://example.org/x onerror={DO}>',
    "{{7*7}}$\\frac{$\u202e",
    f"it's\n</title></style><body onload={DO}>",
)
SAMPLE = f"<b onclick={DO}>"
FILE = f"<img src=x onerror={DO}>' `.jsonl"
"""A name of a file, which holds no slash."""
RUN = f"\"><img src=x onerror={DO}>{{{{7*7}}}}$x' `&lt;`"
"""A name of a run, which is printable and holds no slash."""
SEEN = """(() => {
  document.querySelectorAll("details").forEach(one => { one.open = true; });
  document.querySelectorAll("[hidden]").forEach(one => { one.hidden = false; });
  return document.title + " " + document.body.innerText;
})()"""
ADDED = """[...document.querySelectorAll("*")].filter(one =>
  ["IFRAME", "OBJECT", "EMBED", "BASE", "FORM", "LINK"].includes(one.tagName)
  || [...one.attributes].some(at => at.name.startsWith("on") || /^\\s*javascript:/i.test(at.value))
  || (one.tagName === "IMG" && !one.src.startsWith("data:"))).map(one => one.outerHTML.slice(0, 200))"""
CHARTS = """[...document.querySelectorAll("[data-chart]")]
  .map(one => JSON.parse(one.dataset.chart).lines.map(line => line.label)).flat()"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs on a table in which all names are hostile."""
    folder = tmp_path_factory.mktemp("hostile")
    draw = random.Random(0)
    rows = []
    for number in range(48):
        label = number % len(CLASSES)
        numbers = {COLUMNS[0]: label + draw.random(), COLUMNS[1]: [draw.random() for _ in range(3)]}
        texts = {COLUMNS[2]: f"{CLASSES[label]} {number} {draw.random()}", COLUMNS[3]: CLASSES[number % 2]}
        rows.append({"id": f"{SAMPLE}{number}", "label": CLASSES[label], **numbers, **texts})
    (folder / FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = []
    for name, changes in ((RUN, {}), ("<u>other", {"modulation": "none", "lr": 0.002})):
        more = {"name": name, "report": True, "max_steps": 12, "valid_interval": 6, **changes}
        done = run(table_config(folder, folder / FILE, target="label", changes=more))
        assert done is not None
        found.append(done.folder)
    return found


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search") / f"<img src=x onerror={DO}>"
    write_study(folder)
    space = {"lr": {"loguniform": [1e-4, 1e-1]}, "network": {"choice": [*CLASSES[:2]]}}
    (folder / "search.yaml").write_text(yaml.safe_dump({"space": space, "trials": 4}))
    for number in range(4):
        failed = number == 3
        record = Record(
            number=number,
            name=f"trial-{number}<img src=x onerror={DO}>",
            values={"lr": 0.01 / (number + 1), "network": CLASSES[number % 2]},
            status=FAILED if failed else FINISHED,
            error="".join(CLASSES) if failed else None,
        )
        write_trial(folder, record, [1.0, 0.9 - number / 10])
    return folder


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison") / f"<svg onload={DO}>"
    write_study(folder)
    for seed in range(1, 4):
        for number, strategy in enumerate(("none", f"<img src=x onerror={DO}>")):
            record = Record(number=2 * seed + number, name=f"{strategy}-seed-{seed}", values={}, status=FINISHED)
            write_trial(folder, record, [1.0, 0.8], 0.5 - number / 10 + seed / 100)
    return folder


def flat(text: str) -> str:
    """A text as a browser shows it: whitespace is one space."""
    return " ".join(text.split())


def check(browser: Browser, place: Path | str, texts: Sequence[str]) -> None:
    """Opens a page: its texts are there, no element or script came from a name, and nothing was fetched or said."""
    browser.open(place)
    browser.wait("new Promise(done => setTimeout(done, 200))")
    seen = flat(browser.value(SEEN))
    assert [text for text in texts if flat(text) not in seen] == []
    assert browser.value(ADDED) == []
    assert browser.value("typeof window.hostile") == "undefined"
    assert browser.value("document.querySelectorAll('script').length") <= 1
    assert browser.dialogs == browser.errors == []
    own = place.as_uri() if isinstance(place, Path) else place
    served = {f"{own}stamp", f"{own}favicon.ico"} if isinstance(place, str) else set()
    assert {url for url in browser.requests if not url.startswith("data:")} - {own, *served} == set()
    assert browser.value("document.querySelectorAll('.curves canvas').length") == browser.value(
        "document.querySelectorAll('.curves').length"
    )


def test_the_page_of_a_run(runs: list[Path], browser: Browser) -> None:
    page = runs[0] / "report" / "report.html"
    check(browser, page, [*CLASSES, RUN, FILE.removesuffix(".jsonl")])
    labels = browser.value(CHARTS)
    assert any("{{7*7}}" in label for label in labels), labels


def test_the_page_of_two_runs(runs: list[Path], tmp_path: Path, browser: Browser) -> None:
    check(browser, report(runs, tmp_path / "page"), [*CLASSES, RUN, "<u>other"])


def test_values_that_only_a_file_holds(runs: list[Path], tmp_path: Path, browser: Browser) -> None:
    """A run from elsewhere, in whose records everything that is a text is hostile."""
    folder = tmp_path / f"<i onclick={DO}>"
    shutil.copytree(runs[0], folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["options"]["missing_values"] = list(CLASSES)
    config["data"]["data_path"] = f"/{CLASSES[0]}"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    entry = json.loads((folder / "provenance.jsonl").read_text())
    entry["versions"][CLASSES[2]] = CLASSES[3]
    (folder / "provenance.jsonl").write_text(json.dumps(entry) + "\n")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps({**line, f"coefficient/{CLASSES[0]}": 1.0, CLASSES[2]: 2.0}) + "\n" for line in lines)
    )
    check(browser, report([folder], tmp_path / "page"), [*CLASSES, folder.name])


def test_the_page_of_a_search(search: Path, tmp_path: Path, browser: Browser) -> None:
    page = study_report(search, tmp_path / "page")
    check(browser, page, [search.name, *CLASSES[:2], f"trial-3<img src=x onerror={DO}> failed: {''.join(CLASSES)}"])


def test_the_page_of_a_comparison(comparison: Path, tmp_path: Path, browser: Browser) -> None:
    check(browser, study_report(comparison, tmp_path / "page"), [comparison.name, f"<img src=x onerror={DO}>"])


def test_the_page_of_a_benchmark(tmp_path: Path, browser: Browser) -> None:
    found, standings = results()
    sets = {name: {"recipe": "features"} for name in standings}
    bench = read_bench(written(tmp_path, sets=sets, arms={"none": {}, "cggm": {}}, trials=0, space={}))
    # Files of benchmarks have names of letters, digits and . _ - alone; the page does not rely on that.
    bench = dataclasses.replace(bench, name=f"<img src=x onerror={DO}>")
    check(browser, write_leaderboard(tmp_path, bench, found, standings), [bench.name])
    # The columns are sorted by a script, which the policy of the page lets run.
    browser.click("thead th")
    assert browser.value("document.querySelector('thead th').dataset.sorted") == "up"


def test_a_served_page(search: Path, browser: Browser) -> None:
    """It takes over its newer self, with names that were not there before."""
    with server([search], "127.0.0.1", 0) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        try:
            url = f"http://127.0.0.1:{listening.server_address[1]}/"
            check(browser, url, [search.name, CLASSES[0]])
            late = f"late<img src=x onerror={DO}>"
            write_record(
                search / "trials" / late, Record(number=9, name=late, values={}, status=FAILED, error=CLASSES[0])
            )
            shown = f"document.body.innerText.includes({json.dumps(f'{late} failed: {CLASSES[0]}')})"
            browser.wait(
                f"new Promise(done => {{ const wait = () => {shown} ? done() : setTimeout(wait, 100); wait(); }})"
            )
            assert browser.value("typeof window.hostile") == "undefined"
            assert browser.value(ADDED) == []
            assert browser.dialogs == []
        finally:
            listening.shutdown()


def test_a_notebook_shows_text(runs: list[Path], tmp_path: Path, browser: Browser) -> None:
    """What a notebook gets stands in a page of its own here, without any policy."""
    (tmp_path / "page.html").write_text(f"<!DOCTYPE html><meta charset=utf-8><body>{run_html(runs[0])}</body>")
    check(browser, tmp_path / "page.html", [RUN])


def test_the_card_of_a_run(runs: list[Path], tmp_path: Path, browser: Browser) -> None:
    text = (runs[0] / CARD).read_text()
    assert ModelCard(text).data.eval_results
    _, _, body = text.partition("\n---\n")
    made = MarkdownIt("commonmark", {"html": True}).enable("table").render(body)
    (tmp_path / "card.html").write_text(f"<!DOCTYPE html><meta charset=utf-8><body>{made}</body>")
    check(browser, tmp_path / "card.html", [*CLASSES[:2], RUN])
    (command,) = (line for line in text.splitlines() if line.startswith("cggm serve"))
    assert shlex.split(command) == ["cggm", "serve", RUN]


def test_the_policy_alone_stops_scripts(runs: list[Path], tmp_path: Path, browser: Browser) -> None:
    """If a name came through as markup, it would still do nothing."""
    text = (runs[0] / "report" / "report.html").read_text()
    smuggled = f"<script>{DO}</script><img src=x onerror={DO}><iframe srcdoc='<script>parent.{DO}</script>'></iframe>"
    (tmp_path / "page.html").write_text(text.replace("<main>", f"<main>{smuggled}"))
    browser.open(tmp_path / "page.html")
    browser.wait("new Promise(done => setTimeout(done, 200))")
    assert browser.value("typeof window.hostile") == "undefined"
    assert browser.errors
    assert browser.value("document.querySelectorAll('.curves canvas').length") > 2
