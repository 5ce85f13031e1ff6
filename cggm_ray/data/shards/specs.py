"""Shape and type of one sample in the columns of a shard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from cggm_ray.data.shards.shards import IDENTITY, TARGET, TensorSpec, column_values, is_modality


def described(specs: Mapping[str, TensorSpec]) -> dict[str, Any]:
    """Returns the fields of a manifest that follow from the columns of a shard."""
    return {
        "modalities": {name: spec for name, spec in specs.items() if is_modality(name)},
        "target": specs[TARGET],
    }


def table_specs(table: pa.Table) -> Mapping[str, TensorSpec]:
    """Returns the shape and type of one sample for every column of a shard."""
    table = table.slice(0, 1)
    values = {name: column_values(table.column(name)) for name in table.column_names if name != IDENTITY}
    return {name: TensorSpec(shape=v.shape[1:], dtype=str(v.dtype)) for name, v in values.items()}
