"""Ends a run: tests the best checkpoint once and writes the results into the folder of the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

from cggm_ray.core.errors import TrainingError
from cggm_ray.core.live import moved
from cggm_ray.engine.checkpoints import check_checkpoint
from cggm_ray.engine.evaluation import Parts, Predictions, evaluate
from cggm_ray.engine.opening import Training
from cggm_ray.engine.prediction_file import PredictionFile
from cggm_ray.engine.ridge import blended, blends, save_ridge
from cggm_ray.engine.runtime import numbers
from cggm_ray.engine.state import BEST, PREDICTIONS, VALUES, WEIGHTS, Position, load_weights
from cggm_ray.engine.tracking import Console
from cggm_ray.runs.blending import Blend, fit_blend
from cggm_ray.runs.card import try_card
from cggm_ray.runs.confusion import save_confusion
from cggm_ray.runs.result import SUMMARY, Result
from cggm_ray.storage.files import share_files, whole_file, write_folder, write_text


def finish(training: Training) -> Result:
    """Tests the best checkpoint, and writes its weights, its predictions and a summary into the folder of the run.

    The state of the optimizer is left out of `best/`: only `checkpoints/` are for going on. Afterwards the network of the state
    is the one that was tested, with its ridge regression where there is one.

    Raises:
        TrainingError: that checkpoint is gone or damaged.
    """
    config, state, runtime, folder = training.config, training.state, training.runtime, training.folder
    task, splits = training.task, training.splits
    if not state.best.epoch:
        raise TrainingError(
            f"{folder}: the validation loss or {state.best.metric} was not a number after each of {state.epoch} epochs, so "
            "there is no best checkpoint to test; try a smaller --lr"
        )
    checkpoint = runtime.checkpoints.of(Position(state.best.epoch))
    if checkpoint is None:
        raise TrainingError(f"{folder}: the checkpoint of the best epoch, {state.best.epoch}, is gone")
    check_checkpoint(checkpoint)
    load_weights(state.net, checkpoint)
    blend = None
    if blends(config.train, training.dataset, training.manifest, training.modalities):
        blend = fit_blend(training)
        if runtime.rank == 0:
            Console(folder).say(blend.line())
        if blend.share:
            state.net = blended(state.net, blend.ridge, blend.share).to(runtime.device)
    moved(
        "test",
        0,
        0,
        f"validation and {len(splits['test'])} test samples with the checkpoint of epoch {state.best.epoch}",
    )
    valid = evaluate(config.train, state.net, task, splits["valid"], runtime)
    with ExitStack() as stack:
        collected = None
        if not task.dense:
            samples, give = len(splits["test"]), _nothing
            if runtime.rank == 0:
                partial = stack.enter_context(whole_file(folder / PREDICTIONS))
                file = stack.enter_context(closing(PredictionFile(partial, samples, splits["test"].names)))
                give = file.add
            collected = Parts(samples, task, config.train.batch_size, give)
        test = evaluate(config.train, state.net, task, splits["test"], runtime, collected)
    result = Result(folder=folder, best_epoch=state.best.epoch, valid=numbers(valid), test=numbers(test))
    if runtime.rank == 0:
        write_folder(folder / BEST, partial_of_best(checkpoint, blend))
        if training.class_names is not None:
            save_confusion(folder, training.class_names)
        summary = {"best_epoch": result.best_epoch, "epochs": state.epoch, "valid": result.valid, "test": result.test}
        write_text(folder / SUMMARY, json.dumps(summary, indent=1))
        if failed := try_card(folder):
            Console(folder).say(failed)
    return result


def partial_of_best(checkpoint: Path, blend: Blend | None) -> Callable[[Path], None]:
    """Returns what fills the folder of the tested checkpoint: weights and values, and a ridge regression that has a share."""

    def write(partial: Path) -> None:
        share_files(checkpoint, partial, (WEIGHTS, VALUES))
        if blend is not None and blend.share:
            save_ridge(partial, blend.ridge, blend.share)

    return write


def _nothing(part: Predictions) -> None:
    """Takes predictions on the workers that write none."""
