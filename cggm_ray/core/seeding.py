"""Random numbers as functions of their purpose.

Weights, sample order and dropout are drawn from streams named by (seed, purpose, epoch or step, rank). Nothing depends on
earlier draws, so a resumed run needs no generator state to continue as if it had never stopped.
"""

from __future__ import annotations

import os
import random

import numpy as np
import torch

# The place of a purpose is part of its stream: add new ones at the end.
_PURPOSES = (
    *("weights", "order", "step", "demonstration", "augment", "split", "view", "exchanges", "noise"),
    *("shards", "window", "given"),
)


def derive_seed(seed: int, purpose: str, *parts: int) -> int:
    """Returns a 63-bit seed for one stream, statistically independent of all others."""
    state = np.random.SeedSequence([seed, _PURPOSES.index(purpose), *parts]).generate_state(1, np.uint64)
    return int(state[0] >> 1)


def generator(seed: int, purpose: str, *parts: int) -> torch.Generator:
    """Returns a torch generator for one stream."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *parts))


def seed_all(seed: int) -> None:
    """Seeds the global generators of torch, numpy and Python, for code of a dataset or a network that draws from them."""
    seed_torch(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def seed_torch(seed: int) -> None:
    """Seeds torch's generators of the CPU and of the current GPU.

    `torch.manual_seed` also queues the seed, with a formatted stack, for every kind of device that may be used later: .2 ms in
    every step. Where a GPU may yet be used, and is not, the queue is needed.
    """
    if torch.cuda.is_initialized():
        torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(seed)
    elif torch.cuda.is_available():
        torch.manual_seed(seed)
    torch.default_generator.manual_seed(seed)


def make_deterministic() -> None:
    """Restricts torch to deterministic operations; an operation without a deterministic form raises RuntimeError."""
    # cuBLAS reads it when its context is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
