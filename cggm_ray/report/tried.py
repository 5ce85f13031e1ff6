"""What the page says about the search, the choice and the ensemble that led to a run."""

from __future__ import annotations

from typing import Any

from cggm_ray.report import html
from cggm_ray.runs.ensembles import Ensemble
from cggm_ray.runs.search_record import SearchRecord
from cggm_ray.studies.choice import Choice


def searched(found: SearchRecord, choice: Choice | None) -> dict[str, Any]:
    """What the search before a run tried, and what was chosen."""
    count = sum(found.trials.values())
    statuses = ", ".join(f"{number} {status}" for status, number in found.trials.items())
    limit = "" if found.minutes is None else f", in at most {found.minutes:.3g} minutes"
    first = "no value" if found.first_value is None else f"{found.first_value:.4f}"
    text = [
        f"A search of {count} trials ({statuses}){limit}. Best validation {found.metric}: {first} of the first trial, which "
        f"has the values that the search started from, and {found.value:.4f} of the best one. No trial saw the test split."
    ]
    taken, table = found.values, None
    if choice is None:
        text.append("The best trial is chosen by that value.")
    else:
        taken = choice.values
        text.append(f"{choice.basis()}.")
        caption = f"Validation {found.metric} of what could be chosen"
        table = html.Table(caption=caption, head=choice.head(), rows=choice.rows())
    rows: list[list[object]] = []
    for key, described in found.space.items():
        ((kind, values),) = ((kind, values) for kind, values in described.items() if kind != "when")
        tried = (
            " to ".join(map(str, values))
            if "uniform" in kind
            else "; ".join(str(value) or "default" for value in values)
        )
        rows.append([key, tried, *(_searched_value(values.get(key)) for values in (found.first_values, taken))])
    head = ["field", "tried", "first trial", "chosen"]
    return {"text": text, "table": html.Table(caption="What the search varied", head=head, rows=rows), "choice": table}


def ensemble(found: Ensemble) -> dict[str, Any]:
    """The members of an ensemble, and how the selection went."""
    text = (
        f"What is tested is the mean of {len(found.members)} of {len(found.candidates)} runs, each counted as often as the "
        f"greedy selection added it. In every round the run is added with which validation {found.metric} of the mean is best; "
        f"the round with the best mean is the last. {found.steps[0]['value']:.4f} of the best single run became "
        f"{found.steps[-1]['value']:.4f}. The members are runs in folders below that of the ensemble."
    )
    rows: list[list[object]] = [
        [name, value, found.members.get(name, 0), *(step["value"] for step in found.steps if step["run"] == name)]
        for name, value in found.candidates.items()
    ]
    rows = [[*row[:3], ", ".join(f"{value:.4f}" for value in row[3:])] for row in rows]
    head = ["run", f"validation {found.metric}", "count", "of the mean after each time that it was added"]
    return {"text": text, "table": html.Table(caption="Candidates of the ensemble", head=head, rows=rows)}


def _searched_value(value: object) -> object:
    return "default" if value == "" else html.plain(value)
