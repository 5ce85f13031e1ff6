"""Ends a run: tests the best checkpoint once, or validates it alone, and writes the results into the folder of the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

from cggm_ray.core.errors import TrainingError
from cggm_ray.core.live import moved
from cggm_ray.engine.checkpoints import check_checkpoint
from cggm_ray.engine.evaluation import Parts, Predictions, evaluate
from cggm_ray.engine.linear_blend import blended, blends, save_linear
from cggm_ray.engine.opening import Training
from cggm_ray.engine.prediction_file import PredictionFile
from cggm_ray.engine.runtime import Record, numbers
from cggm_ray.engine.state import BEST, PREDICTIONS, VALUES, WEIGHTS, Position, load_weights
from cggm_ray.engine.tracking import Console
from cggm_ray.runs.blending import Blend, fit_blend
from cggm_ray.runs.card import try_card
from cggm_ray.runs.confusion import save_confusion
from cggm_ray.runs.result import SUMMARY, Result
from cggm_ray.storage.files import share_files, whole_file, write_folder, write_text

VALIDATION, VALID_PREDICTIONS = "validation.json", "validation.parquet"
"""What a run leaves that is compared on validation and not tested."""
LINEAR_CHOICE = "linear.json"
"""Weights and strength of the linear model of such a run; there is none where the network is compared alone."""


def finish(training: Training) -> Result:
    """Tests the best checkpoint, and writes its weights, its predictions and a summary into the folder of the run.

    The state of the optimizer is left out of `best/`: only `checkpoints/` are for going on. Afterwards the network of the state
    is the one that was tested, with its linear model where there is one.

    Raises:
        TrainingError: that checkpoint is gone or damaged.
    """
    config, state, runtime, folder = training.config, training.state, training.runtime, training.folder
    checkpoint, blend = load_best(training)
    moved(
        "test",
        0,
        0,
        f"validation and {len(training.splits['test'])} test samples with the checkpoint of epoch {state.best.epoch}",
    )
    valid = evaluate(config.train, state.net, training.task, training.splits["valid"], runtime)
    test = predict_to(training, "test", folder / PREDICTIONS)
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


def validate(training: Training) -> None:
    """Writes validation metrics and predictions of the best checkpoint, as it would be tested, into the folder of the run.

    Raises:
        TrainingError: that checkpoint is gone or damaged.
    """
    _, blend = load_best(training)
    valid = predict_to(training, "valid", training.folder / VALID_PREDICTIONS)
    if training.runtime.rank == 0:
        if blend is not None:
            write_text(
                training.folder / LINEAR_CHOICE, json.dumps({"shares": blend.shares, "strength": blend.strength})
            )
        write_text(training.folder / VALIDATION, json.dumps(numbers(valid), indent=1))


def load_best(training: Training) -> tuple[Path, Blend | None]:
    """Gives the network of the state the weights of the best epoch, and adds a linear model where that is wanted.

    Returns:
        The checkpoint, and the linear model that was fitted.

    Raises:
        TrainingError: the checkpoint is gone or damaged.
    """
    config, state, runtime, folder = training.config, training.state, training.runtime, training.folder
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
        if blend.counts:
            state.net = blended(state.net, blend.linear, blend.shares).to(runtime.device)
    return checkpoint, blend


def predict_to(training: Training, split: str, path: Path) -> Record:
    """Returns loss and metrics of a split, and writes its predictions, which are there unless they are maps.

    Args:
        training: whose network predicts.
        split: name of it.
        path: of the file.
    """
    samples, runtime, task = training.splits[split], training.runtime, training.task
    with ExitStack() as stack:
        collected = None
        if not task.dense:
            give = _nothing
            if runtime.rank == 0:
                partial = stack.enter_context(whole_file(path))
                file = stack.enter_context(closing(PredictionFile(partial, len(samples), samples.names)))
                give = file.add
            collected = Parts(len(samples), task, training.config.train.batch_size, give)
        return evaluate(training.config.train, training.state.net, task, samples, runtime, collected)


def partial_of_best(checkpoint: Path, blend: Blend | None) -> Callable[[Path], None]:
    """Returns what fills the folder of the tested checkpoint: weights and values, and a linear model that counts."""

    def write(partial: Path) -> None:
        share_files(checkpoint, partial, (WEIGHTS, VALUES))
        if blend is not None and blend.counts:
            save_linear(partial, blend.linear, blend.shares)

    return write


def _nothing(part: Predictions) -> None:
    """Takes predictions on the workers that write none."""
