"""Says in a sentence which modalities do the work in a network."""

from __future__ import annotations

import math

from cggm_ray.runs.contributions import Contributions

NEARLY_ALL, MOST = 0.8, 0.6
"""Shares of the gain from which one modality is said to do nearly all of it, or most of it."""
EVEN = 0.5
"""All modalities are said to contribute if the smallest share is at least this part of an equal one."""


def verdict(found: Contributions, *, fitted: bool = False) -> str:
    """Returns the sentence, with the numbers; it is empty where subsets of modalities were not scored.

    Args:
        found: of the run.
        fitted: whether the network was trained on these samples, which a second sentence says then.
    """
    values = found.shapley
    empty, full = found.scores.get(frozenset()), found.scores.get(frozenset(found.modalities))
    if not values or empty is None or full is None or not all(map(math.isfinite, (*values.values(), empty, full))):
        return ""
    gain = sum(values.values())
    step = f"validation {found.metric} goes from {empty:.4f} without any modality to {full:.4f} with all"
    if gain <= 0:
        return f"The network has learned nothing from its modalities: {step}."
    shares = sorted(((value / gain, name) for name, value in values.items()), reverse=True)
    listed = ", ".join(f"{name} {share:.0%}" for share, name in shares)
    (first, leader), (least, _) = shares[0], shares[-1]
    if first >= NEARLY_ALL:
        who = f"{leader} does nearly all"
    elif first >= MOST:
        who = f"{leader} does most"
    elif least >= EVEN / len(shares):
        who = "all modalities contribute"
    else:
        who = "the modalities contribute unequally"
    worse = [name for share, name in shares if share < 0]
    but = f" With {' and '.join(worse)} it is worse than without." if worse else ""
    also = " The network was trained on these samples." if fitted else ""
    return f"{who[0].upper()}{who[1:]}: {step}, of which {listed} (Shapley values).{but}{also}"
