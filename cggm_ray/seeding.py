"""Random numbers as functions of what they are for.

Weights, sample order and dropout are drawn from streams named by (seed, purpose, epoch or step, rank). Nothing depends on
what was drawn before, so a resumed run needs no generator state to go on as if it had never stopped.
"""

from __future__ import annotations

import numpy as np
import torch

# The place of a purpose is part of its stream: add new ones at the end.
_PURPOSES = ("weights", "order", "step", "demonstration", "augment", "split", "view", "exchanges")


def derive_seed(seed: int, purpose: str, *parts: int) -> int:
    """A 63-bit seed for one stream, statistically independent of all others."""
    state = np.random.SeedSequence([seed, _PURPOSES.index(purpose), *parts]).generate_state(1, np.uint64)
    return int(state[0] >> 1)


def generator(seed: int, purpose: str, *parts: int) -> torch.Generator:
    """A torch generator for one stream."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *parts))
