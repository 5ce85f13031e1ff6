"""Words of the pages: what metrics are called, in which unit and direction, and what the terms of this field mean."""

from __future__ import annotations

METRICS = {
    "loss": ("loss", "the function that training makes small"),
    "mae": ("mean absolute error", "in the units of the target"),
    "corr": ("correlation", "Pearson's r, from -1 to 1"),
    "acc7": ("accuracy of 7 classes", "share of samples, sentiments rounded to -3 ... 3"),
    "acc5": ("accuracy of 5 classes", "share of samples, sentiments rounded to -2 ... 2"),
    "acc2_nonneg": ("accuracy of 2 classes, zero is positive", "share of samples"),
    "f1_nonneg": ("F1 of 2 classes, zero is positive", "from 0 to 1"),
    "acc2_nozero": ("accuracy of 2 classes, without zero", "share of samples"),
    "f1_nozero": ("F1 of 2 classes, without zero", "from 0 to 1"),
    "acc2_sims": ("accuracy of 2 classes", "share of samples, classes of CH-SIMS in [-1, 1]"),
    "acc3_sims": ("accuracy of 3 classes", "share of samples, classes of CH-SIMS in [-1, 1]"),
    "acc5_sims": ("accuracy of 5 classes", "share of samples, classes of CH-SIMS in [-1, 1]"),
    "f1_sims": ("weighted F1 of 2 classes", "from 0 to 1"),
    "accuracy": ("accuracy", "share of samples that are right"),
    "unweighted_accuracy": ("unweighted accuracy", "mean share of right samples over the classes"),
    "f1": ("weighted F1", "from 0 to 1"),
    "f1_micro": ("micro F1", "over all labels together, from 0 to 1"),
    "f1_macro": ("macro F1", "mean over the labels, from 0 to 1"),
    "exact_match": ("exact match", "share of samples with all labels right"),
    "dice_mean": ("mean Dice", "overlap with the truth, from 0 to 1, mean over the regions"),
    "dice_et": ("Dice of the enhancing tumour", "from 0 to 1"),
    "dice_tc": ("Dice of the tumour core", "from 0 to 1"),
    "dice_wt": ("Dice of the whole tumour", "from 0 to 1"),
    "dice_rc": ("Dice of the resection cavity", "from 0 to 1"),
}
"""Metric to its name and its unit."""
ARROWS = {"min": "↓", "max": "↑"}
WAYS = {"min": "lower is better", "max": "higher is better"}

TERMS = {
    "balance": "A modality is one kind of input, such as text or audio. Each has its own encoder, and a fusion joins what the "
    "encoders return. A strategy balances training when it changes the gradients, the loss or the samples so that no modality "
    "is left behind.",
    "score": "An auxiliary classifier (guide) predicts the target from one modality alone. Its score rises while that "
    "encoder learns.",
    "grad_norm": "The norm of the loss's gradient at the encoder's weights, with the coefficient in it and before "
    "clipping to a largest norm. An encoder with a small gradient learns slowly.",
    "cosine": "The cosine of the angle between the guide's gradient and that of the fusion: 1 same direction, 0 unrelated, "
    "-1 opposite.",
    "coefficient": "The strategy multiplies the gradient of each encoder by its coefficient. Modalities that improve less get "
    "a larger one.",
    "shapley": "The Shapley value of a modality is what it adds to the metric, averaged over all orders in which modalities "
    "can be added. The values add up to the difference between all modalities and none.",
    "imbalance": "The imbalance degree is 0 where all modalities contribute the same, and 1 where one contributes and the "
    "others do nothing.",
    "headroom": "Head-room is what balancing can gain on this set: if a single modality, late fusion or a simple model beats "
    "joint training, training has not used its modalities well.",
    "interval": "Differences are taken run by run, over runs with the same seed and fold. The 95% interval is a percentile "
    "bootstrap of their mean; there is none from fewer than 5 pairs, because it would be too narrow.",
    "importance": "The share of the variance of the trials' ranks that a parameter alone explains, less what chance explains. "
    "Two parameters that matter only together both get little. It is not defined for fewer than 5 trials, and where all have "
    "the same value or the same result.",
    "stopped": "A trial is stopped early where others were better after as many epochs. It counts with the best value "
    "that it had until then.",
    "scatter": "Each point is a test sample. Both axes have the same range, so points on the diagonal are exact.",
    "confusion": "Rows are true classes, columns are predicted classes. A cell has the number of test samples; the bar in it "
    "is its share of the true class.",
    "dice": "Dice is twice the overlap of prediction and truth, divided by the sum of their sizes: 1 where they are "
    "the same, 0 where they share nothing.",
}
"""Explanations, which stand beside what they explain."""


def metric_name(metric: str, better: str | None = None) -> str:
    """Returns the name of a metric with an arrow in the direction that is better.

    Args:
        metric: as the task calls it.
        better: 'min' or 'max'; None where it is not known.
    """
    name, _ = METRICS.get(metric, (metric, ""))
    return f"{name} {ARROWS[better]}" if better in ARROWS else name


def metric_words(metric: str, better: str | None = None) -> str:
    """Returns a metric with its unit and direction, for the axis of a picture."""
    name, unit = METRICS.get(metric, (metric, ""))
    return ", ".join(filter(None, (name, unit, WAYS.get(better or "", ""))))


def direction(metric: str, selecting: str, better: str) -> str:
    """Returns 'min' or 'max', the direction in which a metric improves.

    Args:
        metric: of a run.
        selecting: the metric that selects its checkpoints.
        better: the direction of that one.
    """
    if metric == selecting:
        return better
    return "min" if metric in ("loss", "mae") else "max"
