"""Selects and tests an ensemble in a process of the cluster, with the resources of a trial."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ray
import torch

from cggm_ray.core.errors import TrainingError
from cggm_ray.distributed.cluster import connect, own_error, what_failed
from cggm_ray.distributed.waiting import Heartbeat, waits
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.own_code import OwnCode, adopt, own_code
from cggm_ray.engine.tracking import following
from cggm_ray.runs.result import Result
from cggm_ray.storage.mirror import mirror_of
from cggm_ray.studies.ensemble import assemble


def assemble_on_ray(config: Config, folder: Path, runs: Mapping[str, Path], shards: Path, cpus: int) -> Result:
    """Runs `assemble` on the cluster and prints what it says; the arguments are those of `assemble`.

    Args:
        config: of the ensemble.
        folder: of the ensemble.
        runs: the candidates.
        shards: folder of their set.
        cpus: CPUs and torch threads of the process.

    Raises:
        CggmError: the process's own error, or a TrainingError for what Ray reports.
    """
    connect()
    mirror = mirror_of(folder)
    mirror.push()
    remote = ray.remote(num_cpus=cpus, num_gpus=1 if config.run.use_gpu else 0)(_assemble)
    heartbeat = Heartbeat(lambda seconds: waits() or f"no line about the ensemble for {seconds:.0f} s")
    try:
        with heartbeat.beating(), following(folder, heartbeat.heard):
            result: Result = ray.get(remote.remote(own_code(config), cpus, config, folder, dict(runs), shards))
    except Exception as error:
        raise own_error(error) or TrainingError(f"{folder}: the ensemble failed: {what_failed(error)}") from error
    mirror.join()
    return result


def _assemble(
    own: OwnCode, threads: int, config: Config, folder: Path, runs: Mapping[str, Path], shards: Path
) -> Result:
    adopt(own)
    torch.set_num_threads(threads)
    with mirror_of(folder).taking_part():
        return assemble(folder, config, runs, shards)
