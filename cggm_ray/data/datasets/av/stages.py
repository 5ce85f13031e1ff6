"""Turns raw shards of clips into samples: media are decoded in tasks, and frozen encoders run where they are held."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from cggm_ray.core.errors import CggmError, DataError, listed
from cggm_ray.data.datasets.av.decoding import SilentError, decoded, reason_of, sample_shape
from cggm_ray.data.datasets.av.frozen import PREPARED, prepared, taken_by_encoder
from cggm_ray.data.datasets.av.layouts import AUDIO
from cggm_ray.data.datasets.av.media import Medium
from cggm_ray.data.datasets.av.options import AvOptions
from cggm_ray.data.datasets.table.kinds import State
from cggm_ray.data.shards.shards import IDENTITY, PRESENT, tensor_column

MEDIUM = "medium/"
"""Prefix of the columns of a raw table that hold media, as JSON."""
SHOWN = 5


def packed(medium: Medium | None) -> str | None:
    """Returns a medium as the cell of a raw table holds it."""
    return None if medium is None else json.dumps([medium.form, *medium.paths])


def unpacked(cell: str) -> Medium:
    """Returns the medium of a cell."""
    form, *paths = json.loads(cell)
    return Medium(form=form, paths=tuple(paths))


def refusal(lines: list[str], allowed: int) -> DataError:
    """Returns the error for more bad media than are allowed, with a line for each."""
    if len(lines) == 1:
        return DataError(f"{lines[0]} (or --skip_bad 1, and it counts as missing)")
    return DataError(
        f"{len(lines)} media are missing or cannot be read; expected at most {allowed} (skip_bad): {listed(lines, SHOWN, 400)}"
    )


@dataclass(frozen=True, kw_only=True)
class DecodeClips:
    """Decodes the media of a table, clip by clip, so that a task holds the samples of its shard and one file.

    Attributes:
        options: of the set.
        modalities: in their order.
        frozen: state of the encoder of every modality that has one.
    """

    options: AvOptions
    modalities: tuple[str, ...]
    frozen: Mapping[str, State] = field(default_factory=dict)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Returns the table with a sample for every medium, zeros and a False where there is none.

        Raises:
            DataError: more media than `skip_bad` cannot be decoded.
        """
        bad: list[str] = []
        for modality in self.modalities:
            cells = table.column(MEDIUM + modality).to_pylist()
            table = table.drop_columns([MEDIUM + modality])
            samples = (None if cell is None else self._sample(modality, unpacked(cell), bad) for cell in cells)
            if modality in self.frozen:
                every = list(samples)
                there = np.array([sample is not None for sample in every])
                column = prepared(modality, every, self.frozen[modality])
                table = table.append_column(PREPARED + modality, column)
            else:
                shape = sample_shape(modality, self.options)
                values = np.zeros((len(cells), *shape), np.float16 if modality == AUDIO else np.uint8)
                there = np.zeros(len(cells), bool)
                for row, sample in enumerate(samples):
                    if sample is not None:
                        values[row], there[row] = sample, True
                table = table.append_column(modality, tensor_column(values))
            table = table.append_column(PRESENT + modality, pa.array(there))
        _check_some(table, self.modalities)
        return table

    def _sample(self, modality: str, medium: Medium, bad: list[str]) -> Any:
        try:
            if modality in self.frozen:
                return taken_by_encoder(modality, medium, self.frozen[modality])
            return decoded(modality, medium, self.options)
        except SilentError:
            return None
        except CggmError:
            raise
        # A damaged file can raise nearly anything from the code of its format.
        except Exception as error:
            bad.append(f"{medium.paths[0]}: {modality} cannot be decoded: {reason_of(error)}")
            if len(bad) > self.options.skip_bad:
                raise refusal(bad, self.options.skip_bad) from None
            return None


def _check_some(table: pa.Table, modalities: tuple[str, ...]) -> None:
    flags = [table.column(PRESENT + name).to_numpy() for name in modalities]
    lacking = np.flatnonzero(~np.any(flags, axis=0))
    if len(lacking):
        name = table.column(IDENTITY)[int(lacking[0])].as_py()
        raise DataError(
            f"clip {name}: neither {' nor '.join(modalities)} is there once its media are decoded; take it out of the list"
        )
