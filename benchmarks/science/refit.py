"""Measures the effect of training on the validation split too (`--refit`), without the test samples of the sets.

    python benchmarks/science/feature_sets.py --out sets
    python benchmarks/science/refit.py --sets sets --splits 6

The samples of every set that are not its test samples are split anew, 60 % for training and 20 % each for validation and
test, and so are four sets that scikit-learn makes. A perceptron with a loss of its own for each modality is trained twice
for 1,500 steps, with the training samples alone and with the validation samples too. Both are tested after the step that
validation of the first one chose, the second one also after that with the least validation loss, if that is later. Accuracy;
of regressions the error in standard deviations of the target.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch
from feature_sets import drawn_split, read_index
from sklearn import datasets
from torch import Tensor, nn

from cggm_ray.core.tables import text_table

STEPS, EVERY, RATE, WIDTH, DROPOUT, SMOOTHING = 1500, 50, 2e-3, 256, 0.3, 0.1
MOST_NUMBERS = 600
"""Sequences of more numbers are taken as mean and maximum over their steps."""
SETS = ("breast_cancer", "wine", "iris", "pie", "digits_quarters", "sensors30", "sensors300", "mosi_utt", "diabetes")
HELD_OUT = (
    "mosi_sign",
    "heavy_tails",
    "many_weak",
    "imbalanced",
    "pages",
    "photos_words",
    "digits_six",
    "wide",
    "linear_classes",
    "genes",
)
"""Sets of held_out_sets.py that have classes; they are taken with --held_out."""
MADE = ("classes, 200 samples", "classes, 1000 samples", "friedman1", "linear")
Pool = tuple[list[np.ndarray], np.ndarray, bool]


def made(name: str) -> Pool:
    """Returns modalities, targets and whether they are classes of a set that scikit-learn makes."""
    if name.startswith("classes"):
        count = int(name.split()[1])
        columns, target = datasets.make_classification(
            count, 40, n_informative=12, n_classes=3, flip_y=0.1, random_state=0
        )
    elif name == "friedman1":
        columns, target = datasets.make_friedman1(600, 12, noise=1.0, random_state=0)
    else:
        columns, target = datasets.make_regression(400, 60, n_informative=20, noise=20, random_state=0)
    return [part.astype(np.float32) for part in np.array_split(columns, 3, axis=1)], target, name.startswith("classes")


def stored(name: str, sets: Path) -> Pool:
    """Returns the same of the training and validation samples of a set of the index."""
    entry = read_index(sets)[name]
    content = dict(np.load(entry.path, allow_pickle=True))
    value = dict(zip(entry.flags[::2], entry.flags[1::2], strict=True))
    target = content.pop(value["--target"])
    kept = content.pop(value["--split"]) != "test"
    names = value["--modalities"].split(",") if "--modalities" in value else list(content)
    modalities = []
    for modality in names:
        values = np.nan_to_num(content[modality][kept].astype(np.float32))
        if values.ndim > 2 and values[0].size > MOST_NUMBERS:
            values = np.concatenate([values.mean(1), values.max(1)], 1)
        modalities.append(values.reshape(len(values), -1))
    return modalities, target[kept], entry.metric == "accuracy"


class Perceptron(nn.Module):
    """An encoder for each modality, their concatenation, and a head for it and for each encoder."""

    def __init__(self, widths: Sequence[int], outputs: int) -> None:
        super().__init__()

        def encoder(width: int) -> nn.Sequential:
            first = [nn.Dropout(DROPOUT / 2), nn.Linear(width, WIDTH), nn.LayerNorm(WIDTH), nn.GELU()]
            return nn.Sequential(*first, nn.Dropout(DROPOUT), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Dropout(DROPOUT))

        self.encoders = nn.ModuleList(encoder(width) for width in widths)
        self.own = nn.ModuleList(nn.Linear(WIDTH, outputs) for _ in widths)
        self.head = nn.Linear(WIDTH * len(widths), outputs)

    def forward(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Returns the outputs [N, C] of the fused head and then of each encoder."""
        features = [encode(values) for encode, values in zip(self.encoders, inputs, strict=True)]
        return [self.head(torch.cat(features, 1)), *(own(part) for own, part in zip(self.own, features, strict=True))]


def trained(
    pool: Pool, fitted: np.ndarray, watched: Sequence[np.ndarray], seed: int
) -> list[list[tuple[float, float]]]:
    """Returns the metric, of which more is better, and the loss on each watched part after every 50 steps."""
    return [
        [(_metric(pool, *part), _loss(pool, *part)) for part in looked]
        for looked in outputs_by_step(pool, fitted, watched, seed)
    ]


def _metric(pool: Pool, out: Tensor, y: Tensor) -> float:
    return float((out.argmax(1) == y).float().mean() if pool[2] else -(out - y).abs().mean())


def _loss(pool: Pool, out: Tensor, y: Tensor) -> float:
    return float(criterion(pool[2])(out, y))


def criterion(classes: bool) -> nn.Module:
    """Returns the loss of a set."""
    return nn.CrossEntropyLoss(label_smoothing=SMOOTHING) if classes else nn.L1Loss()


def perceptron_logits(pool: Pool, fitted: np.ndarray, valid: np.ndarray, seed: int) -> Tensor:
    """Returns the logits [N, C] of all samples of a set of classes, after the step with the best validation accuracy."""
    best, logits = -1.0, torch.empty(0)
    for ((found, truth),) in outputs_by_step(pool, fitted, [np.arange(len(pool[1]))], seed):
        accuracy = float((found[valid].argmax(1) == truth[valid]).float().mean())
        # The last of several steps with the best value, as --select_latest does.
        if accuracy >= best:
            best, logits = accuracy, found
    return logits


def outputs_by_step(
    pool: Pool, fitted: np.ndarray, watched: Sequence[np.ndarray], seed: int
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Trains a perceptron, and gives after every 50 steps its outputs for each watched part, with the targets."""
    modalities, target, classes = pool
    torch.manual_seed(seed)
    inputs = []
    for values in modalities:
        centre, spread = values[fitted].mean(0), values[fitted].std(0).clip(1e-6)
        inputs.append(torch.from_numpy(((values - centre) / spread).clip(-5, 5)))
    if classes:
        labels, outputs = torch.from_numpy(np.unique(target, return_inverse=True)[1]), len(np.unique(target))
    else:
        scaled = (target - target[fitted].mean()) / target[fitted].std()
        labels, outputs = torch.from_numpy(scaled.astype(np.float32))[:, None], 1
    loss = criterion(classes)
    net = Perceptron([values.shape[1] for values in inputs], outputs)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS, pct_start=0.1)
    rows = torch.from_numpy(fitted)
    for step in range(STEPS):
        batch = rows[torch.randint(len(rows), (min(len(rows), 32),))]
        net.train()
        total = torch.stack([loss(out, labels[batch]) for out in net([values[batch] for values in inputs])]).sum()
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % EVERY == 0:
            net.eval()
            with torch.no_grad():
                looked = [(net([values[part] for values in inputs])[0], labels[part]) for part in watched]
            yield looked


def tested(pool: Pool, splits: int) -> list[tuple[float, float, float]]:
    """Returns the test metrics of every split, an error as a negative number.

    They are those of training samples, of validation samples too, and of both after the later step.
    """
    found = []
    for seed in range(splits):
        split = drawn_split(pool[1], (0.2, 0.2), pool[2], seed=100 + seed)
        train, valid, test = (np.flatnonzero(split == name) for name in ("train", "valid", "test"))
        by_step = trained(pool, train, [valid, test], seed)
        # The last of several steps with the best value, as --select_latest does.
        best = max(range(len(by_step)), key=lambda step: (by_step[step][0][0], step))
        later = max(best, min(range(len(by_step)), key=lambda step: (by_step[step][0][1], -step)))
        both = trained(pool, np.concatenate([train, valid]), [test], seed)
        found.append((by_step[best][1][0], both[best][0][0], both[later][0][0]))
    return found


def better_by(left: Sequence[float], right: Sequence[float]) -> str:
    """Returns the mean difference with its standard error."""
    lead = [after - before for before, after in zip(left, right, strict=True)]
    error = stdev(lead) / len(lead) ** 0.5 if len(lead) > 1 else float("nan")
    return f"{fmean(lead):+.3f} ± {error:.3f}"


def main() -> None:
    """Trains and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of sets; default {', '.join((*SETS, *MADE))}")
    parser.add_argument("--sets", type=Path, required=True, help="folder that feature_sets.py filled")
    parser.add_argument("--held_out", type=Path, help="folder that held_out_sets.py filled, for its sets of classes")
    parser.add_argument("--splits", type=int, default=6)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[list[object]] = []
    for name in arguments.names or (*SETS, *(HELD_OUT if arguments.held_out else ()), *MADE):
        pool = made(name) if name in MADE else stored(name, arguments.held_out if name in HELD_OUT else arguments.sets)
        alone, both, later = zip(*tested(pool, arguments.splits), strict=True)
        means = [f"{abs(fmean(part)):.3f}" for part in (alone, both, later)]
        rows.append([name, *means, better_by(alone, both), better_by(both, later)])
        print(*rows[-1], flush=True)
    columns = [
        "set",
        "training samples",
        "and validation samples",
        "after the later step",
        "better by",
        "later step better by",
    ]
    print(text_table(rows, columns, markdown=True))


if __name__ == "__main__":
    main()
