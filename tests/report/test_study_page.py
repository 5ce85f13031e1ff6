"""The page of a study, from folders that hold what a search and a comparison leave."""

from __future__ import annotations

import json
import re
import socket
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import yaml
from test_report import check

from cggm_ray.__main__ import main as command
from cggm_ray.engine.configuration import Config
from cggm_ray.report.live import server
from cggm_ray.studies.store import FAILED, FINISHED, RUNNING, STOPPED, Record, write_record

SPACE = {
    "lr": {"loguniform": [1e-4, 1e-1]},
    "rho": {"uniform": [0.5, 2.0]},
    "coefficients": {"choice": ["stable", "paper"]},
}


def write_trial(study: Path, record: Record, losses: list[float], test: float | None = None) -> None:
    """A trial as its run leaves it, without checkpoints, so that the loss selects."""
    folder = study / "trials" / record.name
    write_record(folder, record)
    best = np.minimum.accumulate(losses)
    lines = [
        {
            "epoch": number,
            "valid/loss": loss,
            "seconds": 2.0,
            "best_value": float(best[number - 1]),
            "best_epoch": int(np.argmin(losses[:number])) + 1,
        }
        for number, loss in enumerate(losses, start=1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if test is not None:
        summary = {"best_epoch": 1, "valid": {"loss": min(losses)}, "test": {"loss": test, "mae": 2 * test}}
        (folder / "summary.json").write_text(json.dumps(summary))


def write_study(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(Config().to_dict()))


@pytest.fixture
def search(tmp_path: Path) -> Path:
    """Seven trials: finished ones, a stopped one, a failed one, and one that runs."""
    folder = tmp_path / "search"
    write_study(folder)
    (folder / "search.yaml").write_text(yaml.safe_dump({"space": SPACE, "trials": 7}))
    random = np.random.default_rng(1)
    statuses = [FINISHED, FINISHED, FINISHED, STOPPED, STOPPED, FAILED, RUNNING]
    for number, status in enumerate(statuses):
        values = {
            "lr": float(10 ** random.uniform(-4, -1)),
            "rho": float(random.uniform(0.5, 2)),
            "coefficients": ("stable", "paper")[number % 2],
        }
        error = "step 3: the loss is <nan>" if status == FAILED else None
        record = Record(number=number, name=f"trial-{number:03d}", values=values, status=status, error=error)
        write_trial(folder, record, [1.0 - 0.1 * number, 0.9 - 0.1 * number][: 1 if status == STOPPED else 2])
    return folder


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """Two strategies with six seeds each; the second one is always better by about 0.1."""
    folder = tmp_path / "table"
    write_study(folder)
    random = np.random.default_rng(2)
    for seed in range(1, 7):
        joint = 0.5 + 0.05 * float(random.normal())
        tests = {"none": joint, "cggm": joint - 0.1 + 0.01 * float(random.normal())}
        for number, (strategy, test) in enumerate(tests.items()):
            name = f"{strategy}-seed-{seed}"
            record = Record(number=2 * seed + number, name=name, values={}, status=FINISHED)
            write_trial(folder, record, [1.0, 0.8], test)
    return folder


def test_a_search_shows_every_trial_and_what_to_copy(search: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["report", str(search)]) == 0
    assert capsys.readouterr().out.strip() == str(search / "report" / "report.html")
    page, text = check(search / "report" / "report.html"), (search / "report" / "report.html").read_text()
    # The failed trial has no line, and the best of the others is the one that runs.
    assert len(re.findall(r'<g class="trial', text)) == 6
    assert len(re.findall(r'<g class="trial[^"]* stopped', text)) == 2
    assert "The best of 7 trials is trial-006: validation loss 0.3000 at epoch 2" in page.text
    assert "This study is not finished: 6 of the 7 runs that were started are over." in page.text
    assert "trial-005 failed: step 3: the loss is <nan>" in page.text
    record = json.loads((search / "trials" / "trial-006" / "trial.json").read_text())
    assert f"--lr {record['values']['lr']} --rho" in page.text
    assert "\\begin{tabular}" in page.text
    assert "\\toprule" in page.text
    assert "| trial-006 |" in " ".join(page.text.split())


def test_a_comparison_shows_differences_points_and_cost(comparison: Path) -> None:
    assert command(["report", str(comparison)]) == 0
    page, text = check(comparison / "report" / "report.html"), (comparison / "report" / "report.html").read_text()
    tests = {
        name: [
            json.loads((comparison / "trials" / f"{name}-seed-{seed}" / "summary.json").read_text())["test"]["loss"]
            for seed in range(1, 7)
        ]
        for name in ("none", "cggm")
    }
    change = np.mean(np.subtract(tests["cggm"], tests["none"]))
    assert f"In test loss, cggm is better than none by {-change:.4f}" in page.text
    assert text.count('class="point"') == 6 + 6 + 6
    assert text.count('class="interval"') == 1
    for value in tests["none"] + tests["cggm"]:
        assert f"{value:.4f}" in page.text
    # Two epochs of two seconds each.
    assert "none 4.0 2.00 1.00 2.0" in page.text


def test_a_study_without_a_value_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    write_study(folder)
    (folder / "search.yaml").write_text(yaml.safe_dump({"space": SPACE}))
    (folder / "trials").mkdir()
    assert command(["report", str(folder)]) == 0
    assert "No run of this study has a value yet." in check(folder / "report" / "report.html").text


def test_a_damaged_record_is_one_line(search: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (search / "trials" / "trial-002" / "trial.json").write_text("{")
    assert command(["report", str(search)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "trial.json cannot be read" in line


def get(url: str) -> str:
    with urllib.request.urlopen(url) as answer:
        text: str = answer.read().decode()
        return text


def test_a_served_page_follows_a_search(search: Path) -> None:
    with server([search], "127.0.0.1", 0) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        try:
            url = f"http://127.0.0.1:{listening.server_address[1]}/"
            first, stamp = get(url), get(f"{url}stamp")
            assert "connect-src 'self'" in first
            assert stamp in first
            assert get(f"{url}stamp") == stamp
            record = Record(number=7, name="trial-007", values={"lr": 0.01, "rho": 1.0}, status=RUNNING)
            write_trial(search, record, [0.05])
            assert get(f"{url}stamp") != stamp
            assert "The best of 8 trials is trial-007: validation loss 0.0500" in get(url)
            # A damaged file leaves the page before.
            (search / "trials" / "trial-007" / "trial.json").write_text("{")
            assert "The best of 8 trials" in get(url)
            with pytest.raises(urllib.error.HTTPError):
                get(f"{url}config.yaml")
        finally:
            listening.shutdown()


def test_what_cannot_be_served_is_one_line(search: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert command(["report", str(search), "--serve", "--port", str(taken.getsockname()[1])]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be used" in line
    assert command(["report", str(search), "--serve", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.strip() == "error: out: not with --serve, which writes no page into a folder"
