"""The preset `best`: the runs that the choice compared become the candidates of an ensemble."""

from __future__ import annotations

from pathlib import Path

from cggm_ray.core.errors import UsageError
from cggm_ray.data.shards.opening import open_manifest
from cggm_ray.engine.configuration import Config
from cggm_ray.runs.folder import open_folder
from cggm_ray.runs.provenance import note_start
from cggm_ray.runs.recorded import record_data


def open_ensemble_folder(config: Config, folder: Path, shards: Path, threads: int | None = None) -> None:
    """Makes the folder of an ensemble, with configuration, data and origin, but without a member.

    Args:
        config: of the ensemble.
        folder: of it.
        shards: folder of the set.
        threads: of torch in the process that tests it; default those of this process.

    Raises:
        UsageError: it cannot be written.
    """
    open_folder(config, folder)
    try:
        record_data(folder, open_manifest(shards), config)
    except OSError as error:
        raise UsageError(f"storage_path: {folder} cannot be written: {error.strerror}") from None
    note_start(folder, config, shards, workers=1, threads=threads)
