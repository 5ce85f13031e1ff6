"""Columns of numbers and of categories, which form one vector together."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cggm_ray.core.errors import DataError
from cggm_ray.data.datasets.table.cells import Cells, as_texts, is_list, is_number, is_text
from cggm_ray.data.datasets.table.kinds import COLUMN_KINDS, ColumnKind, Context, Facts, State
from cggm_ray.data.datasets.table.number_texts import as_numbers, mostly, number_pattern
from cggm_ray.data.rounding import rounding

NUMERIC = "numeric"
MOST_CATEGORIES = 100
FEW, SHARE = 20, 0.05
"""Texts are categories if there are at most so many different ones, or at most so many for each cell."""


class Numeric(ColumnKind):
    """Numbers. A missing one gets the mean of training; where training lacks some, a second number marks those."""

    order = 30
    grouped = True

    def recognises(self, facts: Facts) -> bool:
        """Returns whether the cells are numbers, or texts of which most are."""
        if not is_text(facts.type):
            return is_number(facts.type)
        return facts.count > 0 and mostly(pc.match_substring_regex(facts.known, number_pattern(facts.options.decimal)))

    def read(self, cells: Cells, context: Context) -> pa.Array:
        """Returns float64."""
        return as_numbers(cells, context.options.decimal)

    def fit(self, name: str, cells: pa.Array, context: Context) -> State:
        """Returns the mean, whether a cell is missing, and the offset that has to be subtracted for single precision."""
        if cells.null_count == len(cells):
            raise DataError(
                f"column {name}: has no number in the training split; leave it out with --column {name}=drop"
            )
        known = cells.drop_null().to_numpy()
        mean = float(np.mean(known))
        # Only where it matters, so that without standardisation the network has the numbers of the table.
        offset = {} if rounding(known) is None else {"offset": mean}
        return {"mean": mean, "missing": cells.null_count > 0, **offset}

    def encode(self, cells: pa.Array, state: State) -> np.ndarray:
        """Returns [N, 1], or [N, 2] with the second number 1 where the first is missing."""
        values = pc.fill_null(cells.cast(pa.float64()), state["mean"]).to_numpy(zero_copy_only=False)
        values = values - state.get("offset", 0.0)
        columns = [values, cells.is_null().to_numpy(zero_copy_only=False)][: 1 + state["missing"]]
        return np.stack(columns, 1).astype(np.float32)

    def about(self, state: State) -> str:
        """Returns the mean, and what is done to the numbers."""
        subtracted = ", which is subtracted, because single precision rounds such numbers" if "offset" in state else ""
        return f"mean {state['mean']:.4g}{subtracted}{', missing ones are marked' if state['missing'] else ''}"


class Categorical(ColumnKind):
    """One of several values. What is missing and what training does not know are categories of their own."""

    order = 40
    grouped = True

    def recognises(self, facts: Facts) -> bool:
        """Returns whether values repeat."""
        if not is_text(facts.type) or not facts.count:
            return False
        return facts.distinct <= max(min(FEW, facts.count // 2), SHARE * facts.count)

    def read(self, cells: Cells, context: Context) -> pa.Array:
        """Returns texts."""
        if is_list(cells.values.type) or pa.types.is_struct(cells.values.type):
            raise cells.wrong(int(np.flatnonzero(cells.there)[0]), "a text or a number")
        return as_texts(cells.values)

    def fit(self, name: str, cells: pa.Array, context: Context) -> State:
        """Returns the most frequent categories of training, in alphabetical order."""
        counts = Counter(cells.drop_null().to_pylist())
        frequent = sorted(counts, key=lambda value: (-counts[value], value))[:MOST_CATEGORIES]
        return {"categories": sorted(frequent), "rare": len(counts) - len(frequent)}

    def encode(self, cells: pa.Array, state: State) -> np.ndarray:
        """Returns [N, C + 2]: a 1 for the category, for an unknown or rare one, or for a missing cell."""
        number_of = {value: number for number, value in enumerate(state["categories"])}
        unknown = len(number_of)
        numbers = [unknown + 1 if v is None else number_of.get(v, unknown) for v in cells.to_pylist()]
        return np.eye(unknown + 2, dtype=np.float32)[np.array(numbers, dtype=np.int64)]

    def about(self, state: State) -> str:
        """Returns the number of categories."""
        rare = f", {state['rare']} rare ones together" if state["rare"] else ""
        return f"{len(state['categories'])} categories{rare}"


COLUMN_KINDS.register(NUMERIC)(Numeric())
COLUMN_KINDS.register("categorical")(Categorical())
