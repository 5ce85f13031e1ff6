"""Runs a configuration on Ray: Ray Data converts the data, and the workers of a TorchTrainer run the loop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from inspect import signature
from pathlib import Path
from types import FrameType
from typing import Any

import ray
import torch
from ray.train import FailureConfig, ScalingConfig
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchConfig, TorchTrainer

from cggm_ray.core.console import Form, use_form
from cggm_ray.core.errors import TrainingError, UsageError
from cggm_ray.core.live import looked_at, moved, to_file, told_to
from cggm_ray.data.shards.opening import print_taken
from cggm_ray.distributed.cluster import connect, cpus_per_worker, joins, own_error, what_failed
from cggm_ray.distributed.data.ingest import write_shards_with_ray
from cggm_ray.distributed.data.statistics import map_shards_with_ray
from cggm_ray.distributed.nodes import check_nodes
from cggm_ray.distributed.train.failures import Failures
from cggm_ray.distributed.train.runtime import STOP, RayRuntime
from cggm_ray.distributed.waiting import Heartbeat, waits
from cggm_ray.engine.assembly import prepare_data
from cggm_ray.engine.checkpoints import Checkpoints, storage_errors
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.guards import reporting_missing_ranks
from cggm_ray.engine.loop import train
from cggm_ray.engine.own_code import adopt, own_code
from cggm_ray.engine.probes import open_decided
from cggm_ray.engine.runtime import RunConfig
from cggm_ray.engine.stopping import StopRequest
from cggm_ray.engine.tracking import Console, following
from cggm_ray.runs.ending import after_test
from cggm_ray.runs.finishing import finish, validate
from cggm_ray.runs.folder import prepare_run_folder, sole_owner
from cggm_ray.runs.provenance import note_start
from cggm_ray.runs.result import Result, stored_result
from cggm_ray.storage.mirror import mirror_of
from cggm_ray.storage.places import as_path


def run_on_ray(config: Config, folder: Path, stop_request: StopRequest) -> Result:
    """Prepares the data and trains on a cluster.

    The folder of the run is also Ray Train's, which is how a run of the same name finds its checkpoints.

    Args:
        config: of the run.
        folder: of the run.
        stop_request: receives the number of a signal that this driver passed to the workers.

    Raises:
        CggmError: a worker's own error, or a TrainingError for what Ray reports.
    """
    shards = prepare_on_ray(config)
    connect()
    cpus = cpus_per_worker(config.run)
    with sole_owner(folder):
        prepare_run_folder(config, folder, shards, map_shards_with_ray)
        fixed = config.run.min_workers == config.run.max_workers
        note_start(folder, config, shards, config.run.max_workers if fixed else None, cpus)
        mirror = mirror_of(folder)
        mirror.push()
        print_taken(shards)
        try:
            heartbeat = Heartbeat(lambda seconds: waits() or f"no line from the workers for {seconds:.0f} s")
            with (
                heartbeat.beating(),
                following(folder, heartbeat.heard),
                stopping_workers(folder, stop_request),
                storage_errors(Checkpoints(folder)),
            ):
                workers = config.run.workers
                print(f"starting {workers} worker{'' if workers == '1' else 's'}", flush=True)
                moved("starting workers", 0, 0)
                trainer(config, shards, folder, cpus).fit()
        except Exception as error:
            raise own_error(error) or TrainingError(f"{folder}: the run failed: {what_failed(error)}") from error
        mirror.join()
        return stored_result(folder)


@contextmanager
def stopping_workers(folder: Path, stop_request: StopRequest) -> Iterator[None]:
    """Makes the workers save and stop at the first SIGTERM to this driver, which `ray job stop` sends for example.

    A second signal ends the driver at once.

    Args:
        folder: of the run; the workers check for a file in it.
        stop_request: receives the number of the signal.
    """
    mirror = mirror_of(folder)
    mirror.lower_flag(STOP)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)

    def take(number: int, frame: FrameType | None) -> None:
        stop_request.signal = number
        signal.signal(signal.SIGTERM, before)
        os.write(
            2,
            b"the workers save, or leave out what follows the test, and stop; the same signal once more ends at once\n",
        )
        with suppress(OSError):
            mirror.raise_flag(STOP)

    signal.signal(signal.SIGTERM, take)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        with suppress(OSError):
            mirror.lower_flag(STOP)


def prepare_on_ray(config: Config) -> Path:
    """Returns the folder of a run's shards, after converting the data with Ray Data if there are none.

    Input is checked before a cluster is started; one that is there is joined first, because a folder that its nodes do not
    share would spoil all further work.
    """
    check_elastic(config.run)
    if joins():
        connect()
        check_nodes({"storage_path": config.run.storage, "shard_path": config.shard_root})
    return prepare_data(config, write_shards_with_ray)


def trainer(
    config: Config,
    shards: Path,
    folder: Path,
    cpus: int,
    *,
    test: bool = True,
    validates: bool = False,
    callbacks: Sequence[Any] = (),
) -> TorchTrainer:
    """Builds the trainer of a run; a run in the same folder continues from its last checkpoint.

    Args:
        config: of the run.
        shards: folder of the converted set.
        folder: of the run.
        cpus: CPUs and torch threads of each worker.
        test: whether the best checkpoint is tested at the end.
        validates: whether it predicts the validation split where it is not tested.
        callbacks: of Ray Train; they see every report.
    """
    watching: list[Any] = [Failures(folder), *callbacks]
    return TorchTrainer(
        train_on_worker,
        train_loop_config={
            "config": config,
            # Entries from user files are unknown to a worker, so they are sent with the configuration.
            "own": own_code(config),
            "shards": str(shards),
            "folder": str(folder),
            "threads": cpus,
            "test": test,
            "validate": validates,
            "live": looked_at(),
        },
        torch_config=TorchConfig(timeout_s=config.run.collective_timeout),
        scaling_config=scaling(config.run, cpus),
        run_config=RayRunConfig(
            **mirror_of(folder).for_ray(),
            failure_config=FailureConfig(max_failures=config.run.max_failures),
            callbacks=watching,
        ),
    )


def check_elastic(config: RunConfig) -> None:
    """Raises a UsageError where the number of workers may change and Ray has groups of a fixed size only, before 2.55."""
    least, most = config.min_workers, config.max_workers
    if least < most and "elastic_resize_monitor_interval_s" not in signature(ScalingConfig).parameters:
        raise UsageError(
            f"workers: found {least}:{most} with Ray {ray.__version__}, whose groups have a fixed size; expected one number of "
            "workers, or Ray 2.55 or newer"
        )


def scaling(config: RunConfig, cpus: int) -> ScalingConfig:
    """Returns the size of the group of workers, which is fixed, or between two bounds as the cluster has room."""
    least, most = config.min_workers, config.max_workers
    # A dict, because type checkers read the signature of the older Train, which has no elastic groups.
    arguments: dict[str, Any] = {
        "num_workers": most,
        "use_gpu": config.use_gpu,
        "resources_per_worker": {"CPU": cpus, **({"GPU": 1} if config.use_gpu else {})},
    }
    if least < most:
        arguments |= {"num_workers": (least, most), "elastic_resize_monitor_interval_s": config.resize_interval}
    return ScalingConfig(**arguments)


def train_on_worker(arguments: dict[str, Any]) -> None:
    """Runs the loop on one worker."""
    torch.set_num_threads(arguments["threads"])
    config: Config = arguments["config"]
    adopt(arguments["own"])
    folder = Path(arguments["folder"])
    runtime = RayRuntime(folder, config.run)
    use_form(Form(config.run.log_format, folder.name, runtime.rank))
    looks = to_file(folder) if arguments["live"] and runtime.rank == 0 else None
    with mirror_of(folder).taking_part(runtime.rank == 0), told_to(looks):
        _train_on_worker(arguments, config, folder, runtime)


def _train_on_worker(arguments: dict[str, Any], config: Config, folder: Path, runtime: RayRuntime) -> None:
    seconds = config.run.collective_timeout
    if runtime.rank == 0 and config.run.min_workers < config.run.max_workers:
        Console(folder).say(f"{runtime.world_size} workers of {config.run.workers}")
    # The missing worker may have been on a lost node, so Ray Train may start the group again.
    with storage_errors(runtime.checkpoints), reporting_missing_ranks(runtime, seconds, RuntimeError):
        training = open_decided(config, as_path(arguments["shards"]), runtime, folder)
        train(training)
        if arguments["test"]:
            after_test(training, finish(training))
        elif arguments["validate"]:
            validate(training)
