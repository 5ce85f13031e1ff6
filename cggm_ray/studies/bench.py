"""The yaml of a benchmark: sets, arms that are compared on each, and the budget that every arm has.

    name: small                        # folder of the results, below --storage_path
    baseline: none                     # arm that the others are compared with; default none, or the first arm
    seeds: 101-105                     # of the runs that are tested; or a list
    trials: 12                         # runs of every arm's search, on every set
    search_seed: 0                     # of the draws, and of these runs
    headroom: true                     # measured first; a set without room does not count
    questions: [multiloss - none]      # pairs of arms; default every arm against the baseline
    space:                             # what the search of every arm may change, drawn alike for all
      lr: {loguniform: [5.0e-4, 5.0e-3]}
      max_steps: {choice: [500, 1500]}
    sets:
      digits: {recipe: features, flags: {data_path: digits.npz}, by_seed: {split_seed: "{seed}"}}
    arms:
      none: {}
      cggm: {space: {rho: {uniform: [0.8, 2.0]}}}
      multiloss: {flags: {multiloss_weight: 0.5}}

An arm is the strategy of its name, unless its flags have another `modulation`. The first trial of a search has the values of
the recipe and the flags; the others draw what all arms share with the same numbers. `by_seed` names fields whose value follows
the seed of a run, such as that of the split, or its column (`split_{seed}`). A set may have a `space` of its own, which changes
that of all arms there. Everything is checked before anything starts.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cggm_ray.config.parsing import read_yaml
from cggm_ray.core.errors import UsageError, listed, short_repr
from cggm_ray.core.registry import nearest
from cggm_ray.storage.files import write_text
from cggm_ray.strategies.settings import JOINT
from cggm_ray.studies.parameters import mapping

FILE = "bench.yaml"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]*")
RANGE = re.compile(r"(\d+)-(\d+)")
SEED = "{seed}"
MINUS = " - "
"""Stands between the two arms of a question."""


@dataclass(frozen=True, kw_only=True)
class BenchSet:
    """A dataset of a benchmark.

    Attributes:
        name: of the set.
        recipe: that its runs start from.
        flags: fields that all its runs change in the recipe.
        by_seed: field to its value, in which `{seed}` stands for the seed of a run.
        space: of the searches on this set, in place of or beside that of all.
    """

    name: str
    recipe: str
    flags: Mapping[str, Any] = field(default_factory=dict)
    by_seed: Mapping[str, str] = field(default_factory=dict)
    space: Mapping[str, Any] = field(default_factory=dict)

    def seeded(self, seed: int) -> dict[str, Any]:
        """Returns the fields that follow the seed of a run, the seed itself among them."""
        own = {key: seed if text == SEED else text.replace(SEED, str(seed)) for key, text in self.by_seed.items()}
        return {"seed": seed, **own}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A strategy with its settings.

    Attributes:
        name: of the arm.
        flags: fields that its runs change, `modulation` among them.
        space: of its search, beside that of all arms.
    """

    name: str
    flags: Mapping[str, Any] = field(default_factory=dict)
    space: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A benchmark as its file describes it.

    Attributes:
        name: of the folder.
        sets, arms: by name.
        baseline: name of an arm.
        seeds: of the tested runs.
        trials: of the search of an arm on a set; 0 for none.
        search_seed: of the draws, and of the runs of the searches.
        space: that all arms share.
        headroom: whether it is measured first.
        questions: pairs of arms, the second of which is subtracted.
    """

    name: str
    sets: Mapping[str, BenchSet]
    arms: Mapping[str, Arm]
    baseline: str
    seeds: tuple[int, ...]
    trials: int = 0
    search_seed: int = 0
    space: Mapping[str, Any] = field(default_factory=dict)
    headroom: bool = True
    questions: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, which `read_bench` reads."""
        content = dataclasses.asdict(self)
        for part in ("sets", "arms"):
            content[part] = {
                name: {k: v for k, v in each.items() if k != "name"} for name, each in content[part].items()
            }
        return {**content, "seeds": list(self.seeds), "questions": [MINUS.join(pair) for pair in self.questions]}

    def differences(self, other: Bench) -> list[str]:
        """Returns in what the runs of both differ, leaving out sets, arms and seeds that only one of them has."""
        found = [name for name in ("search_seed", "space") if getattr(self, name) != getattr(other, name)]
        # The first trials are the same ones, but what is best among more of them is another run.
        found += ["trials"] if self.trials != other.trials else []
        for part in ("sets", "arms"):
            ours, theirs = getattr(self, part), getattr(other, part)
            found += [f"{part}: {name}" for name in ours if name in theirs and ours[name] != theirs[name]]
        return found


def read_bench(path: Path) -> Bench:
    """Reads and checks the file of a benchmark.

    Raises:
        UsageError: it cannot be read, or a key or value of it cannot be; the message names both.
    """
    source = str(path)
    content = mapping(read_yaml(path, "bench"), source, [f.name for f in dataclasses.fields(Bench)])
    sets = {name: _set(name, part, f"{source}: sets: {name}") for name, part in _parts(content, "sets", source).items()}
    arms = {name: _arm(name, part, f"{source}: arms: {name}") for name, part in _parts(content, "arms", source).items()}
    baseline = content.get("baseline", JOINT if JOINT in arms else next(iter(arms)))
    _known(baseline, arms, f"{source}: baseline")
    numbers = {"trials": 0, "search_seed": 0} | {k: content[k] for k in ("trials", "search_seed") if k in content}
    for key, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise UsageError(f"{source}: {key}: found {short_repr(value)}; expected a whole number, zero or more")
    space = _mapped(content.get("space", {}), f"{source}: space")
    if bool(numbers["trials"]) != bool(space or any(arm.space for arm in arms.values())):
        raise UsageError(f"{source}: trials: found {numbers['trials']}; a search needs both trials and a space")
    headroom = content.get("headroom", True)
    if not isinstance(headroom, bool):
        raise UsageError(f"{source}: headroom: found {short_repr(headroom)}; expected true or false")
    name = content.get("name", path.stem)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UsageError(f"{source}: name: found {short_repr(name)}; expected letters, digits and . _ -")
    return Bench(
        name=name,
        sets=sets,
        arms=arms,
        baseline=baseline,
        seeds=_seeds(content.get("seeds"), source),
        space=space,
        headroom=headroom,
        questions=_questions(content.get("questions"), arms, baseline, source),
        **numbers,
    )


def write_bench(folder: Path, bench: Bench) -> None:
    """Writes the file that repeats a benchmark into its folder."""
    write_text(folder / FILE, yaml.safe_dump(bench.to_dict(), sort_keys=False))


def _parts(content: Mapping[str, Any], key: str, source: str) -> Mapping[str, Any]:
    found = _mapped(content.get(key), f"{source}: {key}")
    if not found:
        raise UsageError(f"{source}: {key}: found none; expected a mapping from names to settings")
    for name in found:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise UsageError(
                f"{source}: {key}: found the name {short_repr(name)}; expected letters, digits and . _ - @"
            )
    return found


def _mapped(value: Any, place: str) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise UsageError(f"{place}: found {short_repr(value)}; expected a mapping")
    return dict(value or {})


def _set(name: str, part: Any, place: str) -> BenchSet:
    given = mapping(part or {}, place, [f.name for f in dataclasses.fields(BenchSet) if f.name != "name"])
    if not isinstance(given.get("recipe"), str):
        raise UsageError(f"{place}: recipe: found {short_repr(given.get('recipe'))}; expected the name of a recipe")
    fields = _mapped(given.get("by_seed"), f"{place}: by_seed")
    for key, text in fields.items():
        if not isinstance(text, str) or SEED not in text:
            raise UsageError(f"{place}: by_seed: {key}: found {short_repr(text)}; expected a text with {SEED}")
    return BenchSet(
        name=name,
        recipe=given["recipe"],
        flags=_mapped(given.get("flags"), f"{place}: flags"),
        by_seed=fields,
        space=_mapped(given.get("space"), f"{place}: space"),
    )


def _arm(name: str, part: Any, place: str) -> Arm:
    given = mapping(part or {}, place, ["flags", "space"])
    flags = {"modulation": name, **_mapped(given.get("flags"), f"{place}: flags")}
    return Arm(name=name, flags=flags, space=_mapped(given.get("space"), f"{place}: space"))


def _seeds(value: Any, source: str) -> tuple[int, ...]:
    if isinstance(value, str) and (found := RANGE.fullmatch(value)):
        value = list(range(int(found[1]), int(found[2]) + 1))
    value = [value] if isinstance(value, int) else value
    whole = isinstance(value, list) and all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in value)
    if not whole or not value or len(set(value)) < len(value):
        raise UsageError(
            f"{source}: seeds: found {short_repr(value)}; expected different whole numbers, such as [1, 2] or 1-5"
        )
    return tuple(value)


def _questions(value: Any, arms: Mapping[str, Arm], baseline: str, source: str) -> tuple[tuple[str, str], ...]:
    if value is None:
        return tuple((name, baseline) for name in arms if name != baseline)
    place = f"{source}: questions"
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise UsageError(f"{place}: found {short_repr(value)}; expected a list such as [cggm{MINUS}none]")
    pairs = []
    for text in value:
        first, minus, second = str(text).partition(MINUS)
        if not minus or first == second:
            raise UsageError(f"{place}: found {short_repr(text)}; expected two arms, such as cggm{MINUS}none")
        pairs.append((_known(first, arms, place), _known(second, arms, place)))
    return tuple(pairs)


def _known(name: Any, arms: Mapping[str, Arm], place: str) -> str:
    if name not in arms:
        raise UsageError(f"{place}: unknown arm {short_repr(name)}{nearest(str(name), arms)}; there are {listed(arms)}")
    return str(name)
