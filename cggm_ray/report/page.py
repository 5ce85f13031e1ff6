"""`report.html` and its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from cggm_ray.core.errors import StorageError, UsageError
from cggm_ray.report import figures, html, outcome, tried
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
    text = _page(runs, drawn)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, data in {**drawn, PAGE: text.encode()}.items():
            write_bytes(out / name, data)
    except OSError as error:
        raise StorageError(f"{out}: the report cannot be written: {error.strerror}") from None
    return out / PAGE


def _page(runs: Sequence[RunRecord], drawn: dict[str, bytes]) -> str:
    """The page; the files of its pictures are put into `drawn`."""
    several = len(runs) > 1
    metric = runs[0].metric if len({run.metric for run in runs}) == 1 else "loss"
    with_lines = [run for run in runs if run.lines]
    content = {
        "title": f"{len(runs)} runs of cggm-ray" if several else f"{runs[0].label}: a run of cggm-ray",
        "results": _results(runs),
        "compared": _draw(drawn, "compared", figures.compared(with_lines, metric), "Validation by epoch.")
        if several and with_lines
        else None,
        "several": several,
        "runs": [_run(run, drawn) for run in runs],
        "differing": "between the runs" if several else "from the default",
        "configuration": _configuration(runs),
        "versions": _versions(runs),
    }
    return html.render("page.html", content)


def _results(runs: Sequence[RunRecord]) -> html.Table:
    """The metrics of all runs."""
    names = list(dict.fromkeys(name for run in runs if run.result for name in run.result.test))
    if len(runs) == 1 and (only := runs[0].result) is not None:
        # In columns, which a telephone shows whole.
        pairs: list[list[object]] = [[name, only.valid.get(name), only.test[name]] for name in names]
        which = f"epoch {only.best_epoch}, the best on validation" if only.best_epoch else "an ensemble"
        return html.Table(
            caption=f"Metrics of {which}", head=["metric", "validation", "test"], rows=pairs, name="results"
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
    head = ["run", "split", "best epoch", *names]
    return html.Table(caption="Metrics of the best checkpoint", head=head, rows=rows, name="results")


def _run(run: RunRecord, drawn: dict[str, bytes]) -> dict[str, Any]:
    """What the section of a run shows, see `templates/run.html`."""
    drawing = outcome.predictions(run)
    return {
        "label": run.label,
        "finished": run.result is not None,
        "epochs": len(run.lines),
        "planned": run.planned,
        "verdict": verdict(run.contributions) if run.contributions else "",
        "demonstration": run.config.data.data_path is None,
        "notes": run.notes,
        "search": tried.searched(run.search, run.choice) if run.search else None,
        "ensemble": tried.ensemble(run.ensemble) if run.ensemble else None,
        "training": _training(run, drawn) if run.lines else None,
        "contributions": _contributions(run.label, run.contributions, drawn) if run.contributions else None,
        "headroom": _headroom(run.headroom) if run.headroom else None,
        "predictions": _draw(drawn, f"{run.label}-predictions", drawing, drawing[1], PICTURE_TONES)
        if drawing
        else None,
    }


def _contributions(label: str, found: Contributions, drawn: dict[str, bytes]) -> dict[str, Any]:
    """Scores of the subsets of modalities, and where all were scored the Shapley values."""
    names = {subset: " + ".join(found.names(subset)) or "none" for subset in found.scores}
    scores = html.Table(
        caption="Scores of the subsets",
        head=["modalities", found.metric],
        rows=[[names[subset], score] for subset, score in found.scores.items()],
    )
    shown = {"missing": len(found.missing), "subsets": len(found.scores) + len(found.missing), "scores": scores}
    if found.missing:
        return shown
    caption = (
        "Left: the score when only these modalities are there and the others are masked. Right: what each adds, averaged "
        "over all orders in which they can be added"
        + (", as a fall of the metric, so that positive is good." if found.better == "min" else ".")
    )
    shapley = html.Table(
        caption="Shapley values",
        head=["modality", f"Shapley value ({found.metric})"],
        rows=list(found.shapley.items()),
    )
    picture = _draw(drawn, f"{label}-subsets", outcome.subset_bars(found), caption)
    return {**shown, "picture": picture, "imbalance": found.imbalance, "shapley": shapley}


def _headroom(found: Headroom) -> dict[str, Any]:
    """The table of what balancing can gain, with notes and conclusion."""
    rows = html.Table(caption="Joint training beside what it leaves out", head=found.head(), rows=found.cells())
    return {"rows": rows, "notes": found.notes, "conclusion": found.conclusion}


def _training(run: RunRecord, drawn: dict[str, bytes]) -> dict[str, Any]:
    """Learning curves, and what modulation saw and did."""
    label, modulation = run.label, run.config.modulation
    balance = (
        f"Means of each epoch, strategy {modulation.modulation}. The gradient norm is that of the loss's gradient at the "
        "encoder's weights, with the coefficients in it and before clipping to a largest norm."
    )
    drawing = figures.coefficients(run)
    coefficients = "Coefficient of every encoder's gradient, a mean over the steps of the epoch."
    if run.recorded("clipped"):
        coefficients += " A step is clipped for a modality that got worse in it and was counted as unchanged."
    curves = "Loss, and the metric that chooses the best epoch."
    names = [name for name in run.lines[-1] if name != "epoch"]
    count = len(run.lines)
    places = sorted({round(k * (count - 1) / max(1, min(count, MOST_ROWS) - 1)) for k in range(min(count, MOST_ROWS))})
    rows = [[int(run.lines[k]["epoch"] or 0), *(run.lines[k].get(name) for name in names)] for k in places]
    return {
        "curves": _draw(drawn, f"{label}-curves", figures.curves(run), curves),
        "balance": _draw(drawn, f"{label}-balance", figures.balance(run), balance),
        "coefficients": _draw(drawn, f"{label}-coefficients", drawing, coefficients) if drawing else None,
        "numbers": html.Table(caption="What was recorded", head=["epoch", *names], rows=rows),
    }


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
    return html.Table(caption="Versions and surroundings of the last start", head=head, rows=rows)


def _draw(
    drawn: dict[str, bytes], name: str, drawing: tuple[Figure, str], caption: str, tones: int = figures.TONES
) -> html.Picture:
    """A figure of the page, whose file is put into `drawn`."""
    figure, alternative = drawing
    data = drawn[f"{name}.png"] = figures.png(figure, tones)
    return html.Picture(data=data, alternative=alternative, caption=caption)
