"""How samples of a request, decoded from JSON, become the batches of a network.

A dataset has a form of requests of its own where one is registered under its name; the others take arrays by modality.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cggm_ray.core.batch import Batch
from cggm_ray.core.errors import DataError, listed
from cggm_ray.core.registry import Registry
from cggm_ray.data.dataset import Dataset
from cggm_ray.data.shards.shards import Manifest

Sample = Mapping[str, Any]
"""Names to values, as JSON has them; null where something is missing."""


@dataclass(frozen=True, kw_only=True)
class RequestPlan:
    """Inputs of a form of requests.

    Attributes:
        dataset: with the settings of the run.
        trained: manifest of the set that the run was trained on.
        modalities: that the network takes.
        device: for the batches.
    """

    dataset: Dataset
    trained: Manifest
    modalities: tuple[str, ...]
    device: torch.device


class RequestForm(ABC):
    """A form of requests.

    Args:
        plan: of the run.
    """

    def __init__(self, plan: RequestPlan) -> None:
        self.plan = plan

    @abstractmethod
    def properties(self) -> dict[str, Any]:
        """Returns the JSON schema of every name that a sample may have."""

    @abstractmethod
    def batches(self, samples: Sequence[Sample]) -> Iterator[Batch]:
        """Yields all samples in batches, whose `index` says which they are; what comes after the samples is not one of them.

        Args:
            samples: with names of `properties` alone, at least one of them.

        Raises:
            DataError: a sample is not what the run was trained with.
        """

    def check(self, samples: Any) -> list[Sample]:
        """Returns the samples of a request after checking that they are objects with known names.

        Raises:
            DataError: names the first sample that is not.
        """
        names = self.properties()
        if not isinstance(samples, list) or not samples:
            raise DataError("samples: expected a list with at least one sample")
        for number, sample in enumerate(samples):
            if not isinstance(sample, dict):
                raise DataError(f"sample {number}: found {_kind(sample)}; expected an object with {listed(names)}")
            unknown = [name for name in sample if name not in names]
            if unknown:
                raise DataError(f"sample {number}: unknown {listed(unknown, 3)}; expected {listed(names)}")
            if all(sample.get(name) is None for name in names):
                raise DataError(f"sample {number}: everything is missing; expected at least one of {listed(names)}")
        return samples

    def schema(self, most: int) -> dict[str, Any]:
        """Returns the JSON schema of a request.

        Args:
            most: samples in a request.
        """
        sample = {"type": "object", "properties": self.properties(), "additionalProperties": False, "minProperties": 1}
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": {"samples": {"type": "array", "minItems": 1, "maxItems": most, "items": sample}},
            "required": ["samples"],
            "additionalProperties": False,
        }


FORMS: Registry[type[RequestForm]] = Registry("form of requests", "cggm_ray.data.requests")
ARRAYS = "arrays"
"""The form of datasets that have none of their own."""


def form_of(plan: RequestPlan) -> RequestForm:
    """Returns the form of requests of a run."""
    name = plan.dataset.name
    return FORMS.get(name if name in FORMS.names() else ARRAYS)(plan)


def _kind(value: object) -> str:
    kinds = {
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return kinds.get(type(value), type(value).__name__)
