"""What simple models reach on the sets of feature_sets.py: test metric, selected on validation.

    python benchmarks/science/simple_models.py --sets sets

Rows of a set, each with sequences flattened and with their mean and maximum over the valid steps (the whole table takes
about half an hour on one core):

- linear: scikit-learn's logistic regression, or ridge regression, on the standardised concatenation;
- mlp: one small network, the same for all sets. Every modality goes through dropout, two linear layers of width 256 with a
  layer normalisation and GELU, and the concatenation through one linear layer; AdamW 2e-3 with weight decay .05, one cycle of
  1,500 steps of 64, dropout .3, label smoothing .1 (regression: the mean absolute error of the standardised target); the best
  of 15 validations counts;
- mlp, own losses: the same with a further loss for every modality from a linear layer of its own.

The perceptrons are means over the seeds. What is in STORAGE/simple.json already is not computed again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from feature_sets import FeatureSet, read_index
from real_sets import PIPELINES
from torch import Tensor, nn

from cggm_ray.commands.cli import parse
from cggm_ray.core.tables import text_table
from cggm_ray.data.shards.opening import open_manifest
from cggm_ray.data.shards.shards import write_shards_here
from cggm_ray.engine.assembly import build_dataset, prepare_data, selected_modalities
from cggm_ray.engine.configuration import Config
from cggm_ray.studies.baseline_inputs import Rows, layouts, read_rows, standardised
from cggm_ray.studies.baselines import Scores, best, fitted, linear_models, scored
from cggm_ray.tasks import Regression, Task

SPLITS = ("train", "valid", "test")
WIDTH, DROPOUT, STEPS, BATCH, RATE, DECAY, SMOOTHING, EVERY = 256, 0.3, 1500, 64, 2e-3, 0.05, 0.1, 100
EVERYTHING = 10**9
"""Values of a sequence that are flattened for the linear model: all, because time does not matter here."""
MOST_OF_MLP = 5000
"""Values of a sample that the perceptrons take; a set with more has their rows for the pooled layout only."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A set in memory.

    Attributes:
        task: what is predicted.
        splits: layout to split to its rows.
    """

    task: Task
    splits: Mapping[str, Mapping[str, Rows]]


def recipe_of(pipeline: str) -> Config:
    """Returns the configuration of a pipeline."""
    spec = importlib.util.spec_from_file_location("recipe", PIPELINES / pipeline)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.RECIPE


def load(entry: FeatureSet, storage: Path) -> Loaded:
    """Converts a set as its pipeline does, and reads it in all layouts."""
    flags = [*entry.command, "--local", "--storage_path", str(storage)]
    config = parse(recipe_of(entry.pipeline), flags).config
    shards = prepare_data(config, write_shards_here)
    manifest = open_manifest(shards)
    dataset, names = build_dataset(config, manifest.dataset), selected_modalities(config, manifest)
    kinds, shapes = dataset.kinds(manifest, names), dataset.shapes(manifest, names)
    opened = {s: dataset.open_split(shards, manifest, s, names, torch.device("cpu")) for s in SPLITS}
    rows = {
        layout: {s: read_rows(split, kinds, layout, most=EVERYTHING) for s, split in opened.items()}
        for layout in layouts(shapes, kinds, EVERYTHING)
    }
    return Loaded(task=dataset.task(manifest), splits=rows)


class Linears(nn.Module):
    """A linear layer for each of several networks: [S, N, D] to [S, N, E]. It starts like torch's own.

    Args:
        copies: S.
        size, outputs: D and E.
    """

    def __init__(self, copies: int, size: int, outputs: int) -> None:
        super().__init__()
        bound = size**-0.5
        self.weight = nn.Parameter(torch.empty(copies, size, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(copies, 1, outputs).uniform_(-bound, bound))

    def forward(self, x_SND: Tensor) -> Tensor:
        """Applies the layer of each network to its own samples."""
        return torch.baddbmm(self.bias, x_SND, self.weight)


class Norms(nn.Module):
    """A layer normalisation for each of several networks: [S, N, D] to the same shape."""

    def __init__(self, copies: int, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(copies, 1, size))
        self.shift = nn.Parameter(torch.zeros(copies, 1, size))

    def forward(self, x_SND: Tensor) -> Tensor:
        """Normalises over the last axis."""
        return F.layer_norm(x_SND, x_SND.shape[-1:]) * self.scale + self.shift


class Plain(nn.Module):
    """The network of the rows mlp, several of them side by side, because one alone is too small to keep a processor busy.

    Args:
        copies: S, the number of networks, which share nothing.
        sizes: D of every modality.
        outputs: C.
    """

    def __init__(self, copies: int, sizes: list[int], outputs: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(
            nn.Sequential(
                *(nn.Dropout(DROPOUT / 2), Linears(copies, size, WIDTH), Norms(copies, WIDTH), nn.GELU()),
                *(nn.Dropout(DROPOUT), Linears(copies, WIDTH, WIDTH), nn.GELU(), nn.Dropout(DROPOUT)),
            )
            for size in sizes
        )
        self.head = Linears(copies, WIDTH * len(sizes), outputs)
        self.own = nn.ModuleList(Linears(copies, WIDTH, outputs) for _ in sizes)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        """Returns the prediction [S, N, C], and after it that of every modality."""
        features = [encoder(values) for encoder, values in zip(self.encoders, inputs, strict=True)]
        return [self.head(torch.cat(features, 2)), *(o(f) for o, f in zip(self.own, features, strict=True))]


def plain_mlps(
    task: Task, splits: Mapping[str, Rows], metric: str, better: str, owns: Sequence[float], seed: int = 0
) -> list[float]:
    """Trains a network for each of `owns`; returns the test metric of the best validation of each.

    Args:
        task: what is predicted.
        splits: train, valid and test.
        metric: that selects.
        better: 'min' or 'max'.
        owns: factor of the modalities' own losses, of each network.
        seed: of weights, batches and dropout.
    """
    torch.manual_seed(seed)
    values: dict[str, list[Tensor]] = {name: [] for name in SPLITS}
    for modality in splits["train"].inputs:
        alone = [
            Rows(inputs={modality: splits[s].inputs[modality]}, target=splits[s].target, available=0) for s in SPLITS
        ]
        for name, part in zip(SPLITS, standardised(alone), strict=True):
            values[name].append(torch.from_numpy(part).float())
    regression = isinstance(task, Regression)
    target = torch.from_numpy(splits["train"].target)
    centre, spread = (target.mean(), target.std()) if regression else (torch.tensor(0.0), torch.tensor(1.0))
    wanted = (target - centre) / spread if regression else target
    net, factors = Plain(len(owns), [part.shape[1] for part in values["train"]], task.outputs), torch.tensor(owns)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)

    def losses(prediction_SNC: Tensor, truth_SN: Tensor) -> Tensor:
        """Returns the loss of every network, [S]."""
        if regression:
            return (prediction_SNC[..., 0] - truth_SN).abs().mean(1)
        flat = F.cross_entropy(
            prediction_SNC.flatten(0, 1), truth_SN.flatten(), label_smoothing=SMOOTHING, reduction="none"
        )
        return flat.reshape(truth_SN.shape).mean(1)

    found: list[list[Scores]] = [[] for _ in owns]
    for step in range(1, STEPS + 1):
        rows = torch.randint(len(target), (len(owns), min(BATCH, len(target))))
        net.train()
        fused, *alone_SNC = net([part[rows] for part in values["train"]])
        total = losses(fused, wanted[rows]) + factors * sum(losses(each, wanted[rows]) for each in alone_SNC)
        optimizer.zero_grad()
        # The networks share no weight, so the sum gives each the gradient of its own loss.
        total.sum().backward()
        optimizer.step()
        schedule.step()
        if step % EVERY == 0:
            net.eval()
            with torch.no_grad():
                logits = {
                    s: net([v.expand(len(owns), -1, -1) for v in values[s]])[0] * spread + centre
                    for s in ("valid", "test")
                }
            for copy, seen in enumerate(found):
                truth = {s: torch.from_numpy(splits[s].target) for s in logits}
                seen.append(scored(task, {s: logits[s][copy] for s in logits}, truth))
    # Of equal ones the last, which has been trained for longest.
    return [best(seen[::-1], metric, better).test[metric] for seen in found]


def rows_of(entry: FeatureSet, loaded: Loaded, seeds: int) -> dict[str, list[float]]:
    """Returns the test metric of every simple model of a set, one value a seed where there are seeds."""
    found: dict[str, list[float]] = {}
    for layout, splits in loaded.splits.items():
        linear = best(
            fitted(loaded.task, splits, lambda n, d: linear_models(loaded.task, n, d)), entry.metric, entry.better
        )
        found[f"linear, {layout}"] = [linear.test[entry.metric]]
        if sum(part.shape[1] for part in splits["train"].inputs.values()) > MOST_OF_MLP:
            continue
        values = plain_mlps(loaded.task, splits, entry.metric, entry.better, [0.0] * seeds + [1.0] * seeds)
        found[f"mlp, {layout}"], found[f"mlp, own losses, {layout}"] = values[:seeds], values[seeds:]
    return found


def table(results: Mapping[str, Mapping[str, list[float]]]) -> str:
    """Returns a table of the sets in Markdown, with the mean and the deviation over seeds."""
    columns = list(dict.fromkeys(name for rows in results.values() for name in rows))

    def cell(values: list[float] | None) -> str:
        if values is None:
            return ""
        mean = f"{np.mean(values):.3f}" if abs(np.mean(values)) < 10 else f"{np.mean(values):.2f}"
        return mean + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")

    cells = [[name, *(cell(rows.get(column)) for column in columns)] for name, rows in results.items()]
    return text_table(cells, ["set", *columns], markdown=True)


def main() -> None:
    """Computes the rows of the named sets, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of sets; default all of the index")
    parser.add_argument("--sets", type=Path, required=True, help="folder that feature_sets.py filled")
    parser.add_argument("--storage_path", type=Path, help="for shards and results [SETS/simple]")
    parser.add_argument("--seeds", type=int, default=5, help="of the perceptrons")
    arguments = parser.parse_args()
    index, storage = read_index(arguments.sets), arguments.storage_path or arguments.sets / "simple"
    storage.mkdir(parents=True, exist_ok=True)
    file = storage / "simple.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for name in arguments.names or index:
        if name not in results:
            results[name] = rows_of(index[name], load(index[name], storage.absolute()), arguments.seeds)
            file.write_text(json.dumps(results, indent=1))
            print(name, {row: round(float(np.mean(values)), 4) for row, values in results[name].items()}, flush=True)
    print(table({name: results[name] for name in arguments.names or index}))


if __name__ == "__main__":
    main()
