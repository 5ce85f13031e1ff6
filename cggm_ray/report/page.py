"""`report.html` and its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from cggm_ray.core.errors import StorageError, UsageError
from cggm_ray.report import figures, html, outcome
from cggm_ray.report.run_record import Story, flat, part, read_story, with_contributions

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
    stories = [read_story(folder, label) for folder, label in zip(folders, labels(folders), strict=True)]
    if score:
        stories = [with_contributions(story) for story in stories]
    if out is None:
        first = stories[0].folder
        out = first / FOLDER if len(stories) == 1 else first.parent / f"report-of-{len(stories)}-runs"
    return write_page(stories, out)


def labels(folders: Sequence[Path]) -> list[str]:
    """Names of the runs, those that occur several times with a number."""
    names = [folder.absolute().name for folder in folders]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: place + 1].count(name)})"
        for place, name in enumerate(names)
    ]


def write_page(stories: Sequence[Story], out: Path) -> Path:
    """Writes the page and its pictures into a folder, which is made if need be; other files in it stay.

    Raises:
        StorageError: it cannot be written.
    """
    drawn: dict[str, bytes] = {}
    text = _page(stories, drawn)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, data in {**drawn, PAGE: text.encode()}.items():
            partial = out / f".{name}.part"
            partial.write_bytes(data)
            partial.replace(out / name)
    except OSError as error:
        raise StorageError(f"{out}: the report cannot be written: {error.strerror}") from None
    return out / PAGE


def _page(stories: Sequence[Story], drawn: dict[str, bytes]) -> str:
    """The page; the files of its pictures are put into `drawn`."""
    several = len(stories) > 1
    title = f"{len(stories)} runs of cggm-ray" if several else f"{stories[0].label}: a run of cggm-ray"
    parts = [f"<h1>{html.text(title)}</h1>", _results(stories)]
    if several:
        metric = stories[0].metric if len({story.metric for story in stories}) == 1 else "loss"
        parts.append(
            _draw(drawn, "compared", figures.compared([s for s in stories if s.lines], metric), "Validation by epoch.")
        )
        tabs = "".join(
            f'<button role="tab" type="button" id="tab-{number}" aria-controls="run-{number}">{html.text(s.label)}</button>'
            for number, s in enumerate(stories)
        )
        parts.append(f'<h2 id="runs">Runs</h2><div role="tablist" aria-label="runs">{tabs}</div>')
    for number, story in enumerate(stories):
        role = f' role="tabpanel" aria-labelledby="tab-{number}"' if several else ""
        parts.append(f'<section id="run-{number}"{role}>{_run(story, drawn)}</section>')
    parts += [_configuration(stories), _versions(stories)]
    return html.document(title, "\n".join(parts))


def _results(stories: Sequence[Story]) -> str:
    """The metrics of all runs."""
    names = list(dict.fromkeys(name for story in stories if story.result for name in story.result.test))
    rows: list[list[object]] = []
    for story in stories:
        result, planned = story.result, story.config.train.num_epochs
        for split in ("valid", "test") if result else ():
            record: Mapping[str, float] = getattr(result, split)
            rows.append([story.label, split, result.best_epoch if result else None, *(record.get(n) for n in names)])
        if result is None:
            rows.append(
                [story.label, f"unfinished: {len(story.lines)} of {planned} epochs", None, *([None] * len(names))]
            )
    return html.table("Metrics of the best checkpoint", ["run", "split", "best epoch", *names], rows, name="results")


def _run(story: Story, drawn: dict[str, bytes]) -> str:
    """The section of a run."""
    parts = [f"<h2>{html.text(story.label)}</h2>"]
    if story.result is None:
        parts.append(
            html.paragraph(
                f"This run is not finished: {len(story.lines)} of {story.config.train.num_epochs} epochs are there. Shown "
                "is what it has recorded so far; the same command with the same --name goes on with it.",
                "notice",
            )
        )
    parts += [html.paragraph(note, "notice") for note in story.notes]
    if story.lines:
        parts += _training(story, drawn)
    found = story.contributions
    if found is not None:
        names = {subset: " + ".join(found.names(subset)) or "none" for subset in found.scores}
        parts.append("<h3>What each modality contributes</h3>")
        if found.missing:
            parts.append(
                html.paragraph(
                    f"{len(found.missing)} of {len(found.scores) + len(found.missing)} subsets of modalities were not scored "
                    "before time was up or the run was told to stop, so there are no Shapley values; `python -m cggm_ray "
                    "report` scores them all.",
                    "notice",
                )
            )
        else:
            parts += [
                _draw(
                    drawn,
                    f"{story.label}-subsets",
                    outcome.subset_bars(found),
                    "Left: the score when only these modalities are there and the others are masked. Right: what each adds, "
                    "averaged over all orders in which they can be added"
                    + (", as a fall of the metric, so that positive is good." if found.better == "min" else "."),
                ),
                html.paragraph(f"Imbalance degree {found.imbalance:.3f}: 0 equal contributions, 1 a single modality."),
                html.table(
                    "Shapley values",
                    ["modality", f"Shapley value ({found.metric})"],
                    [[name, value] for name, value in found.shapley.items()],
                ),
            ]
        parts.append(
            html.table(
                "Scores of the subsets",
                ["modalities", found.metric],
                [[names[subset], score] for subset, score in found.scores.items()],
            )
        )
    drawing = outcome.predictions(story)
    if drawing is not None:
        parts += [
            "<h3>Test predictions</h3>",
            _draw(drawn, f"{story.label}-predictions", drawing, drawing[1], PICTURE_TONES),
        ]
    return "\n".join(parts)


def _training(story: Story, drawn: dict[str, bytes]) -> list[str]:
    """Learning curves, and what modulation saw and did."""
    label, modulation = story.label, story.config.modulation
    parts = [
        "<h3>Learning curves</h3>",
        _draw(drawn, f"{label}-curves", figures.curves(story), "Loss, and the metric that chooses the best epoch."),
        "<h3>Balance of the modalities</h3>",
        _draw(
            drawn,
            f"{label}-balance",
            figures.balance(story),
            f"Means of each epoch, strategy {modulation.modulation}. The gradient norm is that of the loss's gradient at the "
            "encoder's weights, with the coefficients in it and before clipping to a largest norm.",
        ),
    ]
    drawing = figures.coefficients(story)
    if drawing is not None:
        caption = "Coefficient of every encoder's gradient, a mean over the steps of the epoch."
        if story.recorded("clipped"):
            caption += " A step is clipped for a modality that got worse in it and was counted as unchanged."
        parts.append(_draw(drawn, f"{label}-coefficients", drawing, caption))
    names = [name for name in story.lines[-1] if name != "epoch"]
    count = len(story.lines)
    places = sorted({round(k * (count - 1) / max(1, min(count, MOST_ROWS) - 1)) for k in range(min(count, MOST_ROWS))})
    rows = [[int(story.lines[k]["epoch"] or 0), *(story.lines[k].get(name) for name in names)] for k in places]
    numbers = html.table("What was recorded", ["epoch", *names], rows)
    return [*parts, f"<details><summary>Numbers by epoch</summary>{numbers}</details>"]


def _configuration(stories: Sequence[Story]) -> str:
    """All fields; those that differ between the runs, or from the defaults of a single one, are marked."""
    values = [story.defaults() for story in stories[:1]] + [flat(story.config) for story in stories]
    compared = values if len(stories) == 1 else values[1:]
    keys = list(dict.fromkeys(key for each in values for key in each))
    differing = [any(each.get(key) != compared[0].get(key) for each in compared) for key in keys]
    what = "from the default" if len(stories) == 1 else "between the runs"
    return (
        '<h2>Configuration</h2><p><label class="switch"><input type="checkbox" id="only-differing" checked> only fields that '
        f"differ {what}</label></p>"
        + html.table(
            f"Fields of the configuration; {sum(differing)} of {len(keys)} differ {what}",
            ["field", "default", *(story.label for story in stories)],
            [[key, *(_plain(each.get(key)) for each in values)] for key in keys],
            marked=differing,
            name="configuration",
        )
    )


def _versions(stories: Sequence[Story]) -> str:
    """What made the last start of every run."""
    last = [story.provenance[-1] if story.provenance else {} for story in stories]
    packages = list(dict.fromkeys(name for entry in last for name in part(entry, "versions")))
    rows: list[list[object]] = [[name, *(_plain(part(e, "versions").get(name)) for e in last)] for name in packages]
    plain = ("time", "device", "workers", "threads", "seed", "deterministic")
    rows += [[key, *(_plain(entry.get(key)) for entry in last)] for key in plain]
    rows.append(["commit", *(_plain(part(entry, "git").get("commit")) for entry in last)])
    rows.append(["files changed since", *(_plain(part(entry, "git").get("changed")) for entry in last)])
    rows.append(["set", *(_plain(part(entry, "data").get("set")) for entry in last)])
    rows.append(["starts", *(len(story.provenance) for story in stories)])
    table = html.table("Versions and surroundings of the last start", ["", *(s.label for s in stories)], rows)
    return f'<h2 id="versions">Versions</h2>{table}'


def _plain(value: object) -> object:
    return value if isinstance(value, str | int | float | bool | list | None) else str(value)


def _draw(
    drawn: dict[str, bytes], name: str, drawing: tuple[Figure, str], caption: str, tones: int = figures.TONES
) -> str:
    """A figure of the page, whose file is put into `drawn`."""
    figure, alternative = drawing
    data = drawn[f"{name}.png"] = figures.png(figure, tones)
    return html.picture(data, alternative, caption)
