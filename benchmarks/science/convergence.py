"""Accuracy against steps and seconds: a default run on the sets of feature_sets.py beside scikit-learn and AutoGluon.

    python benchmarks/science/convergence.py --sets sets pie wine
    python benchmarks/science/convergence.py --sets sets pie --autogluon venv/bin/python --seconds 60

A run by `--preset quick` gives one line a validation: steps, seconds since the first step, and validation metric; then its
test metric. HistGradientBoosting, the perceptron and the support vector machine of scikit-learn have their own defaults on the
standardised rows, and their seconds of fitting; all see the same splits. `--autogluon` names the Python of an environment with
`autogluon.tabular`, which gets the same rows as a table, validation as its tuning data, and `--seconds` of time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from feature_sets import FeatureSet, read_index
from real_sets import PIPELINES
from simple_models import SPLITS, Loaded, load
from sklearn import ensemble, neural_network, svm

from cggm_ray.core.tables import text_table
from cggm_ray.engine.tracking import read_metrics
from cggm_ray.runs.result import read_summary
from cggm_ray.studies.baseline_inputs import standardised
from cggm_ray.studies.baselines import measured, predicted
from cggm_ray.tasks import Regression

AUTOGLUON = """
import json, sys, numpy as np, pandas as pd
from autogluon.tabular import TabularPredictor
source, folder, problem, seconds = sys.argv[1:5]
found = np.load(source)
def table(part):
    rows = pd.DataFrame(found[part], columns=[f"x{i}" for i in range(found[part].shape[1])])
    return rows.assign(target=found[part + "_target"])
metric = "mean_absolute_error" if problem == "regression" else "accuracy"
model = TabularPredictor("target", problem_type=problem, path=folder, eval_metric=metric, verbosity=0)
model.fit(table("train"), tuning_data=table("valid"), time_limit=float(seconds))
print(json.dumps([float(value) for value in model.predict(table("test"))]))
"""


def curve(entry: FeatureSet, storage: Path, name: str, flags: list[str]) -> list[list[Any]]:
    """Trains by default and returns a row for each validation, the last with the test metric."""
    kept = ["--local", "--storage_path", str(storage), "--name", name, "--report", "false", "--trackers", "jsonl"]
    command = [sys.executable, str(PIPELINES / entry.pipeline), *entry.command, "--preset", "quick", *kept, *flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    rows, seconds = [], 0.0
    for line in read_metrics(storage / name):
        seconds += line["seconds"] or 0.0
        rows.append(["run", int(line["step"] or 0), seconds, line[f"valid/{entry.metric}"], None])
    rows.append(
        ["run, best", None, seconds, *(getattr(read_summary(storage / name), s)[entry.metric] for s in SPLITS[1:])]
    )
    return rows


def tables(loaded: Loaded) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns the standardised rows of the splits in the last layout, which pools sequences, and their targets."""
    rows = list(loaded.splits.values())[-1]
    values = dict(zip(SPLITS, standardised([rows[split] for split in SPLITS]), strict=True))
    return values, {split: rows[split].target for split in SPLITS}


def scikit_learn(entry: FeatureSet, loaded: Loaded) -> list[list[Any]]:
    """Fits scikit-learn's strongest models with their defaults; returns a row for each."""
    values, target = tables(loaded)
    if isinstance(loaded.task, Regression):
        models = [
            ensemble.HistGradientBoostingRegressor(random_state=0),
            neural_network.MLPRegressor(random_state=0),
            svm.SVR(),
        ]
    else:
        models = [
            ensemble.HistGradientBoostingClassifier(random_state=0),
            neural_network.MLPClassifier(random_state=0),
            svm.SVC(probability=True, random_state=0),
        ]
    found = []
    for model in models:
        start = time.perf_counter()
        with warnings.catch_warnings():
            # Not converged is a result here, and a deprecated argument is none.
            warnings.simplefilter("ignore")
            model.fit(values["train"], target["train"])
        seconds = time.perf_counter() - start
        scores = [
            measured(loaded.task, predicted(loaded.task, model, values[split]), torch.from_numpy(target[split]))[
                entry.metric
            ]
            for split in SPLITS[1:]
        ]
        found.append([type(model).__name__, None, seconds, *scores])
    return found


def autogluon(entry: FeatureSet, loaded: Loaded, python: Path, folder: Path, seconds: int) -> list[list[Any]]:
    """Fits AutoGluon in its own environment; returns its row."""
    folder.mkdir(parents=True, exist_ok=True)
    values, target = tables(loaded)
    np.savez(folder / "rows.npz", **values, **{f"{split}_target": target[split] for split in SPLITS})
    regression = isinstance(loaded.task, Regression)
    problem = "regression" if regression else "multiclass" if loaded.task.outputs > 2 else "binary"
    start = time.perf_counter()
    command = [str(python), "-c", AUTOGLUON, str(folder / "rows.npz"), str(folder / "models"), problem, str(seconds)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    took = time.perf_counter() - start
    said = np.array(json.loads(done.stdout.splitlines()[-1]))
    test = np.abs(said - target["test"]).mean() if regression else (said == target["test"]).mean()
    return [["AutoGluon", None, took, None, float(test)]]


def main() -> None:
    """Prints a table for each set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of sets; default all of the index")
    parser.add_argument("--sets", type=Path, required=True, help="folder that feature_sets.py filled")
    parser.add_argument("--storage_path", type=Path, help="for runs [SETS/convergence]")
    parser.add_argument("--autogluon", type=Path, help="Python of an environment with autogluon.tabular")
    parser.add_argument("--seconds", type=int, default=60, help="time budget of AutoGluon")
    arguments, flags = parser.parse_known_args()
    index = read_index(arguments.sets)
    storage = (arguments.storage_path or arguments.sets / "convergence").absolute()
    for name in arguments.names or index:
        entry = index[name]
        rows = curve(entry, storage, name, flags)
        loaded = load(entry, storage)
        rows += scikit_learn(entry, loaded)
        if arguments.autogluon is not None:
            # Absolute, but not resolved: the Python of an environment is a link.
            rows += autogluon(
                entry, loaded, arguments.autogluon.absolute(), storage / f"{name}-autogluon", arguments.seconds
            )
        head = ["", "steps", "seconds", f"valid {entry.metric}", f"test {entry.metric}"]
        print(f"\n{name}\n\n{text_table(rows, head)}", flush=True)


if __name__ == "__main__":
    main()
