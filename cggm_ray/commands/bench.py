"""`cggm bench FILE`: arms over sets and seeds, each with an equal search, and one page about all of them.

For every set the head-room is measured first, then every arm has its search, and then the best configuration of each arm by
validation is trained and tested with every seed. What is over is not run again: the runs of a folder go on, and those whose
numbers are in these files need no folder any more.

STORAGE_PATH/NAME/
    bench.yaml                          what repeats it
    sets.json, trials.csv, results.csv  all numbers
    SET/search/trials/ARM-trial-000/    the runs of the searches, which do not see the test split
    SET/seeds/trials/ARM-seed-101/      the runs that are tested
    leaderboard.html, .md, .tex         the page, and its tables for a paper
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cggm_ray.commands.compare import networks_alone
from cggm_ray.commands.headroom import Finished, write_headroom
from cggm_ray.commands.trials import run_trials
from cggm_ray.config.parsing import read_yaml
from cggm_ray.core.errors import TrainingError, UsageError
from cggm_ray.core.optional import check_installed
from cggm_ray.core.tables import listing
from cggm_ray.data.shards.opening import open_manifest
from cggm_ray.data.shards.shards import write_shards_here
from cggm_ray.engine.assembly import build_dataset, check, prepare_data
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.presets import SEARCHED, configured
from cggm_ray.engine.stopping import StopRequest
from cggm_ray.recipes.base import RECIPES
from cggm_ray.report.leaderboard import write_leaderboard
from cggm_ray.report.run_record import read_run_record, with_contributions
from cggm_ray.runs.folder import sole_owner
from cggm_ray.runs.result import read_summary
from cggm_ray.storage.work import shown
from cggm_ray.studies.bench import FILE, Arm, Bench, BenchSet, read_bench, write_bench
from cggm_ray.studies.bench_results import (
    CONTRIBUTION,
    IMBALANCE,
    MEMORY,
    RESULTS,
    SECONDS,
    SETS,
    STEPS,
    TEST,
    VALID,
    Results,
    Standing,
    Tried,
    read_results,
    read_standings,
    save_standings,
)
from cggm_ray.studies.parameters import Values
from cggm_ray.studies.space import NO_SETTING, make_search
from cggm_ray.studies.store import FINISHED, Trial, make_trial, outcomes

SEARCH, SEEDS = "search", "seeds"
SEED = "-seed-"


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where and how a benchmark runs.

    Attributes:
        storage: folder that gets the benchmark's own.
        local: in this process, without Ray.
        hours: after which no further run starts; None for no limit.
    """

    storage: Path
    local: bool = False
    hours: float | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A set, checked and converted.

    Attributes:
        given: the set.
        base: configuration that its runs change.
        shards: folder of the converted set, that of the searches.
        metric, better: that selects, and its direction.
        trials: arm to what its trials change.
    """

    given: BenchSet
    base: Config
    shards: Path
    metric: str
    better: str
    trials: dict[str, list[Values]]


def bench(file: Path, places: Places) -> Path:
    """Runs what is left of a benchmark and writes its page.

    Args:
        file: of the benchmark, or a folder with `bench.yaml`, `trials.csv` and `results.csv`.
        places: where and how it runs.

    Returns:
        The page.

    Raises:
        UsageError: something of it cannot be run; nothing was started.
        TrainingError: some runs failed; the page of the others is written.
    """
    check_installed("scipy", extra="compare", purpose="bench")
    wanted = read_bench(file / FILE if file.is_dir() else file)
    folder = places.storage / wanted.name
    check_same(wanted, folder)
    with sole_owner(folder):
        results = read_results(folder)
        end = None if places.hours is None else time.monotonic() + 3600 * places.hours
        running = Running(wanted, places, folder, results, end)
        plans = [running.plan(each) for each in wanted.sets.values()]
        write_bench(folder, wanted)
        for plan in plans:
            running.measure(plan)
        for plan in plans:
            running.search(plan)
        # Without Ray a seed of all sets and arms comes before the next one, so that a benchmark that is cut off is even.
        for seeds in [[seed] for seed in wanted.seeds] if places.local else [list(wanted.seeds)]:
            for plan in plans:
                running.test(plan, seeds)
        page = write_leaderboard(folder, wanted, results, running.standings)
    print(listing({"every number": folder / RESULTS, "page": page}), flush=True)
    if running.failed:
        raise TrainingError(f"{len(running.failed)} runs failed; the first: {running.failed[0]}")
    if running.late():
        print(f"{places.hours:g} hours are over; the same command goes on", flush=True)
    return page


def page_of(folder: Path) -> Path:
    """Writes the page of a folder with `bench.yaml`, `sets.json`, `trials.csv` and `results.csv` anew, without any run.

    Raises:
        UsageError: a file is missing or damaged.
    """
    check_installed("scipy", extra="compare", purpose="bench")
    standings = read_standings(folder)
    if not standings:
        raise UsageError(f"{folder / SETS} is missing; expected the folder of a benchmark")
    return write_leaderboard(folder, read_bench(folder / FILE), read_results(folder), standings)


def check_same(wanted: Bench, folder: Path) -> None:
    """Raises a UsageError if the folder holds runs of a benchmark with other settings."""
    if (folder / FILE).exists():
        read_yaml(folder / FILE, "bench")
        changed = read_bench(folder / FILE).differences(wanted)
        if changed:
            raise UsageError(
                f"{shown(folder)} holds a benchmark with another {', '.join(changed)}; give this one another name"
            )


class Running:
    """A benchmark while it runs.

    Args:
        wanted: the benchmark.
        places: where and how.
        folder: of the results.
        results: known numbers, which grow.
        end: on the monotonic clock; None for no limit.
    """

    def __init__(self, wanted: Bench, places: Places, folder: Path, results: Results, end: float | None) -> None:
        self.wanted, self.places, self.folder, self.results, self.end = wanted, places, folder, results, end
        self.standings = read_standings(folder)
        self.failed: list[str] = []

    def late(self) -> bool:
        """Whether the time is over."""
        return self.end is not None and time.monotonic() > self.end

    def plan(self, given: BenchSet) -> Plan:
        """Checks a set with all its arms, and converts it.

        Raises:
            UsageError: something cannot be run; the message names set and arm.
        """
        wanted, where = self.wanted, f"bench: sets: {given.name}"
        base = self._base(given)
        shards = self._shards(self._seeded(base, given, wanted.search_seed))
        manifest = open_manifest(shards)
        task = build_dataset(base).task(manifest)
        metric = base.train.select or task.selection[0]
        trials = {}
        for name, arm in wanted.arms.items():
            own = base.replace({**arm.flags}, source=f"bench: arms: {name}")
            check(self._seeded(own, given, wanted.search_seed), manifest)
            trials[name] = self._draws(own, {**wanted.space, **given.space}, arm, f"{where}: arm {name}")
        return Plan(given=given, base=base, shards=shards, metric=metric, better=task.better(metric), trials=trials)

    def _base(self, given: BenchSet) -> Config:
        places = {"storage_path": shown(self.folder / given.name), "local": self.places.local}
        base = configured(
            RECIPES.get(given.recipe).config, (dict(given.flags), f"bench: sets: {given.name}"), (places, "flag")
        )
        if base.train.preset in SEARCHED:
            raise UsageError(
                f"bench: sets: {given.name}: preset: found {base.train.preset}, which is a search of its own; every arm is "
                "searched alike here, with `trials` and `space`"
            )
        if build_dataset(base).folds():
            raise UsageError(f"bench: sets: {given.name}: this configuration stands for several folds; choose one")
        if base.train.refit:
            raise UsageError(f"bench: sets: {given.name}: refit: expected 0, because every arm is chosen on validation")
        base = networks_alone(base)
        # Runs of all stages read the same shards.
        return dataclasses.replace(base, data=dataclasses.replace(base.data, shard_path=str(base.shard_root)))

    def _seeded(self, config: Config, given: BenchSet, seed: int) -> Config:
        return config.replace(given.seeded(seed), source=f"bench: sets: {given.name}: by_seed")

    def _shards(self, config: Config) -> Path:
        if config.run.local:
            return prepare_data(config, write_shards_here)
        from cggm_ray.distributed.train.launch import prepare_on_ray

        return prepare_on_ray(config)

    def _draws(self, own: Config, space: Values, arm: Arm, source: str) -> list[Values]:
        """Returns what the trials of an arm change: nothing in the first one, then draws that all arms share, and its own."""
        wanted = self.wanted
        if not wanted.trials:
            return []
        from cggm_ray.distributed.tune.draws import draw_trials

        found: list[list[Values]] = []
        for part in (space, dict(arm.space)):
            content: dict[str, Any] = {"trials": wanted.trials, "seed": wanted.search_seed, "space": part}
            search = make_search({**content, "scheduler": {"name": "none"}}, own, source, NO_SETTING) if part else None
            if search is not None and any(p.kind == "grid" for p in search.space):
                raise UsageError(f"{source}: space: a grid is no equal budget; expected choice, uniform or loguniform")
            found.append(draw_trials(search, own, source) if search is not None else [{}])
        shared, ours = found
        drawn = [{**shared[n % len(shared)], **ours[n % len(ours)]} for n in range(wanted.trials - 1)]
        return [{}, *drawn]

    def measure(self, plan: Plan) -> None:
        """Measures the head-room of a set, once."""
        name = plan.given.name
        known = self.standings.get(name)
        found = known.headroom if known is not None else None
        if self.wanted.headroom and found is None and not self.late():
            print(f"{name}: head-room", flush=True)
            config = self._seeded(plan.base, plan.given, self.wanted.search_seed)
            joint = Finished(name="", config=config, shards=plan.shards, runs={})
            found = write_headroom(config, self.folder / name, [joint], StopRequest())
        self.standings[name] = Standing(metric=plan.metric, better=plan.better, headroom=found)
        save_standings(self.folder, self.standings)

    def search(self, plan: Plan) -> None:
        """Runs the searches of all arms of a set."""
        study = self.folder / plan.given.name / SEARCH
        keys: list[tuple[str, int, Values]] = []
        trials: list[Trial] = []
        for arm, drawn in plan.trials.items():
            for number, changes in enumerate(drawn):
                if (plan.given.name, arm, number) in self.results.trials:
                    continue
                values = {**self.wanted.arms[arm].flags, **changes, **plan.given.seeded(self.wanted.search_seed)}
                keys.append((arm, number, changes))
                trials.append(
                    make_trial(plan.base, study, len(trials), f"{arm}-trial-{number:03d}", values, plan.shards)
                )

        def record() -> None:
            for (arm, number, changes), outcome in zip(keys, outcomes(trials), strict=True):
                if outcome.record.over:
                    value = outcome.best if outcome.record.status == FINISHED else None
                    tried = Tried(status=outcome.record.status, value=value, changes=changes)
                    self.results.trials[plan.given.name, arm, number] = tried
            self.results.save(self.folder)

        self._run(plan, study, trials, record, test=False)

    def test(self, plan: Plan, seeds: Sequence[int]) -> None:
        """Runs the best configuration of every arm with some seeds, on a set all of whose searches are over."""
        name = plan.given.name
        if any(
            (name, arm, n) not in self.results.trials for arm, drawn in plan.trials.items() for n in range(len(drawn))
        ):
            return
        study = self.folder / name / SEEDS
        keys: list[tuple[str, int]] = []
        trials: list[Trial] = []
        for seed in seeds:
            # Not before it is wanted: another split is another conversion.
            left = [arm for arm in self.wanted.arms if (name, arm, seed) not in self.results.runs]
            if not left or self.late():
                continue
            shards = self._shards(self._seeded(plan.base, plan.given, seed)) if plan.given.by_seed else plan.shards
            for arm in left:
                best = self.results.best(name, arm, plan.better) if plan.trials[arm] else None
                if plan.trials[arm] and best is None:
                    self._fail(f"{name}: {arm}: no trial of its search has a value")
                    continue
                changes = {} if best is None else best.changes
                values = {**self.wanted.arms[arm].flags, **changes, **plan.given.seeded(seed)}
                keys.append((arm, seed))
                trials.append(make_trial(plan.base, study, len(trials), f"{arm}{SEED}{seed}", values, shards))

        def record() -> None:
            for (arm, seed), outcome in zip(keys, outcomes(trials), strict=True):
                key = (name, arm, seed)
                if outcome.record.status == FINISHED and key not in self.results.runs:
                    self.results.runs[key] = numbers_of(outcome.folder)
                elif outcome.record.over and outcome.record.status != FINISHED:
                    self._fail(f"{name}: {outcome.record.name}: {outcome.record.error or outcome.record.status}")
            self.results.save(self.folder)

        self._run(plan, study, trials, record, test=True)

    def _run(self, plan: Plan, study: Path, trials: Sequence[Trial], record: Callable[[], None], *, test: bool) -> None:
        if not trials or self.late():
            return
        print(f"{plan.given.name}: {study.name}, {len(trials)} runs", flush=True)

        def until() -> bool:
            record()
            return self.late()

        minutes = None if self.end is None else max(0.0, (self.end - time.monotonic()) / 60)
        run_trials(plan.base, study, trials, until, test=test, minutes=minutes)
        record()

    def _fail(self, what: str) -> None:
        if what not in self.failed:
            self.failed.append(what)


def numbers_of(run: Path) -> dict[str, float]:
    """Returns what the results keep of a finished run: metrics, cost, and what each modality contributes on validation."""
    result = read_summary(run)
    found = {TEST + name: float(value) for name, value in result.test.items()}
    found |= {VALID + name: float(value) for name, value in result.valid.items()}
    about = read_run_record(run, run.name)
    found[SECONDS] = sum(float(line.get("seconds") or 0.0) for line in about.lines)
    found[STEPS] = float(about.lines[-1].get("step") or 0.0) if about.lines else 0.0
    peaks = [float(peak) for line in about.lines if (peak := line.get(MEMORY)) is not None]
    found |= {MEMORY: max(peaks)} if peaks else {}
    known = with_contributions(about, told=False).contributions
    if known is not None and not known.missing:
        found |= {CONTRIBUTION + name: float(value) for name, value in known.shapley.items()}
        found[IMBALANCE] = known.imbalance
    return found
