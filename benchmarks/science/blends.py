"""Measures what logistic regression adds to a network of classes (`--linear_blend`), without the test samples of the sets.

    python benchmarks/science/feature_sets.py --out sets
    python benchmarks/science/held_out_sets.py --out held_out
    python benchmarks/science/blends.py --sets sets --held_out held_out --splits 4

The samples of every set that are not its test samples are split anew, 60 % for training and 20 % each for validation and
test, and so are two sets that scikit-learn makes. The perceptron of refit.py, with a loss of its own for each modality, is
trained for 1,500 steps, and a logistic regression of each strength is fitted to the same standardised inputs. Strength and
weights are chosen on validation, as the package does. Accuracy on the part that is left for test.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch
import torch.nn.functional as F
from feature_sets import drawn_split
from refit import HELD_OUT, MADE, Pool, made, perceptron_logits, stored

from cggm_ray.core.tables import text_table
from cggm_ray.models.logistic import classifier_weights, fit_logistic
from cggm_ray.runs.blending import INVERSE_STRENGTHS

SETS = ("breast_cancer", "wine", "iris", "pie", "digits_quarters", "sensors30", "sensors300")
CLASSES = tuple(name for name in MADE if name.startswith("classes"))


def accuracies(pool: Pool, seed: int) -> tuple[float, float, float, float]:
    """Returns the test accuracy of network, logistic regression and sum, and the weight of logistic regression in the sum."""
    modalities, target, _ = pool
    split = drawn_split(target, (0.2, 0.2), True, seed=100 + seed)
    train, valid, test = (np.flatnonzero(split == name) for name in ("train", "valid", "test"))
    labels = torch.from_numpy(np.unique(target, return_inverse=True)[1])
    scaled = []
    for values in modalities:
        centre, spread = values[train].mean(0), values[train].std(0).clip(1e-6)
        scaled.append(((values - centre) / spread).clip(-5, 5))
    x_ND = torch.from_numpy(np.concatenate(scaled, 1))
    equal, classes = torch.ones(len(train)), int(labels.max()) + 1
    weights_KCD, biases_KC = fit_logistic(x_ND[train], labels[train], equal, classes, INVERSE_STRENGTHS)
    linear_KNC = x_ND.double() @ weights_KCD.mT + biases_KC[:, None]

    def rank(logits_NC: torch.Tensor) -> tuple[float, float]:
        hits = (logits_NC[valid].argmax(1) == labels[valid]).double().mean()
        return -float(hits), float(F.cross_entropy(logits_NC[valid], labels[valid]))

    chosen = min(linear_KNC, key=rank)
    both_MNC = torch.stack([perceptron_logits(pool, train, valid, seed).double(), chosen])
    weights_M = classifier_weights(both_MNC[:, valid], labels[valid], torch.ones(len(valid)))
    if weights_M[1] <= 0:
        weights_M = torch.tensor([1.0, 0.0], dtype=torch.float64)
    total_NC = torch.einsum("m,mnc->nc", weights_M, both_MNC)
    hits = [float((logits[test].argmax(1) == labels[test]).double().mean()) for logits in (*both_MNC, total_NC)]
    return hits[0], hits[1], hits[2], float(weights_M[1])


def main() -> None:
    """Trains and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of sets; default all of them")
    parser.add_argument("--sets", type=Path, required=True, help="folder that feature_sets.py filled")
    parser.add_argument("--held_out", type=Path, required=True, help="folder that held_out_sets.py filled")
    parser.add_argument("--splits", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[list[object]] = []
    for name in arguments.names or (*SETS, *HELD_OUT, *CLASSES):
        folder = arguments.sets if name in SETS else arguments.held_out
        pool = made(name) if name in MADE else stored(name, folder)
        found = [accuracies(pool, seed) for seed in range(arguments.splits)]
        lead = [both - network for network, _, both, _ in found]
        error = stdev(lead) / len(lead) ** 0.5 if len(lead) > 1 else float("nan")
        means = [f"{fmean(part):.3f}" for part in zip(*found, strict=True)]
        rows.append([name, *means[:3], f"{fmean(lead):+.3f} ± {error:.3f}", means[3]])
        print(*rows[-1], flush=True)
    columns = ["set", "network", "logistic regression", "both", "both better by", "weight of logistic regression"]
    print(text_table(rows, columns, markdown=True))


if __name__ == "__main__":
    main()
