"""The page of a benchmark: what every arm reached on every set, what the questions are answered, and at what cost.

It is made from `bench.yaml`, `results.csv` and the head-rooms alone. Beside the page stand its tables in Markdown and LaTeX.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from tabulate import tabulate

from cggm_ray.core.errors import StorageError
from cggm_ray.core.tables import text_table
from cggm_ray.report import html
from cggm_ray.storage.files import write_text
from cggm_ray.studies.bench import MINUS, Bench
from cggm_ray.studies.bench_results import (
    CONTRIBUTION,
    IMBALANCE,
    SECONDS,
    TEST,
    VALID,
    Answer,
    Results,
    Standing,
    answers,
    quantities,
    relative_cost,
    relative_memory,
)
from cggm_ray.studies.headroom import Headroom
from cggm_ray.studies.statistics import LEVEL

PAGE, MARKDOWN, LATEX = "leaderboard.html", "leaderboard.md", "leaderboard.tex"
SIGNIFICANT = 0.05
Cost = Callable[[Results, Bench, str, str], float | None]
COSTS: dict[str, Cost] = {"time of a step": relative_cost, "memory": relative_memory}
"""What an arm costs in units of the baseline."""


def write_leaderboard(folder: Path, bench: Bench, results: Results, standings: Mapping[str, Standing]) -> Path:
    """Writes the page and its tables into the folder of a benchmark.

    Args:
        folder: of the benchmark.
        bench: the benchmark.
        results: its numbers.
        standings: metric and head-room by set.

    Returns:
        The page.

    Raises:
        StorageError: it cannot be written.
    """
    board = reached(bench, results, standings)
    by_question = {pair: answers(results, standings, pair) for pair in bench.questions}
    verdicts = [sentence(pair, found) for pair, found in by_question.items()]
    questions = [question_table(pair, found) for pair, found in by_question.items() if found]
    sets = [
        {"name": name, "room": room(standing.headroom), "tables": set_tables(bench, results, name, standing)}
        for name, standing in standings.items()
    ]
    texts = {
        PAGE: html.render(
            "leaderboard.html",
            {
                "title": f"{bench.name}: a benchmark of cggm-ray",
                "sortable": True,
                "verdicts": verdicts,
                "board": board,
                "questions": questions,
                "sets": sets,
                "plan": plan_table(bench),
                "latex": latex(board),
                "markdown": markdown(board),
            },
        ),
        MARKDOWN: "\n\n".join(
            [
                "\n".join(f"- {line}" for line in verdicts),
                *(f"{t.caption}\n\n{markdown(t)}" for t in (board, *questions)),
            ]
        )
        + "\n",
        LATEX: "\n\n".join(latex(table) for table in (board, *questions)) + "\n",
    }
    try:
        for name, text in texts.items():
            write_text(folder / name, text)
    except OSError as error:
        raise StorageError(f"{folder}: the page cannot be written: {error.strerror}") from None
    return folder / PAGE


def reached(bench: Bench, results: Results, standings: Mapping[str, Standing]) -> html.Table:
    """Returns the leaderboard: an arm a row, a set a column, and over how many sets that count it is ahead of the baseline."""
    costs = {
        head: [_median(cost, bench, results, standings, arm) for arm in bench.arms] for head, cost in COSTS.items()
    }
    # A system may not say how much memory a run took.
    costs = {head: column for head, column in costs.items() if any(column)}
    rows: list[list[object]] = []
    for number, arm in enumerate(bench.arms):
        cells = [spread(results.of(name, arm, TEST + standing.metric)) for name, standing in standings.items()]
        ahead = (
            [a for a in answers(results, standings, (arm, bench.baseline)) if a.counted]
            if arm != bench.baseline
            else []
        )
        wins = f"{sum(a.ahead for a in ahead)} of {len(ahead)}" if ahead else ""
        rows.append([arm, *cells, wins, *(column[number] for column in costs.values())])
    heads = [
        f"{name}, {s.metric} {'↓' if s.better == 'min' else '↑'}{'' if s.counted else ' (no room)'}"
        for name, s in standings.items()
    ]
    return html.Table(
        caption=f"Test metrics, mean ± standard deviation over up to {len(bench.seeds)} seeds",
        head=["arm", *heads, f"ahead of {bench.baseline}", *costs],
        rows=rows,
        name="board",
    )


def _median(cost: Cost, bench: Bench, results: Results, standings: Mapping[str, Standing], arm: str) -> str:
    found = [value for name in standings if (value := cost(results, bench, name, arm)) is not None]
    return f"{np.median(found):.2f}" if found else ""


def question_table(pair: tuple[str, str], found: Sequence[Answer]) -> html.Table:
    """Returns a row for every set: the paired difference, its interval and its p-values."""
    rows: list[list[object]] = [
        [
            each.name,
            f"{each.change.mean:+.4f}",
            "" if each.change.low is None else f"[{each.change.low:+.4f}, {each.change.high:+.4f}]",
            each.change.pairs,
            probability(each.change.p),
            probability(each.change.p_holm) if each.counted else "no room",
            "yes" if each.ahead else "no",
        ]
        for each in found
    ]
    head = ["set", "difference", f"{LEVEL:.0%} interval", "pairs", "p", "p (Holm)", f"{pair[0]} ahead"]
    return html.Table(caption=f"{MINUS.join(pair)}, on test, seed by seed", head=head, rows=rows)


def sentence(pair: tuple[str, str], found: Sequence[Answer]) -> str:
    """Returns the answer to a question in a sentence."""
    counted = [each for each in found if each.counted]
    first, second = pair
    if not counted:
        return f"{first} against {second}: no set with room for balancing has runs of both."
    ahead = sum(each.ahead for each in counted)
    sure = [each for each in counted if each.change.p_holm is not None and each.change.p_holm < SIGNIFICANT]
    better, worse = ([each.name for each in sure if each.ahead is side] for side in (True, False))
    parts = [f"{first} is ahead of {second} on {ahead} of {len(counted)} sets"]
    for names, word in ((better, "better"), (worse, "worse")):
        if names:
            parts.append(f"{word} beyond chance on {', '.join(names)}")
    if not sure:
        parts.append("on none of them is the difference beyond chance")
    return f"{'; '.join(parts)} (p below {SIGNIFICANT} after Holm's correction over the sets)."


def set_tables(bench: Bench, results: Results, name: str, standing: Standing) -> list[html.Table]:
    """Returns what every arm reached on a set, what its modalities contribute, and the head-room."""
    metrics = sorted(quantities(results, name, TEST), key=lambda metric: metric != standing.metric)
    modalities = quantities(results, name, CONTRIBUTION)
    rows: list[list[object]] = []
    for arm in bench.arms:
        shown = [spread(results.of(name, arm, TEST + metric)) for metric in metrics]
        given = [mean(results.of(name, arm, CONTRIBUTION + modality)) for modality in modalities]
        rows.append(
            [
                arm,
                len(results.of(name, arm, TEST + standing.metric)),
                spread(results.of(name, arm, VALID + standing.metric)),
                *shown,
                *given,
                mean(results.of(name, arm, IMBALANCE)),
                mean(results.of(name, arm, SECONDS)),
                *(cost(results, bench, name, arm) for cost in COSTS.values()),
            ]
        )
    head = [
        *("arm", "runs", f"validation {standing.metric}", *(f"test {metric}" for metric in metrics)),
        *(f"contribution of {modality}" for modality in modalities),
        *("imbalance", "seconds of training"),
        *(f"{what} relative to {bench.baseline}" for what in ("time of a step", "peak memory")),
    ]
    tables = [html.Table(caption="Arms", head=head, rows=rows)]
    found = standing.headroom
    if found is not None:
        tables.append(
            html.Table(caption="Head-room, measured before any arm ran", head=found.head(), rows=found.cells())
        )
    tried = [
        [arm, sum(1 for s, a, _ in results.trials if (s, a) == (name, arm)), best.value, changes(best.changes)]
        for arm in bench.arms
        if (best := results.best(name, arm, standing.better)) is not None
    ]
    if tried:
        head = ["arm", "trials", f"best validation {standing.metric}", "what its best trial changes"]
        tables.append(html.Table(caption="Searches", head=head, rows=tried))
    return tables


def room(found: Headroom | None) -> list[str]:
    """Returns sentences about the head-room of a set."""
    if found is None:
        return ["The head-room was not measured, so the set counts."]
    counts = "The set does not count in the answers above." if found.room is False else "The set counts."
    return [*found.conclusion, counts]


def plan_table(bench: Bench) -> html.Table:
    """Returns the settings of the benchmark."""
    search = f"{bench.trials} trials for every arm and set, seed {bench.search_seed}" if bench.trials else "none"
    about = {"search": search, **{f"searched: {key}": str(value) for key, value in bench.space.items()}}
    about["seeds of the tested runs"] = ", ".join(map(str, bench.seeds))
    about |= {
        f"set {name}": each.recipe + (f": {changes(each.flags)}" if each.flags else "")
        for name, each in bench.sets.items()
    }
    for name, arm in bench.arms.items():
        own = f"; searched besides: {', '.join(arm.space)}" if arm.space else ""
        about[f"arm {name}"] = changes(arm.flags) + own
    rows: list[list[object]] = [[what, value] for what, value in about.items()]
    return html.Table(caption="What was run", head=["what", "settings"], rows=rows)


def changes(values: Mapping[str, object]) -> str:
    """Returns fields and values as a text."""
    shown = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items())
    return ", ".join(shown) or "nothing"


def latex(table: html.Table) -> str:
    """Returns a table for LaTeX with the package booktabs."""
    cells = [[html.text(cell) for cell in row] for row in table.rows]
    return str(
        tabulate(cells, [html.text(cell) for cell in table.head], tablefmt="latex_booktabs", disable_numparse=True)
    )


def markdown(table: html.Table) -> str:
    """Returns a table in Markdown."""
    return text_table(
        [[html.text(cell) for cell in row] for row in table.rows], list(map(html.text, table.head)), markdown=True
    )


def spread(values: Mapping[int, float]) -> str:
    """Returns mean and standard deviation over the seeds."""
    numbers = list(values.values())
    if not numbers:
        return "-"
    return f"{np.mean(numbers):.4f}" + (f" ± {np.std(numbers, ddof=1):.4f}" if len(numbers) > 1 else "")


def mean(values: Mapping[int, float]) -> float | None:
    """Returns the mean over the seeds; None without any."""
    return float(np.mean(list(values.values()))) if values else None


def probability(p: float | None) -> str:
    """Returns a p-value as a text."""
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
