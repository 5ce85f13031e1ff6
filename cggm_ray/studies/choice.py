"""The choice among the best trials of a search, over several seeds.

The best of many trials on one validation split is partly the luckiest one. So the leaders of a search, and the configuration
that it started from, are trained again with seeds that the search did not use. The validation split is the one that the search
used, so a leader may still owe its place to those samples. It is chosen only where it is better than the configuration that the
search started from by more than `ERRORS` standard errors of their difference; of several such the best mean is.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cggm_ray.core.errors import UsageError
from cggm_ray.core.tables import text_table
from cggm_ray.engine.configuration import Config
from cggm_ray.storage.files import write_text
from cggm_ray.studies.headroom import Gain
from cggm_ray.studies.store import FAILED, FINISHED, Outcome, Trial, make_trial
from cggm_ray.studies.validated import Validated, lead, read_validated
from cggm_ray.tasks import Task

FOLDER = "choice"
"""Folder of the runs inside that of the run that the search leads to."""
CHOICE = "choice.json"
LEADERS = 3
"""Best trials of the search that are compared."""
SEEDS = 3
"""Runs of each."""
SURE = 2
"""Runs, the first ones, that are trained however little time there is."""
ERRORS = 2
"""Standard errors by which a trial must be ahead. The search has looked at the same samples many times, so one is too few."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A configuration that may be chosen.

    Attributes:
        trial: of the search.
        values: what the trial changes in the configuration that the search started from.
        searched: its validation metric in the search; None where it had none.
        runs: seed to the validation metric of its finished run.
        error: why a run of it failed, which takes it out; None where none did.
    """

    trial: str
    values: Mapping[str, Any]
    searched: float | None
    runs: Mapping[int, float] = dataclasses.field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Content of `choice.json`.

    Attributes:
        metric, mode: the validation metric, and 'min' or 'max'.
        minutes: that the runs were given; None for no limit.
        seeds: of the runs, in their order.
        candidates: the configuration that the search started from, then the best trials.
        compared: seeds whose runs decided; empty where too few came to their end, so that the search decided.
        chosen: trial of the chosen candidate.
        first: trial of the configuration that the search started from; None where it took no part.
        leads: trial to how much better it is than that one on validation, where the seeds say so.
        share: of the epochs of a run, up to the one with the best metric or that with the least loss, whichever is later; the
            mean over the finished runs of the chosen configuration. None without any.
        linear: mean weights of network and linear model in these runs, and median strength of it; None where one has none.
    """

    metric: str
    mode: str
    minutes: float | None
    seeds: Sequence[int]
    candidates: Sequence[Candidate]
    compared: Sequence[int]
    chosen: str
    first: str | None = None
    leads: Mapping[str, Gain] = dataclasses.field(default_factory=dict)
    share: float | None = None
    linear: Sequence[float] | None = None

    @property
    def values(self) -> Mapping[str, Any]:
        """What the chosen configuration changes."""
        return next(each.values for each in self.candidates if each.trial == self.chosen)

    def mean(self, candidate: Candidate) -> float | None:
        """Returns the mean of a candidate that decided; None where it took no part."""
        if candidate.error is not None or not self.compared or not {*self.compared} <= {*candidate.runs}:
            return None
        return statistics.fmean(candidate.runs[seed] for seed in self.compared)

    def basis(self) -> str:
        """Returns the sentence that says on what the choice was made."""
        count = len(self.compared)
        if len(self.candidates) == 1:
            return f"{self.chosen} is chosen, because the search leaves no other configuration"
        if not count:
            return f"{self.chosen} is chosen by its value in the search, because too few runs with other seeds were finished"
        others = sum(self.mean(each) is not None for each in self.candidates)
        mean = f"the mean validation {self.metric} over {count} seeds"
        over = f"{mean if count > 1 else f'validation {self.metric} with a seed'} that the search did not use"
        if self.chosen == self.first:
            return (
                f"{self.chosen}, where the search started, is kept: of {others} configurations, compared by {over}, no other "
                f"is ahead of it by more than {ERRORS} standard errors"
            )
        ahead = f"; it is ahead of {self.first}, where the search started, by more than {ERRORS} standard errors"
        return f"{self.chosen} is chosen among {others} configurations by {over}{'' if self.first is None else ahead}"

    def table(self) -> str:
        """Returns a row for each candidate, under `head`."""
        return text_table(self.rows(), ["", *self.head()[1:]])

    def head(self) -> list[str]:
        """Returns the names of the columns: a candidate's value in the search, with every seed, its mean and its lead."""
        ahead = [] if self.first is None else [f"ahead of {self.first} by"]
        return ["configuration of", "in the search", *(f"seed {seed}" for seed in self.seeds), "mean", *ahead, ""]

    def rows(self) -> list[list[object]]:
        """Returns the cells of the table."""
        return [
            [
                each.trial,
                each.searched,
                *(each.runs.get(seed) for seed in self.seeds),
                self.mean(each),
                *([] if self.first is None else [_in_words(self.leads.get(each.trial))]),
                "chosen" if each.trial == self.chosen else "failed" if each.error is not None else "",
            ]
            for each in self.candidates
        ]

    def save(self, folder: Path) -> None:
        """Writes `choice.json` into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / CHOICE, json.dumps(asdict(self), indent=1) + "\n")


def read_choice(folder: Path) -> Choice | None:
    """Returns the choice of a folder, or None if there is none yet.

    Raises:
        UsageError: the file is damaged.
    """
    try:
        found = json.loads((folder / CHOICE).read_text())
        candidates = [
            Candidate(**{**each, "runs": {int(seed): float(value) for seed, value in each["runs"].items()}})
            for each in found.pop("candidates")
        ]
        leads = {trial: Gain(**lead) for trial, lead in found.pop("leads", {}).items()}
        # Of a choice that was made when there was ridge regression alone, in an average.
        if average := found.pop("ridge", None):
            found["linear"] = [1 - average[0], *average]
        choice = Choice(candidates=candidates, leads=leads, **found)
        if all(each.trial != choice.chosen for each in candidates):
            raise ValueError(f"no candidate {choice.chosen}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"{folder / CHOICE} cannot be read: {error}; remove it to choose again") from None
    return choice


def candidates_of(first: Outcome, order: Sequence[Outcome]) -> list[Candidate]:
    """Returns what is compared: the first trial of a search, then its best ones.

    Args:
        first: the trial with the values that the search started from.
        order: trials that have a value, best first.
    """
    found: list[Outcome] = []
    for outcome in ([] if first.record.status == FAILED else [first], order[:LEADERS]):
        found += [each for each in outcome if all(each.record.values != other.record.values for other in found)]
    return [Candidate(trial=each.record.name, values=each.record.values, searched=each.best) for each in found]


def choice_trials(base: Config, folder: Path, candidates: Sequence[Candidate], shards: Path) -> list[Trial]:
    """Returns the runs of all candidates, those of one seed after the other.

    Args:
        base: configuration that the search started from.
        folder: of the runs.
        candidates: that are compared.
        shards: folder of their set.
    """
    trials: list[Trial] = []
    for seed in seeds_of(base):
        for each in candidates:
            values = {**each.values, "seed": seed}
            trials.append(make_trial(base, folder, len(trials), run_name(each, seed), values, shards))
    return trials


def seeds_of(base: Config) -> list[int]:
    """Returns seeds that a search does not use."""
    return [base.train.seed + number for number in range(1, SEEDS + 1)]


def run_name(candidate: Candidate, seed: int) -> str:
    """Returns the name of the run of a candidate."""
    return f"{candidate.trial}-seed-{seed}"


def decide(
    task: Task,
    metric: str,
    candidates: Sequence[Candidate],
    seeds: Sequence[int],
    found: Sequence[Outcome],
    minutes: float | None = None,
    first: str | None = None,
    epochs: int | None = None,
) -> Choice:
    """Chooses among candidates by their finished runs.

    The seeds decide that all candidates finished. Where time was over before the first of them, those decide that finished the
    first seed, if there are at least two; otherwise the search decides, and of equal values the first one has it. A candidate
    with a failed run takes no part.

    Args:
        task: what is predicted.
        metric: the validation metric.
        candidates: without their runs.
        seeds: of the runs, in their order.
        found: the runs.
        minutes: that the runs were given.
        first: trial of the configuration that the search started from; None where it failed.
        epochs: of a run that nothing stops early; without them the choice has no `share`.

    Raises:
        UsageError: the validation of a run is damaged.
    """
    choice = _decide(task, metric, candidates, seeds, found, minutes, first)
    names = {run_name(each, seed) for each in choice.candidates if each.trial == choice.chosen for seed in seeds}
    runs = [run for run in found if run.record.name in names and run.record.status == FINISHED]
    # The best accuracy of few samples may come by chance in an early epoch, while the loss still falls.
    last = [max(run.best_epoch, run.least_loss_epoch) for run in runs]
    share = min(1.0, statistics.fmean(last) / epochs) if runs and epochs else None
    known = [_validated(run, task, metric) for run in runs]
    blends = [one.linear for one in known if one is not None and one.linear is not None]
    linear = None
    if blends and len(blends) == len(runs):
        *shares, strengths = zip(*blends, strict=True)
        linear = [*(round(statistics.fmean(part), 3) for part in shares), statistics.median_low(strengths)]
    return dataclasses.replace(choice, share=share, linear=linear)


def _decide(
    task: Task,
    metric: str,
    candidates: Sequence[Candidate],
    seeds: Sequence[int],
    found: Sequence[Outcome],
    minutes: float | None,
    first: str | None,
) -> Choice:
    mode = task.better(metric)
    by_name = {outcome.record.name: outcome for outcome in found}
    filled, validated = [], {}
    for each in candidates:
        runs = {seed: by_name[run_name(each, seed)] for seed in seeds if run_name(each, seed) in by_name}
        known = {seed: _validated(run, task, metric) for seed, run in runs.items() if run.record.status == FINISHED}
        validated[each.trial] = {seed: one for seed, one in known.items() if one is not None}
        errors = [str(run.record.error) for run in runs.values() if run.record.status == FAILED]
        values = {seed: one.value for seed, one in validated[each.trial].items()}
        filled.append(dataclasses.replace(each, runs=values, error=errors[0] if errors else None))
    able = [each for each in filled if each.error is None]
    compared = [seed for seed in seeds if able and all(seed in each.runs for each in able)]
    if not compared and sum(seeds[0] in each.runs for each in able) > 1:
        compared = [seeds[0]]
    choice = Choice(
        metric=metric,
        mode=mode,
        minutes=minutes,
        seeds=list(seeds),
        candidates=filled,
        compared=compared,
        chosen=_best([(each, each.searched) for each in able or filled], mode),
    )
    part = [each for each in able if choice.mean(each) is not None]
    if not part:
        return choice
    start = next((each for each in part if each.trial == first), None)
    if start is None:
        return dataclasses.replace(choice, chosen=_best([(each, choice.mean(each)) for each in part], mode))
    runs_of = {each.trial: {seed: validated[each.trial][seed] for seed in compared} for each in part}
    gains = {
        each.trial: lead(task, metric, runs_of[each.trial], runs_of[start.trial]) for each in part if each is not start
    }
    # Where another one is ahead, its mean is better too.
    ahead = [start, *(each for each in part if each is not start and _is_ahead(gains[each.trial]))]
    return dataclasses.replace(
        choice,
        chosen=_best([(each, choice.mean(each)) for each in ahead], mode),
        first=start.trial,
        leads={trial: gain for trial, gain in gains.items() if gain is not None},
    )


def _validated(run: Outcome, task: Task, metric: str) -> Validated | None:
    """Returns the validation of a finished run: as it would be tested, or else that of its best epoch."""
    found = read_validated(run.folder, task, metric)
    return found or (None if run.best is None else Validated(value=run.best))


def _is_ahead(gain: Gain | None) -> bool:
    return gain is not None and gain.error is not None and gain.mean > ERRORS * gain.error


def _in_words(gain: Gain | None) -> str:
    if gain is None:
        return ""
    return f"{gain.mean:+.4f}" if gain.error is None else f"{gain.mean:+.4f} ± {gain.error:.4f}"


def _best(values: Sequence[tuple[Candidate, float | None]], mode: str) -> str:
    sign = 1 if mode == "min" else -1
    return min(values, key=lambda entry: math.inf if entry[1] is None else sign * entry[1])[0].trial
