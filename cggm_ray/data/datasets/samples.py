"""The samples of a split, as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Samples of a split.

    Attributes:
        inputs: modality to [N, ...].
        present: modality to bool [N], where samples of any split lack it.
        steps: modality to int64 [N], 0 where it is missing, for sequences with padding in any split.
        target: [N] of classes or [N, 1] of values.
        names: of the samples, if they have any.
    """

    inputs: dict[str, np.ndarray]
    present: dict[str, np.ndarray] = field(default_factory=dict)
    steps: dict[str, np.ndarray] = field(default_factory=dict)
    target: np.ndarray
    names: Sequence[str] | None = None

    def take(self, rows: np.ndarray) -> Samples:
        """The samples of these rows."""

        def part(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: values[rows] for name, values in arrays.items()}

        return Samples(
            inputs=part(self.inputs),
            present=part(self.present),
            steps=part(self.steps),
            target=self.target[rows],
            names=None if self.names is None else [self.names[row] for row in rows],
        )
