"""The page of a study: what a search found, or how strategies compare."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tabulate import tabulate

from cggm_ray.core.errors import StorageError
from cggm_ray.report import charts, curves, html, terms
from cggm_ray.report.run_record import flat, part
from cggm_ray.report.study_record import StudyRecord, read_study_record
from cggm_ray.storage.files import write_bytes
from cggm_ray.studies.comparison import Results, comparison_cells, entry_and_pair, spread
from cggm_ray.studies.importance import importances
from cggm_ray.studies.space import Search
from cggm_ray.studies.statistics import LEVEL
from cggm_ray.studies.store import FAILED, FINISHED, STOPPED, Outcome

FOLDER, PAGE = "report", "report.html"
LEADERS = 10
"""Trials in the tables to copy."""
SHOWN = 8
"""Best trials whose curves are drawn."""
SURE = 0.05
"""Corrected p-value below which a difference is called certain."""


def study_report(folder: Path, out: Path | None = None) -> Path:
    """Writes the page of a study.

    Args:
        folder: of a search or a comparison, finished or not.
        out: folder for the page; default `report` in the folder of the study.

    Returns:
        The page.

    Raises:
        UsageError: the folder is not that of a study, or a file in it is damaged.
        StorageError: the page cannot be written.
    """
    text = study_html(read_study_record(folder))
    out = folder / FOLDER if out is None else out
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_bytes(out / PAGE, text.encode())
    except OSError as error:
        raise StorageError(f"{out}: the report cannot be written: {error.strerror}") from None
    return out / PAGE


def study_html(study: StudyRecord, *, live: str = "") -> str:
    """Returns the page of a study; `live` is that of `report.page.page_html`."""
    kind = "search" if study.search is not None else "comparison"
    content = {
        "title": f"{study.folder.name}: a {kind} of cggm-ray",
        "demonstration": study.config.data.data_path is None,
        "running": study.running,
        "started": len(study.found),
        "over": sum(outcome.record.over for outcome in study.found),
        "failed": [outcome.record for outcome in study.found if outcome.record.status == FAILED],
        "search": search_part(study, study.search) if study.search is not None and study.order else None,
        "comparison": comparison_part(study, study.results)
        if study.results is not None and study.results.values
        else None,
        "headroom": headroom_part(study),
        "configuration": _configuration(study),
        "versions": _versions(study),
        "terms": terms.TERMS,
        "live": live,
        "plots": bool(live) or study.search is not None,
    }
    return html.render("study.html", content)


def search_part(study: StudyRecord, search: Search) -> dict[str, Any]:
    """Returns what the page says about a search, see `templates/search.html`."""
    order, metric = study.order, terms.metric_name(study.metric, study.better)
    best, keys = order[0], [parameter.key for parameter in search.space]
    stopped = sum(outcome.record.status == STOPPED for outcome in study.found)
    weights = importances(search.space, order)
    shares = {each.key: each.share for each in weights if each.share is not None}
    rows = [_trial_row(rank, outcome, keys) for rank, outcome in enumerate(order, start=1)]
    rows += [_trial_row(None, outcome, keys) for outcome in study.found if outcome not in order]
    head = ["trial", "rank", f"best validation {metric}", "at epoch", "status", "epochs", "seconds", *keys]
    return {
        "verdict": _search_verdict(study),
        "stopped": stopped,
        "curves": curves.trials(order[:SHOWN], study.metric, study.better),
        "parallel": charts.parallel(
            search.space,
            order,
            study.metric,
            f"Each line is a trial, from its values on the left to its best validation {metric} on the right. The thick line "
            "is the best trial; dashed lines were stopped early. The axis of the metric leaves out the worst tenth, which ends "
            "at its edge.",
        ),
        "importance": charts.bars(
            "Which parameters matter?",
            {key: 100 * share for key, share in shares.items()},
            "share of the variance of ranks that the parameter explains (%)",
            "Bar chart: " + ", ".join(f"{key} {share:.0%}" for key, share in shares.items()) + ".",
            words=lambda value: f"{value:.0f} %",
        )
        if shares
        else None,
        "directions": html.Table(
            caption="Which values are better?",
            head=["parameter", "importance", "better", "trials"],
            rows=[
                [
                    each.key,
                    "not defined" if each.share is None else f"{each.share:.0%}",
                    each.direction or "no tendency",
                    each.trials,
                ]
                for each in weights
            ],
        ),
        "trials": html.Table(caption=f"All {len(study.found)} trials", head=head, rows=rows, name="trials"),
        "best": _best_configuration(study, best),
        "copies": _copies([row[:1] + row[2:] for row in rows[:LEADERS]], [head[0], *head[2:]]),
        "tested": _tested(study),
    }


def comparison_part(study: StudyRecord, results: Results) -> dict[str, Any]:
    """Returns what the page says about a comparison, see `templates/comparison.html`."""
    metric, several = study.metric, len(results.values) > 1
    head, rows = comparison_cells(results)
    directed = {name: terms.metric_name(name, terms.direction(name, metric, study.better)) for name in results.metrics}
    shown = [directed.get(cell, cell) for cell in head]
    every = [[directed[name], *(spread(results.of(each, name)) for each in results.values)] for name in results.metrics]
    runs = [
        [f"{strategy}, {pair}", *(values[name] for name in results.metrics)]
        for strategy, by_pair in results.values.items()
        for pair, values in by_pair.items()
    ]
    return {
        "verdict": _comparison_verdict(results),
        "points": _points(results),
        "differences": _differences(results) if several else None,
        "table": html.Table(caption=f"Test {directed[metric]}", head=shown, rows=rows),
        "metrics": html.Table(
            caption="All test metrics, mean ± standard deviation", head=["metric", *results.values], rows=every
        ),
        "cost": _cost(study, results),
        "runs": html.Table(caption="Every run", head=["run", *directed.values()], rows=runs),
        "copies": _copies(rows, shown),
    }


def headroom_part(study: StudyRecord) -> dict[str, Any] | None:
    """Returns the table of what balancing can gain, or None where it was not measured."""
    found = study.headroom
    if found is None:
        return None
    rows = html.Table(caption="Joint training beside what it leaves out", head=found.head(), rows=found.cells())
    return {"rows": rows, "notes": found.notes, "conclusion": found.conclusion}


def _search_verdict(study: StudyRecord) -> str:
    best, count = study.order[0], len(study.found)
    name, _ = terms.METRICS.get(study.metric, (study.metric, ""))
    trained, full = sum(each.epochs for each in study.found), count * max(each.epochs for each in study.found)
    text = f"The best of {count} trials is {best.record.name}: validation {name} {best.best:.4f} at epoch {best.best_epoch}"
    if study.tested.get("test"):
        text += f", test {name} {study.tested['test'].get(study.metric, float('nan')):.4f}"
    stopped = sum(each.record.status == STOPPED for each in study.found)
    if stopped:
        text += f". {stopped} trials were stopped early, which saved {1 - trained / full:.0%} of the epochs"
    return text + "."


def _comparison_verdict(results: Results) -> str:
    name, _ = terms.METRICS.get(results.metric, (results.metric, ""))
    changes = results.differences(results.metric)
    if not changes:
        return ""
    better = {
        key: change for key, change in changes.items() if (change.mean < 0) == (results.better == "min") and change.mean
    }
    sure = {key for key, change in changes.items() if change.p_holm is not None and change.p_holm < SURE}
    if not sure:
        pairs = max(change.pairs for change in changes.values())
        return f"No strategy differs from {results.baseline} with certainty in test {name}, over {pairs} pairs of runs."
    parts = [
        f"{key} is {'better' if key in better else 'worse'} than {results.baseline} by {abs(changes[key].mean):.4f}"
        for key in changes
        if key in sure
    ]
    return f"In test {name}, {' and '.join(parts)} (p after Holm's correction below {SURE})."


def _points(results: Results) -> charts.Strip:
    name, better = results.metric, results.better
    values = {strategy: results.of(strategy, name) for strategy in results.values}
    scale = charts.axis([v for each in values.values() for v in each], f"test {terms.metric_words(name, better)}")
    rows = [
        charts.Row(
            label=strategy,
            text=spread(results.of(strategy, name)),
            points=[
                (scale.at(run[name]), f"{pair}: {run[name]:.4f}")
                for pair, run in results.values[strategy].items()
                if np.isfinite(run[name])
            ],
            mean=scale.at(float(np.mean(values[strategy]))) if np.isfinite(values[strategy]).all() else None,
        )
        for strategy in results.values
    ]
    means = ", ".join(f"{strategy} {spread(each)}" for strategy, each in values.items())
    return charts.Strip(
        title=f"What does every run reach in test {terms.METRICS.get(name, (name,))[0]}?",
        axis=scale,
        rows=rows,
        alternative=f"A point for each run by strategy, with the mean: {means}.",
        caption="A point is a run (a seed and fold); the upright line is their mean. All rows have the same axis.",
    )


def _differences(results: Results) -> charts.Strip | None:
    name, base = results.metric, results.baseline
    theirs, changes = results.values[base], results.differences(results.metric)
    pairs = {
        strategy: {
            pair: run[name] - theirs[pair][name] for pair, run in results.values[strategy].items() if pair in theirs
        }
        for strategy in changes
    }
    ends = [end for change in changes.values() for end in (change.low, change.high) if end is not None]
    if not changes:
        return None
    side = "below" if results.better == "min" else "above"
    words = f"difference in test {terms.METRICS.get(name, (name,))[0]} to {base}; {side} 0 is better"
    scale = charts.axis([*(v for each in pairs.values() for v in each.values()), *ends], words, zero=True)
    rows = [
        charts.Row(
            label=strategy,
            text=f"{change.mean:+.4f}"
            + ("" if change.low is None or change.high is None else f" [{change.low:+.4f}, {change.high:+.4f}]"),
            points=[
                (scale.at(value), f"{pair}: {value:+.4f}")
                for pair, value in pairs[strategy].items()
                if np.isfinite(value)
            ],
            mean=scale.at(change.mean) if np.isfinite(change.mean) else None,
            interval=None
            if change.low is None or change.high is None
            else (scale.at(change.low), scale.at(change.high)),
        )
        for strategy, change in changes.items()
    ]
    said = ", ".join(f"{row.label} {row.text}" for row in rows)
    return charts.Strip(
        title=f"How far is each strategy from {base}?",
        axis=scale,
        rows=rows,
        alternative=f"Mean differences with {LEVEL:.0%} intervals: {said}.",
        caption="A point is a pair of runs with the same seed and fold. The upright line is the mean, the bar its "
        f"{LEVEL:.0%} interval.",
    )


def _cost(study: StudyRecord, results: Results) -> html.Table:
    """The time and the epochs of each strategy's runs."""
    by_strategy: dict[str, list[Outcome]] = {}
    for outcome in study.found:
        if outcome.record.status == FINISHED:
            by_strategy.setdefault(entry_and_pair(outcome.record.name)[0], []).append(outcome)
    seconds = {
        name: [sum(line.get("seconds") or 0 for line in each.lines) for each in found]
        for name, found in by_strategy.items()
    }
    base = float(np.mean(seconds[results.baseline])) if results.baseline in seconds else 0.0
    rows: list[list[object]] = []
    for name, found in by_strategy.items():
        mean, epochs = float(np.mean(seconds[name])), [each.epochs for each in found]
        per_epoch = mean / max(1.0, float(np.mean(epochs)))
        ratio = f"{mean / base:.2f}" if base else "-"
        rows.append(
            [
                name,
                f"{mean:.1f}",
                f"{per_epoch:.2f}",
                ratio,
                f"{np.mean(epochs):.1f}",
                f"{np.mean([e.best_epoch for e in found]):.1f}",
            ]
        )
    head = [
        "strategy",
        "seconds of training",
        "seconds per epoch",
        f"relative to {results.baseline}",
        "epochs",
        "best epoch",
    ]
    return html.Table(caption="What each strategy costs, means over its runs", head=head, rows=rows)


def _trial_row(rank: int | None, outcome: Outcome, keys: Sequence[str]) -> list[object]:
    seconds = sum(line.get("seconds") or 0 for line in outcome.lines)
    values = [outcome.record.values.get(key) for key in keys]
    shown = [f"{v:.4g}" if isinstance(v, float) else "default" if v == "" else html.plain(v) for v in values]
    best = None if outcome.best is None else f"{outcome.best:.4f}"
    status = {STOPPED: "stopped early"}.get(outcome.record.status, outcome.record.status)
    return [
        outcome.record.name,
        rank,
        best,
        outcome.best_epoch or None,
        status,
        outcome.epochs,
        f"{seconds:.1f}",
        *shown,
    ]


def _best_configuration(study: StudyRecord, best: Outcome) -> html.Copy:
    path = study.folder / "best.yaml"
    text = path.read_text() if path.exists() else yaml.safe_dump(dict(best.record.values), sort_keys=False)
    flags = " ".join(f"--{key} {value}" for key, value in best.record.values.items() if value != "")
    return html.Copy(title="Best configuration", text=f"# as flags: {flags}\n{text}", of="yaml, for --config")


def _copies(rows: Sequence[Sequence[object]], head: Sequence[str]) -> list[html.Copy]:
    """A table in the forms in which papers and repositories hold it."""
    cells = [["" if cell is None else html.text(cell) for cell in row] for row in rows]
    markdown = tabulate(cells, head, tablefmt="github", disable_numparse=True)
    latex = tabulate(cells, head, tablefmt="latex_booktabs", disable_numparse=True)
    for sign, command in {"±": r"$\pm$", "↓": r"$\downarrow$", "↑": r"$\uparrow$"}.items():
        latex = latex.replace(sign, command)
    return [
        html.Copy(title="Table as Markdown", text=markdown),
        html.Copy(title="Table as LaTeX", text=latex, of="needs the package booktabs"),
    ]


def _tested(study: StudyRecord) -> html.Table | None:
    names = list(study.tested.get("test", {}))
    if not names:
        return None
    rows: list[list[object]] = [
        [
            terms.metric_name(name, terms.direction(name, study.metric, study.better)),
            study.tested.get("valid", {}).get(name),
            study.tested["test"][name],
        ]
        for name in names
    ]
    return html.Table(
        caption="Metrics of the best trial, the only one that was tested",
        head=["metric", "validation", "test"],
        rows=rows,
    )


def _configuration(study: StudyRecord) -> html.Table:
    rows = [[key, html.plain(value)] for key, value in flat(study.config).items()]
    return html.Table(caption="Configuration that the runs change", head=["field", "value"], rows=rows)


def _versions(study: StudyRecord) -> html.Table:
    last: Mapping[str, Any] = study.provenance[-1] if study.provenance else {}
    rows: list[list[object]] = [[name, html.plain(version)] for name, version in part(last, "versions").items()]
    rows += [[key, html.plain(last.get(key))] for key in ("time", "device", "seed")]
    command = last.get("command")
    rows.append(["command", shlex.join(map(str, command)) if isinstance(command, list) else command])
    return html.Table(caption="Versions of the last start", head=["", "value"], rows=rows)
