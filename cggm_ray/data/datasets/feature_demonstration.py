"""A small generated npz with three kinds of modalities, some of them missing, and a planted imbalance."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cggm_ray.core.seeding import derive_seed
from cggm_ray.storage.files import whole_file

SPLITS = {"train": 480, "valid": 120, "test": 120}


def write_demonstration(path: Path, seed: int) -> Path:
    """Writes the file unless it is there; the same bytes for the same seed.

    The label is 2 a + b for two bits. The vector shows both bits under noise; the sequence shows a in one of its steps; the
    image shows b as the direction of its stripes. The sequence is missing from every fifth sample, the image from others.

    Args:
        path: of the file.
        seed: of the generator.

    Returns:
        The path.
    """
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(derive_seed(seed, "demonstration"))
    count = sum(SPLITS.values())
    label = rng.integers(4, size=count)
    a, b = np.divmod(label, 2)
    signs = 2 * np.stack([a, b], 1) - 1

    vector = signs @ rng.normal(size=(2, 12)) * 0.5 + rng.normal(size=(count, 12))
    sequence = 0.5 * rng.normal(size=(count, 10, 6))
    sequence[np.arange(count), rng.integers(10, size=count)] += 2 * signs[:, :1] * rng.normal(size=6)
    wave = np.sin(np.arange(16) * np.pi / 2 + rng.uniform(0, 2 * np.pi, size=(count, 1)))
    stripes = np.where(b[:, None, None] == 1, wave[:, None, :], wave[:, :, None])
    image = np.clip(128 + 50 * stripes + 30 * rng.normal(size=(count, 16, 16)), 0, 255)

    with whole_file(path, ".npz") as partial:
        np.savez_compressed(
            partial,
            allow_pickle=False,
            vector=vector.astype(np.float32),
            sequence=sequence.astype(np.float32),
            image=image.astype(np.uint8),
            sequence_present=np.arange(count) % 5 != 0,
            image_present=np.arange(count) % 7 != 1,
            label=label,
            split=np.repeat(list(SPLITS), list(SPLITS.values())),
        )
    return path
