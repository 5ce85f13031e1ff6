"""`report.html` and its pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cggm_ray.core.errors import StorageError, UsageError
from cggm_ray.report import charts, curves, figures, html, outcome, terms, tried
from cggm_ray.report.run_record import RunRecord, flat, part, read_run_record, with_contributions
from cggm_ray.runs.contributions import Contributions
from cggm_ray.runs.verdict import verdict
from cggm_ray.storage.files import write_bytes
from cggm_ray.studies.headroom import Headroom

PAGE = "report.html"
FOLDER = "report"
MOST_RUNS = 12
MOST_ROWS = 60
"""Epochs in the table of a run; of more, evenly spread ones are shown."""
PICTURE_TONES = 160
"""Colours of a picture of cases."""


def report(folders: Sequence[Path], out: Path | None = None, score: bool = True) -> Path:
    """Writes the page of one or several runs and its pictures.

    Args:
        folders: of the runs.
        out: folder for the page; default `report` in the folder of the run, or beside the first of several.
        score: whether subsets of modalities that a run has not scored are scored now.

    Returns:
        The page.

    Raises:
        UsageError: a folder is not that of a run, a file in it is damaged, or there are too many.
        StorageError: the page cannot be written.
    """
    if len(folders) > MOST_RUNS:
        raise UsageError(f"report: found {len(folders)} runs; expected at most {MOST_RUNS} on one page")
    runs = [read_run_record(folder, label) for folder, label in zip(folders, labels(folders), strict=True)]
    if score:
        runs = [with_contributions(run) for run in runs]
    if out is None:
        first = runs[0].folder
        out = first / FOLDER if len(runs) == 1 else first.parent / f"report-of-{len(runs)}-runs"
    return write_page(runs, out)


def labels(folders: Sequence[Path]) -> list[str]:
    """Names of the runs, those that occur several times with a number."""
    names = [folder.absolute().name for folder in folders]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: place + 1].count(name)})"
        for place, name in enumerate(names)
    ]


def write_page(runs: Sequence[RunRecord], out: Path) -> Path:
    """Writes the page and its pictures into a folder, which is made if need be; other files in it stay.

    Raises:
        StorageError: it cannot be written.
    """
    drawn: dict[str, bytes] = {}
    text = page_html(runs, drawn)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, data in {**drawn, PAGE: text.encode()}.items():
            write_bytes(out / name, data)
    except OSError as error:
        raise StorageError(f"{out}: the report cannot be written: {error.strerror}") from None
    return out / PAGE


def page_html(runs: Sequence[RunRecord], drawn: dict[str, bytes] | None = None, *, live: str = "") -> str:
    """Returns the page of one or several runs.

    Args:
        runs: in their order.
        drawn: receives the files of the pictures; None draws only those that the page itself holds.
        live: state of the files, for a page that asks its server for its newer self; empty for a page that stays as it is.
    """
    several = len(runs) > 1
    metric = runs[0].metric if len({run.metric for run in runs}) == 1 else "loss"
    with_lines = [run for run in runs if run.lines]
    if drawn is not None:
        _draw_files(runs, metric, drawn)
    shared = curves.shared_ends(with_lines) if several and with_lines else None
    shapley = [value for run in runs if run.contributions for value in run.contributions.shapley.values()]
    content = {
        "title": f"{len(runs)} runs of cggm-ray" if several else f"{runs[0].label}: a run of cggm-ray",
        "results": _results(runs),
        "compared": curves.compared(with_lines, metric) if several and with_lines else None,
        "several": several,
        "side": _side_by_side(with_lines, shared) if shared is not None else (),
        "runs": [_run(run, shapley) for run in runs],
        "differing": "between the runs" if several else "from the default",
        "configuration": _configuration(runs),
        "versions": _versions(runs),
        "terms": terms.TERMS,
        "plots": bool(live or with_lines) or any(run.truth is not None for run in runs),
        "live": live,
    }
    return html.render("page.html", content)


def _draw_files(runs: Sequence[RunRecord], metric: str, drawn: dict[str, bytes]) -> None:
    """Draws the pictures that lie beside the page, for papers and slides."""
    with_lines = [run for run in runs if run.lines]
    if len(runs) > 1 and with_lines:
        drawn["compared.png"] = figures.png(figures.compared(with_lines, metric)[0])
    for run in runs:
        files = {
            "curves": figures.curves(run) if run.lines else None,
            "balance": figures.balance(run) if run.lines else None,
            "coefficients": figures.coefficients(run) if run.lines else None,
            "subsets": outcome.subset_bars(run.contributions)
            if run.contributions and not run.contributions.missing
            else None,
            "predictions": outcome.predictions(run),
        }
        for name, drawing in files.items():
            if drawing is not None:
                tones = PICTURE_TONES if name == "predictions" else figures.TONES
                drawn[f"{run.label}-{name}.png"] = figures.png(drawing[0], tones)


def _results(runs: Sequence[RunRecord]) -> html.Table:
    """The metrics of all runs."""
    names = list(dict.fromkeys(name for run in runs if run.result for name in run.result.test))
    if len(runs) == 1 and (only := runs[0].result) is not None:
        # In columns, which a telephone shows whole.
        run = runs[0]
        pairs: list[list[object]] = [
            [_directed(run, name), only.valid.get(name), only.test[name], terms.METRICS.get(name, ("", ""))[1]]
            for name in names
        ]
        chosen = "the best on validation"
        if run.config.train.refit:
            chosen = "the last of a network that was trained on validation too"
        which = f"epoch {only.best_epoch}, {chosen}" if only.best_epoch else "an ensemble"
        return html.Table(
            caption=f"Metrics of {which}",
            head=["metric", "validation", "test", "unit"],
            rows=pairs,
            name="results",
            look="single",
        )
    rows: list[list[object]] = []
    for run in runs:
        result, planned = run.result, run.planned
        for split in ("valid", "test") if result else ():
            record: Mapping[str, float] = getattr(result, split)
            rows.append(
                [run.label, split, (result.best_epoch or None) if result else None, *(record.get(n) for n in names)]
            )
        if result is None:
            rows.append([run.label, f"unfinished: {len(run.lines)} of {planned} epochs", None, *([None] * len(names))])
    head = ["run", "split", "best epoch", *(_directed(runs[0], name) for name in names)]
    return html.Table(caption="Metrics of the best checkpoint", head=head, rows=rows, name="results")


def _directed(run: RunRecord, name: str) -> str:
    return terms.metric_name(name, terms.direction(name, run.metric, run.better))


def _side_by_side(
    runs: Sequence[RunRecord], shared: Mapping[str, tuple[float, float]]
) -> list[tuple[str, str, list[curves.Curves]]]:
    """Question, explanation and a picture of each run that recorded the quantity."""
    drawn = [(run.label, {each.title: each for each in curves.balance(run, shared)}) for run in runs]
    titles = dict.fromkeys(title for _, found in drawn for title in found)
    rows = []
    for title in titles:
        pictures = [(label, found[title]) for label, found in drawn if title in found]
        alone = [dataclasses.replace(each, title=label, caption="") for label, each in pictures]
        rows.append((title, pictures[0][1].caption, alone))
    return rows


def _run(run: RunRecord, beside: Sequence[float]) -> dict[str, Any]:
    """What the section of a run shows, see `templates/run.html`; `beside` are the Shapley values of all runs."""
    return {
        "label": run.label,
        "finished": run.result is not None,
        "epochs": len(run.lines),
        "planned": run.planned,
        "verdict": verdict(run.contributions, fitted=bool(run.config.train.refit)) if run.contributions else "",
        "demonstration": run.config.data.data_path is None,
        "strategy": run.config.modulation.modulation,
        "notes": run.notes,
        "search": tried.searched(run.search, run.choice) if run.search else None,
        "ensemble": tried.ensemble(run.ensemble) if run.ensemble else None,
        "learning": curves.learning(run) if run.lines else (),
        "balance": curves.balance(run) if run.lines else (),
        "numbers": _numbers(run) if run.lines else None,
        "contributions": _contributions(run.contributions, beside) if run.contributions else None,
        "headroom": _headroom(run.headroom) if run.headroom else None,
        "predictions": outcome.shown_predictions(run),
    }


def _contributions(found: Contributions, beside: Sequence[float]) -> dict[str, Any]:
    """Scores of the subsets of modalities, and where all were scored the Shapley values."""
    names = {subset: " + ".join(found.names(subset)) or "none" for subset in found.scores}
    metric = terms.metric_words(found.metric, found.better)
    scores = html.Table(
        caption="Scores of the subsets",
        head=["modalities", terms.metric_name(found.metric, found.better)],
        rows=[[names[subset], score] for subset, score in found.scores.items()],
    )
    shown = {"missing": len(found.missing), "subsets": len(found.scores) + len(found.missing), "scores": scores}
    if found.missing:
        return shown
    drawn = sorted((subset for subset in found.scores if outcome.has_bar(found, subset)), key=len)
    subsets = charts.bars(
        "How good is the network with only these modalities?",
        {outcome.subset_name(found, subset): found.scores[subset] for subset in drawn},
        f"{outcome.split_name(found)} {metric}",
        f"Bars of {found.metric} for {len(drawn)} subsets of modalities, from {found.scores[drawn[0]]:.4g} with none to "
        f"{found.scores[drawn[-1]]:.4g} with all.",
        "The other modalities are masked. The network was never trained to do without them.",
    )
    ranked = dict(sorted(found.shapley.items(), key=lambda item: -item[1]))
    shapley = charts.bars(
        "What does each modality contribute?",
        ranked,
        f"Shapley value, change of {found.metric}"
        + (" as a fall, so that positive is good" if found.better == "min" else ", positive is good"),
        "Shapley values: " + ", ".join(f"{name} {value:.4g}" for name, value in ranked.items()) + ".",
        beside=beside,
    )
    return {**shown, "shapley": shapley, "subsets_drawn": subsets, "imbalance": found.imbalance}


def _headroom(found: Headroom) -> dict[str, Any]:
    """The table of what balancing can gain, with notes and conclusion."""
    rows = html.Table(caption="Joint training beside what it leaves out", head=found.head(), rows=found.cells())
    return {"rows": rows, "notes": found.notes, "conclusion": found.conclusion}


def _numbers(run: RunRecord) -> html.Table:
    """What was recorded by epoch."""
    names = [name for name in run.lines[-1] if name != "epoch"]
    count = len(run.lines)
    places = sorted({round(k * (count - 1) / max(1, min(count, MOST_ROWS) - 1)) for k in range(min(count, MOST_ROWS))})
    rows = [[int(run.lines[k]["epoch"] or 0), *(run.lines[k].get(name) for name in names)] for k in places]
    return html.Table(caption="What was recorded", head=["epoch", *names], rows=rows)


def _configuration(runs: Sequence[RunRecord]) -> html.Table:
    """All fields; those that differ between the runs, or from the defaults of a single one, are marked."""
    values = [run.defaults() for run in runs[:1]] + [flat(run.config) for run in runs]
    compared = values if len(runs) == 1 else values[1:]
    keys = list(dict.fromkeys(key for each in values for key in each))
    differing = [any(each.get(key) != compared[0].get(key) for each in compared) for key in keys]
    what = "from the default" if len(runs) == 1 else "between the runs"
    return html.Table(
        caption=f"Fields of the configuration; {sum(differing)} of {len(keys)} differ {what}",
        head=["field", "default", *(run.label for run in runs)],
        rows=[[key, *(html.plain(each.get(key)) for each in values)] for key in keys],
        marked=differing,
        name="configuration",
    )


def _versions(runs: Sequence[RunRecord]) -> html.Table:
    """What made the last start of every run."""
    last = [run.provenance[-1] if run.provenance else {} for run in runs]
    packages = list(dict.fromkeys(name for entry in last for name in part(entry, "versions")))
    rows: list[list[object]] = [[name, *(html.plain(part(e, "versions").get(name)) for e in last)] for name in packages]
    plain = ("time", "device", "workers", "threads", "seed", "deterministic")
    rows += [[key, *(html.plain(entry.get(key)) for entry in last)] for key in plain]
    rows.append(["commit", *(html.plain(part(entry, "git").get("commit")) for entry in last)])
    rows.append(["files changed since", *(html.plain(part(entry, "git").get("changed")) for entry in last)])
    rows.append(["set", *(html.plain(part(entry, "data").get("set")) for entry in last)])
    rows.append(["starts", *(len(run.provenance) for run in runs)])
    head = ["", *(run.label for run in runs)]
    return html.Table(caption="Versions of the last start", head=head, rows=rows)
