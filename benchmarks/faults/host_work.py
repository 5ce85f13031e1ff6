"""The kinds of work that `host_faults.py` disturbs: how each is started, and by which numbers two of them are compared."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

from food101_files import save_vit, write_set

from cggm_ray.data.datasets.mosi import planted_imbalance

TIMES = {"seconds", "samples_per_second", "peak_memory", "starts", "relative_time", "relative_memory"}
SMALL = [
    *("--nlevels", "3", "--cls_layers", "1", "--num_heads", "2", "--proj_dim", "8"),
    *("--cpus_per_worker", "1", "--report", "false", "--headroom", "false", "--batch_size", "16"),
]
SEARCH = {
    "metric": "mae",
    "space": {"lr": {"grid": [1e-3, 3e-3]}},
    "scheduler": {"name": "none", "max_epochs": 2},
}
OVER = ("finished", "stopped")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of work.

    Attributes:
        command: after `python`; `{raw}` is the URL of the data, `{at}` that of the results, `{made}` that of a finished run,
            `{folder}` a folder of files that all hosts see, and `{out}` a file that all hosts see.
        begun: lines of output from which on there is work to disturb.
        results: of a folder with what it made; the numbers by which two are compared.
        done: of such a folder; which parts are over, with the number of their starts.
    """

    command: tuple[str, ...]
    begun: str
    results: Callable[[Path], dict[str, Any]]
    done: Callable[[Path], dict[str, int]] = lambda made: {}

    def words(self, **places: str) -> list[str]:
        """Returns the command with its places."""
        return [word.format(**places) for word in self.command]


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _run(made: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (made / "run" / "metrics.jsonl").read_text().splitlines()]
    return {
        "metrics": [{name: value for name, value in line.items() if name not in TIMES} for line in lines],
        "summary": json.loads((made / "run" / "summary.json").read_text()),
        **{name: _hash(made / "run" / name) for name in ("best/model.safetensors", "predictions.parquet")},
    }


def _table(name: str) -> Callable[[Path], dict[str, Any]]:
    def results(made: Path) -> dict[str, Any]:
        rows = csv.DictReader(io.StringIO((made / "run" / name).read_text()))
        weights = sorted(made.glob("run/trials/*/best/model.safetensors"))
        return {
            "rows": [{key: value for key, value in row.items() if key not in TIMES} for row in rows],
            "weights": {path.parents[1].name: _hash(path) for path in weights},
        }

    return results


def _trials_over(made: Path) -> dict[str, int]:
    records = {path: json.loads(path.read_text()) for path in made.glob("run/trials/*/trial.json")}
    return {path.parent.name: len(each["starts"]) for path, each in records.items() if each["status"] in OVER}


def _shards(made: Path) -> dict[str, Any]:
    sets = [path.parent for path in made.glob("shards/*/manifest.json") if not path.parent.name.startswith(".")]
    # The name of a set and its manifest hold the folder of the encoders, which is another one each time.
    return {file.name: _hash(file) for folder in sets for file in sorted(folder.glob("*.parquet"))}


def _predictions(made: Path) -> dict[str, Any]:
    return {"out.parquet": _hash(made / "out.parquet")}


PLACES = ("--storage_path", "{at}", "--name", "run", "--shard_path", "{at}/shards")
MOSI = ("pipelines/mosi.py", *SMALL, "--data_path", "{raw}/mosi.pkl", *PLACES)
KINDS = {
    "run": Kind(
        command=(*MOSI, "--workers", "2", "--num_epochs", "4", "--save_every", "20"),
        begun=r"epoch 1",
        results=_run,
    ),
    "search": Kind(
        command=(*MOSI, "--workers", "2", "--tune", "{folder}/search.yaml"),
        begun=r"trial-000",
        results=_table("trials.csv"),
        done=_trials_over,
    ),
    "comparison": Kind(
        command=(*MOSI, "--num_epochs", "2", "--compare", "none,cggm", "--seeds", "0,1"),
        begun=r"seed-0",
        results=_table("runs.csv"),
        done=_trials_over,
    ),
    "conversion": Kind(
        command=(
            *("pipelines/features.py", "--data_path", "{raw}/features.npz", "--modalities", "a,b"),
            *("--target", "label", *PLACES, "--max_steps", "2", "--report", "false", "--headroom", "false"),
            *("--cpus_per_worker", "1", "--standardise", "off"),
        ),
        begun=r"joining the Ray cluster",
        results=_shards,
    ),
    "extraction": Kind(
        command=(
            *("pipelines/food101.py", *SMALL, "--data_path", "{raw}/food101", *PLACES, "--num_epochs", "1"),
            *("--vit", "{folder}/food101/vit", "--bert", "{folder}/food101/bert", "--text_length", "6"),
        ),
        begun=r"joining the Ray cluster",
        results=_shards,
    ),
    "prediction": Kind(
        command=(
            *("-m", "cggm_ray", "predict", "{made}", "--data_path", "{raw}/unseen.pkl", "--workers", "2"),
            *("--out", "{out}"),
        ),
        begun=r"joining the Ray cluster",
        results=_predictions,
    ),
}


def write_data(folder: Path) -> None:
    """Writes raw data of all kinds of work; equal at every call."""
    (folder / "raw").mkdir(parents=True)
    raw, rng = folder / "raw", np.random.default_rng(0)
    samples = {"train": 960, "valid": 160, "test": 160}
    (raw / "mosi.pkl").write_bytes(pickle.dumps(planted_imbalance(1, samples=samples)))
    unseen = planted_imbalance(2, samples={"train": 16, "valid": 16, "test": 8000})
    (raw / "unseen.pkl").write_bytes(pickle.dumps(unseen))
    rows = 90_000
    arrays = {name: rng.standard_normal((rows, 128), dtype=np.float32) for name in ("a", "b")}
    np.savez(raw / "features.npz", **arrays, label=rng.integers(0, 3, rows))  # type: ignore[arg-type]
    write_set(raw / "food101", train=240, test=60)
    # The encoders are no raw data: every host has them.
    (folder / "food101").mkdir()
    for name in ("vit", "bert"):
        (raw / "food101" / name).rename(folder / "food101" / name)
    sizes = {"image_size": 128, "hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 512}
    save_vit(folder / "food101" / "vit", **sizes)
    (folder / "search.yaml").write_text(yaml.safe_dump(SEARCH))
