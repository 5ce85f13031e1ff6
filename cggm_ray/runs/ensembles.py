"""The folder of an ensemble: `ensemble.json` names the runs below it whose predictions are averaged.

Besides it the folder has what that of a run has: `config.yaml`, `data.json`, `summary.json` and the test predictions, but
neither a checkpoint nor metrics by epoch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cggm_ray.core.errors import UsageError
from cggm_ray.engine.state import BEST
from cggm_ray.storage.files import write_text

ENSEMBLE = "ensemble.json"


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Content of `ensemble.json`.

    Attributes:
        metric, mode: the validation metric that selected, and 'min' or 'max'.
        members: run to the number of times that it is counted; a path relative to the folder of the ensemble.
        candidates: run to its own validation metric, of all runs that could be selected.
        steps: of the selection: the run that was added ('run'), and validation metric and loss of the ensemble with it
            ('value', 'loss').
    """

    metric: str
    mode: str
    members: Mapping[str, int]
    candidates: Mapping[str, float]
    steps: Sequence[Mapping[str, Any]]

    def folders(self, folder: Path) -> dict[Path, int]:
        """Returns the folders of the members with their counts.

        Args:
            folder: of the ensemble.
        """
        return {folder / name: count for name, count in self.members.items()}

    def save(self, folder: Path) -> None:
        """Writes the file.

        Args:
            folder: of the ensemble.

        Raises:
            OSError: it cannot be written.
        """
        write_text(folder / ENSEMBLE, json.dumps(asdict(self), indent=1) + "\n")


def read_ensemble(folder: Path) -> Ensemble | None:
    """Returns the ensemble of a folder, or None if it is that of a single run.

    Raises:
        UsageError: the file is damaged, or a member is not in the folder.
    """
    path = folder / ENSEMBLE
    if not path.exists():
        return None
    try:
        found = Ensemble(**json.loads(path.read_text()))
        counts = list(found.members.values())
        if not counts or not all(isinstance(count, int) and count > 0 for count in counts):
            raise ValueError("expected at least one member with a positive count")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    for member in found.folders(folder):
        if not member.resolve().is_relative_to(folder.resolve()) or not member.is_dir():
            raise UsageError(f"{path}: the member {member} is not there; expected the folder of a run below {folder}")
    return found


def tested_checkpoints(folder: Path) -> list[Path]:
    """Returns the folders of the checkpoints that were tested: that of a run, or those of an ensemble's members.

    Raises:
        UsageError: the file of the ensemble is damaged.
    """
    ensemble = read_ensemble(folder)
    return [member / BEST for member in ([folder] if ensemble is None else ensemble.folders(folder))]
