"""The samples of a split, as arrays, and as raw shards."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from cggm_ray.data.shards.chunks import chunks
from cggm_ray.data.shards.shards import (
    IDENTITY,
    INDEX,
    LABELLED,
    PRESENT,
    STEPS,
    TARGET,
    RawShard,
    tensor_column,
)


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
        """Returns the samples of these rows."""

        def part(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: values[rows] for name, values in arrays.items()}

        return Samples(
            inputs=part(self.inputs),
            present=part(self.present),
            steps=part(self.steps),
            target=self.target[rows],
            names=None if self.names is None else [self.names[row] for row in rows],
        )

    def shards(
        self, split: str, incomplete: Collection[str] = (), labelled: np.ndarray | None = None
    ) -> Iterator[RawShard]:
        """The raw shards of a split that these samples make.

        Args:
            split: name of it.
            incomplete: modalities that some sample of the set lacks; those with steps have 0 of them there.
            labelled: bool [N], whether a sample has a label; None where all do.
        """
        sample_bytes = sum(4 * values[0].size for values in self.inputs.values() if len(values))
        for number, rows in chunks(len(self.target), sample_bytes):
            columns = {name: tensor_column(values[rows]) for name, values in self.inputs.items()}
            columns |= {STEPS + name: pa.array(steps[rows]) for name, steps in self.steps.items()}
            columns |= {
                PRESENT + name: pa.array(flags[rows])
                for name, flags in self.present.items()
                if name in incomplete and name not in self.steps
            }
            columns[TARGET] = tensor_column(self.target[rows])
            if labelled is not None:
                columns[LABELLED] = pa.array(labelled[rows])
            columns[INDEX] = pa.array(np.arange(rows.start, rows.stop))
            if self.names is not None:
                columns[IDENTITY] = pa.array(self.names[rows])
            yield RawShard(split=split, number=number, table=pa.table(columns))
