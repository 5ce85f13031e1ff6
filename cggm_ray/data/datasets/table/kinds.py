"""What a kind of column is: how its cells are recognised, checked and turned into numbers. A new kind is one file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cggm_ray.core.kinds import VECTOR, kind_of
from cggm_ray.core.registry import Registry
from cggm_ray.data.datasets.table.cells import Cells, is_list, is_text
from cggm_ray.data.datasets.table.options import TableOptions
from cggm_ray.data.formats.columns import LEAST_BYTES

State = dict[str, Any]
"""What a kind learns of a column from training data, as plain values: the manifest keeps it, and new data is turned with it."""
ROWS = 10_000
"""Texts of a large column that are in Python at once."""
MOSTLY = 0.9
"""Share of the cells that must look like a kind; the others are then wrong cells."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """Settings that kinds receive.

    Attributes:
        options: of the table.
        media: folder below which media lie.
        shard_root: folder of all sets, where checksums are kept.
        no_cuda: stay on the CPU.
        bad: messages about media that cannot be read and count as missing; kinds add to it.
        remarks: lines for the user about the data; kinds add to it.
    """

    options: TableOptions
    media: Path
    shard_root: Path
    no_cuda: bool
    bad: list[str]
    remarks: list[str]


class Facts:
    """Facts about the cells of a column, from which its kind is inferred; each is computed when it is first needed.

    Args:
        cells: of the training data.
        options: of the table.
    """

    def __init__(self, cells: Cells, options: TableOptions) -> None:
        self.cells, self.options = cells, options
        self.type: pa.DataType = cells.values.type
        self.known: pa.Array = cells.values.drop_null()

    @cached_property
    def count(self) -> int:
        """Number of cells that are not missing."""
        return len(self.known)

    @cached_property
    def distinct(self) -> int:
        """Number of different values; of values that cannot be compared, their number."""
        if is_list(self.type) or pa.types.is_struct(self.type) or isinstance(self.type, pa.BaseExtensionType):
            return self.count
        if is_text(self.type) and self.known.nbytes >= LEAST_BYTES:
            # A set of all texts would take several times their memory. Other datasets start sooner without pandas.
            from pandas.util import hash_array

            parts = (self.known.slice(start, ROWS) for start in range(0, self.count, ROWS))
            return len(np.unique(np.concatenate([hash_array(np.array(part.to_pylist(), object)) for part in parts])))
        return int(pc.count_distinct(self.known).as_py())

    @cached_property
    def words(self) -> float:
        """Mean number of words of a text; 0 for other values."""
        if not is_text(self.type) or not self.count:
            return 0.0
        return float(pc.mean(pc.count_substring_regex(self.known, r"\S+")).as_py())

    def share(self, pattern: str, *, ignore_case: bool = False) -> float:
        """Returns the share of texts that match a pattern; 0 for other values."""
        if not is_text(self.type) or not self.count:
            return 0.0
        found = pc.match_substring_regex(self.known, pattern, ignore_case=ignore_case)
        return float(pc.mean(found.cast(pa.float64())).as_py())


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Numbers of the cells of a column.

    Attributes:
        values: [N, ...]; zeros where a cell is missing.
        steps: int64 [N], for sequences that are padded at their end: steps before the padding, 0 where a cell is missing.
    """

    values: np.ndarray
    steps: np.ndarray | None = None


class ColumnKind(ABC):
    """A kind of column.

    Attributes:
        order: in which kinds are tried; a lower one is tried first. A kind of a user's own is tried before all others.
        grouped: whether its columns form one modality together unless the user says otherwise. Missing cells of such a column
            are numbers as well, so that only a row without any cell of the modality lacks it.
    """

    order: ClassVar[int] = 0
    grouped: ClassVar[bool] = False

    @abstractmethod
    def recognises(self, facts: Facts) -> bool:
        """Returns whether a column looks like one of this kind."""

    @abstractmethod
    def read(self, cells: Cells, context: Context) -> pa.Array:
        """Checks and returns the cells in the form that `encode` or `prepare` receives; null where a cell is missing.

        Raises:
            DataError: a cell is wrong (`Cells.wrong`).
        """

    @abstractmethod
    def fit(self, name: str, cells: pa.Array, context: Context) -> State:
        """Returns what must be known of the training split to encode cells.

        Args:
            name: of the column, for messages.
            cells: of the training split, from `read`.
            context: settings.

        Raises:
            DataError: the column cannot be used.
        """

    def problem(self, cells: pa.Array, state: State) -> str | None:
        """Returns why cells that were read cannot be encoded with what was learned in training; None where they can."""
        return None

    @abstractmethod
    def encode(self, cells: pa.Array, state: State) -> np.ndarray | Encoded:
        """Returns the numbers [N, ...] of cells, in tasks, with steps if they are padded.

        Missing cells give zeros, or what `fit` decided for them.

        A kind for which `pooled` is true is not called.
        """

    @abstractmethod
    def about(self, state: State) -> str:
        """Returns what becomes of the cells, in a few words."""

    def media(self, cells: Cells, context: Context) -> list[str | None]:
        """Returns the files that cells name, None where there is no such file; their size and time are part of the fingerprint.

        Raises:
            DataError: a name leads out of the folder of media.
        """
        return []

    def pooled(self, state: State) -> bool:
        """Returns whether cells are encoded by a model, in few long-lived processes, by `load`.

        The default is whether the state has an entry `model`, and none `trained`, of a model that is part of the network.
        """
        return "model" in state and "trained" not in state

    def prepare(self, cells: pa.Array, state: State) -> pa.Array:
        """Returns cells as `load` receives them, in tasks before it; by default unchanged."""
        return cells

    def load(self, state: State, context: Context) -> Callable[[pa.Array], Encoded]:
        """Returns the function that encodes prepared cells with a model, in the process that holds the model."""
        raise NotImplementedError

    def again(self, state: State, context: Context) -> State:
        """Returns the state of a trained run for use with new data, after checking that what it names is still there.

        Raises:
            DataError: it is gone, or is another one.
        """
        return state

    def input_kind(self, state: State, shape: tuple[int, ...]) -> str:
        """Returns one of `core.kinds.KINDS` for samples of a shape."""
        return kind_of(shape) or VECTOR


COLUMN_KINDS: Registry[ColumnKind] = Registry("kind of column", "cggm_ray.data.datasets.table")
"""A kind of column is one file in this folder, or in a file of `--import`, that calls `COLUMN_KINDS.register`."""


def kinds_in_order() -> list[str]:
    """Returns the names of all kinds, in the order in which they are tried."""
    return sorted(COLUMN_KINDS.names(), key=lambda name: (COLUMN_KINDS.get(name).order, name))
