"""Requests with arrays by modality, as the shards of the run have them: for every dataset without a form of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from cggm_ray.core.batch import Batch
from cggm_ray.core.errors import DataError
from cggm_ray.data.requests.base import ARRAYS, FORMS, RequestForm, Sample


@FORMS.register(ARRAYS)
class Arrays(RequestForm):
    """A sample is an array for every modality, of the shape that one has in the shards; null where it is missing."""

    def properties(self) -> dict[str, Any]:
        """Returns nested lists of numbers by modality."""
        return {name: array_schema(self._shape(name)) for name in self.plan.modalities}

    def batches(self, samples: Sequence[Sample]) -> Iterator[Batch]:
        """Yields the samples one shape after the other, because sequences may have any length."""
        arrays = [
            {name: self._array(number, name, sample.get(name)) for name in self.plan.modalities}
            for number, sample in enumerate(samples)
        ]
        groups: dict[tuple[Any, ...], list[int]] = {}
        for number, sample in enumerate(arrays):
            shapes = tuple(None if one is None else one.shape for one in sample.values())
            groups.setdefault(shapes, []).append(number)
        for shapes, rows in groups.items():
            inputs, masks = {}, {}
            for name, shape in zip(self.plan.modalities, shapes, strict=True):
                there = shape is not None
                full = (len(rows), *(self._shape(name) if shape is None else shape))
                full_rows = [arrays[row][name] for row in rows]
                values = (
                    np.stack([one for one in full_rows if one is not None]) if there else np.zeros(full, np.float32)
                )
                inputs[name] = torch.from_numpy(values).to(self.plan.device)
                if not there:
                    masks[name] = torch.zeros(len(rows), 1, dtype=torch.bool, device=self.plan.device)
            yield Batch(
                inputs=inputs,
                target=torch.zeros(len(rows), device=self.plan.device),
                index=torch.tensor(rows),
                present={name: mask[:, 0] for name, mask in masks.items()} or None,
                masks=masks or None,
            )

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.plan.trained.modalities[name].shape

    def _array(self, number: int, name: str, value: object) -> np.ndarray | None:
        if value is None:
            return None
        array = number_array(number, name, value)
        if not self.plan.dataset.takes(name, self._shape(name), array.shape):
            found, wanted = list(array.shape), list(self._shape(name))
            raise DataError(f"sample {number}, {name}: found the shape {found}; expected {wanted}")
        return array


def array_schema(shape: Sequence[int]) -> dict[str, Any]:
    """Returns the JSON schema of a nested list of numbers, or null, of this shape; the first of several lengths is free."""
    found: dict[str, Any] = {"type": "number"}
    for place in reversed(range(len(shape))):
        length = {} if place == 0 and len(shape) > 1 else {"minItems": shape[place], "maxItems": shape[place]}
        found = {"type": "array", "items": found, **length}
    return found | {"type": [found["type"], "null"], "description": f"shape {list(shape)}; null where it is missing"}


def number_array(number: int, name: str, value: object) -> np.ndarray:
    """Returns nested lists as a float32 array.

    Args:
        number: of the sample, for messages.
        name: of the modality.
        value: what JSON has.

    Raises:
        DataError: they are no numbers in lists of equal length, or a number is not finite, or there is none.
    """
    try:
        array = np.asarray(value, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        raise DataError(f"sample {number}, {name}: expected numbers in lists of equal length") from None
    if not array.size or isinstance(value, str | bool):
        raise DataError(f"sample {number}, {name}: expected numbers in lists of equal length")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise DataError(f"sample {number}, {name}: a number is not finite in single precision")
    return array
