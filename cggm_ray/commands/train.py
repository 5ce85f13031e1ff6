"""Runs a configuration: it prepares the folder and the data, trains, and prints the table."""

from __future__ import annotations

import dataclasses
import math
import os
import traceback
from contextlib import ExitStack
from pathlib import Path

import torch

from cggm_ray.commands.headroom import Finished, check_headroom, write_headroom
from cggm_ray.core.console import Form, form, print_result, printing, use_form
from cggm_ray.core.errors import CggmError, NonFiniteError, StoppedError, TrainingError, UsageError, one_line
from cggm_ray.core.live import bar, moved
from cggm_ray.core.tables import listing
from cggm_ray.data.shards.opening import open_manifest, print_taken
from cggm_ray.data.shards.shards import write_shards_here
from cggm_ray.engine.assembly import fold_runs, prepare_data, selected_modalities, with_strategy
from cggm_ray.engine.checkpoints import storage_errors
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.guards import reporting_missing_ranks
from cggm_ray.engine.header import opening
from cggm_ray.engine.loop import train
from cggm_ray.engine.presets import SEARCHED
from cggm_ray.engine.probes import open_decided
from cggm_ray.engine.runtime import LocalRuntime
from cggm_ray.engine.stopping import LEAVING_OUT, Interrupted, StopRequest, interrupting, stopping_on_signals
from cggm_ray.engine.tracking import check_trackers, read_metrics
from cggm_ray.runs.ending import after_test, directions, table
from cggm_ray.runs.finishing import finish
from cggm_ray.runs.folder import named, prepare_run_folder, run_folder, sole_owner
from cggm_ray.runs.folds import fold_table, save_folds
from cggm_ray.runs.provenance import note_start
from cggm_ray.runs.result import Result
from cggm_ray.storage.mirror import mirror_of
from cggm_ray.storage.work import shown


def run(config: Config) -> Result | None:
    """Prepares the data, trains, tests, and prints the table.

    Args:
        config: of the run; `--local` keeps Ray out of it, and so does torchrun.

    Returns:
        The result; None on torchrun's processes other than the first, and where the configuration stands for several folds,
        whose results lie in their folders.

    Raises:
        CggmError: with one line that says what to do.
    """
    if config.train.preset in SEARCHED:
        raise UsageError(
            f"preset: {config.train.preset} stands for a search, which `commands.searched.train_searched` runs; expected "
            "released or quick"
        )
    check_trackers(config.run.trackers)
    check_headroom(config)
    config = named(config)
    with printing(config.run.quiet, Form(config.run.log_format, config.run.name)):
        return _run_named(config)


def _run_named(config: Config) -> Result | None:
    folds = fold_runs(config)
    if not folds:
        result = run_one(config, StopRequest())
        if config.run.quiet and result is not None:
            better = directions(config, result)
            print_result(table(result, better, config))
        return result
    results, stop_request = {}, StopRequest()
    for fold, part in folds.items():
        print(f"fold {fold}")
        named_part = dataclasses.replace(part, run=dataclasses.replace(part.run, name=f"{config.run.name}-{fold}"))
        result = run_one(named_part, stop_request)
        if result is not None:
            results[fold] = result
        if stop_request.signal and len(results) < len(folds):
            raise StoppedError(
                f"stopped after fold {fold}; the same command goes on with the next", 128 + stop_request.signal
            )
    if results:
        folder = config.run.storage / str(config.run.name)
        print_result(fold_table(results, save_folds(folder, results)))
        mirror_of(folder).push()
    return None


def run_one(config: Config, stop_request: StopRequest) -> Result | None:
    """Runs a configuration that is a single run with a name.

    A signal after the test leaves out what follows it: the run is finished all the same, and this returns its result.

    Args:
        config: of the run.
        stop_request: receives the number of a signal.
    """
    with bar():
        return _run_one(config, stop_request)


def _run_one(config: Config, stop_request: StopRequest) -> Result | None:
    folder = run_folder(config)
    if int(os.environ.get("RANK", 0)) == 0:
        print(opening(config, folder), flush=True)
    if config.run.local or "TORCHELASTIC_RUN_ID" in os.environ:
        result = run_locally(config, folder, stop_request)
    else:
        moved("starting Ray", 0, 0)
        # Ray is imported here and not above: the library and local runs do without it.
        from cggm_ray.distributed.train.launch import run_on_ray

        result = run_on_ray(config, folder, stop_request)
    if result is not None:
        if config.run.headroom and not stop_request.signal:
            headroom_of_run(config, result.folder, stop_request)
        if config.run.report and not stop_request.signal:
            write_report(result.folder, stop_request)
        mirror_of(folder).push()
        if stop_request.signal:
            print(f"{shown(result.folder)} is finished; what was left to do after the test was left out", flush=True)
        check_finite(result)
    return result


def write_report(folder: Path, stop_request: StopRequest) -> None:
    """Draws the page of a finished run until a signal comes. An error is printed and changes nothing else."""
    print("drawing the report (--report false leaves it out)", flush=True)
    moved("report", 0, 0)
    try:
        with interrupting(stop_request):
            # Imported here: a run without a page does without matplotlib.
            from cggm_ray.report.page import FOLDER, write_page
            from cggm_ray.report.run_record import read_run_record

            page = write_page([read_run_record(folder)], folder / FOLDER)
        print(listing({"report": page}), flush=True)
    except Interrupted:
        pass
    except Exception as error:
        print(f"{shown(folder)}: the report was not drawn: {one_line(f'{type(error).__name__}: {error}')}", flush=True)


def headroom_of_run(config: Config, folder: Path, stop_request: StopRequest) -> None:
    """Measures the head-room of a finished run; an error is printed and changes nothing else."""
    if config.run.local or "TORCHELASTIC_RUN_ID" in os.environ:
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, local=True))
        shards = prepare_data(config, write_shards_here)
    else:
        from cggm_ray.distributed.train.launch import prepare_on_ray

        shards = prepare_on_ray(config)
    balanced = with_strategy(config, selected_modalities(config, open_manifest(shards)))
    runs = {balanced.modulation.modulation: folder}
    write_headroom(config, folder, [Finished(name="", config=config, shards=shards, runs=runs)], stop_request)


def check_finite(result: Result) -> None:
    """Raises NonFiniteError if a finished run diverged, or if its best epoch has no finite loss on test data."""
    last = read_metrics(result.folder)[-1]
    if last["valid/loss"] is None:
        raise NonFiniteError(
            f"{result.folder}: the validation loss after epoch {last['epoch']:.0f}, the last one, was not finite: training "
            f"diverged; the table is of epoch {result.best_epoch}"
        )
    check_losses(result, f"the best epoch, {result.best_epoch},")


def check_losses(result: Result, what: str) -> None:
    """Raises NonFiniteError if the loss on validation or test is not finite.

    Args:
        result: of a run or an ensemble.
        what: was evaluated.
    """
    for name, record in (("valid", result.valid), ("test", result.test)):
        if not math.isfinite(record["loss"]):
            raise NonFiniteError(f"{result.folder}: the {name} loss of {what} is not finite")


def run_locally(config: Config, folder: Path, stop_request: StopRequest) -> Result | None:
    """Runs in this process, or in the processes that torchrun started. SIGTERM and Ctrl-C save and stop the run."""
    runtime = LocalRuntime(folder, config.run, stop_request)
    use_form(dataclasses.replace(form(), rank=runtime.rank))
    seconds = config.run.collective_timeout
    try:
        if runtime.world_size > 1 and 0 < config.train.batch_size < runtime.world_size:
            raise UsageError(f"batch_size: found {config.train.batch_size} for {runtime.world_size} processes")
        with ExitStack() as owned:
            shards = _prepare_first(config, folder, runtime, owned)
            with (
                stopping_on_signals(stop_request),
                reporting_missing_ranks(runtime, seconds, TrainingError),
                storage_errors(runtime.checkpoints),
            ):
                training = open_decided(config, shards, runtime, folder)
                train(training)
                result = finish(training)
                stop_request.answer = LEAVING_OUT
                after_test(training, result)
        return result if runtime.rank == 0 else None
    except StoppedError as stop:
        # One line for all processes.
        text = str(stop) if runtime.rank == 0 else ""
        # Its frames hold the model, which must be freed before the runtime closes.
        traceback.clear_frames(stop.__traceback__)
        raise StoppedError(text, 128 + stop_request.signal if stop_request.signal else stop.exit_code) from None
    finally:
        runtime.close()


def _prepare_first(config: Config, folder: Path, runtime: LocalRuntime, owned: ExitStack) -> Path:
    """Converts the data on rank 0, while the others wait, and returns the folder of the shards.

    It also prepares the folder of the run, which `owned` holds until it is closed.

    Raises:
        CggmError: rank 0's own error, and on the others one line.
    """
    failure: CggmError | None = None
    if runtime.rank == 0:
        try:
            shards = prepare_data(config, write_shards_here)
            owned.enter_context(sole_owner(folder))
            prepare_run_folder(config, folder, shards)
            note_start(folder, config, shards, runtime.world_size)
            mirror_of(folder).push()
            print_taken(shards)
        except CggmError as error:
            failure = error
    failed = runtime.reduce()(torch.tensor(float(failure is not None), dtype=torch.float64, device=runtime.device))
    if failure is not None:
        raise failure
    if failed:
        raise UsageError("rank 0 cannot start this run, and says why")
    if runtime.rank == 0:
        return shards
    mirror_of(folder).join()
    return prepare_data(config, write_shards_here)
