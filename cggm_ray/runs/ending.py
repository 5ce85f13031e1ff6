"""Steps after the test of a run: the table, then pictures, the contributions of modalities, and the model card with them.

The run is finished before these steps: `summary.json` is written, and the table is printed. A signal skips the steps that
are left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cggm_ray.core.errors import one_line
from cggm_ray.core.live import moved
from cggm_ray.core.tables import listing, text_table
from cggm_ray.engine.assembly import build_dataset
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.linear_blend import read_shares
from cggm_ray.engine.state import BEST, PREDICTIONS
from cggm_ray.engine.tracking import METRICS, Console
from cggm_ray.runs.card import CARD, try_card
from cggm_ray.runs.contributions import write_contributions
from cggm_ray.runs.ensembles import ENSEMBLE
from cggm_ray.runs.pictures import FOLDER, PICTURES
from cggm_ray.runs.recorded import recorded_manifest
from cggm_ray.runs.result import CONFIG, NO_EPOCH
from cggm_ray.runs.verdict import verdict

if TYPE_CHECKING:
    from cggm_ray.engine.opening import Training
    from cggm_ray.runs.result import Result


def after_test(training: Training, result: Result) -> None:
    """Prints the table, then writes pictures and contributions, and announces each of them. All workers call it.

    Args:
        training: with the weights of the best epoch, which `finish` has loaded.
        result: of `finish`.
    """
    config, state, runtime, folder = training.config, training.state, training.runtime, training.folder

    def say(line: str) -> None:
        if runtime.rank == 0:
            Console(folder).say(line)

    better = {name: training.task.better(name) for name in result.test}
    say(table(result, better, config))
    if runtime.rank == 0:
        draw_pictures(training)
    if config.run.report and config.run.contributions_seconds:
        found = write_contributions(
            config.train,
            state.net,
            training.task,
            training.splits["valid"],
            runtime,
            folder,
            metric=state.best.metric,
            epoch=state.best.epoch,
            seconds=config.run.contributions_seconds,
            say=say,
        )
        if found is not None and (sentence := verdict(found, fitted=bool(config.train.refit))):
            say(sentence)
        if runtime.rank == 0 and (failed := try_card(folder)):
            say(failed)


def draw_pictures(training: Training) -> None:
    """Draws the pictures of a dataset that has some, until a signal comes. An error is printed and changes nothing else."""
    say, folder = Console(training.folder).say, None
    if training.dataset.name not in PICTURES.names():
        return
    draw, options = PICTURES.get(training.dataset.name), training.dataset.settings.options
    pictures = draw(training.folder / FOLDER, training.state.net, training.splits["test"], options)
    if pictures is None:
        return
    say("drawing pictures of test cases")
    try:
        for number, path in enumerate(pictures, start=1):
            moved("pictures", number, 0, path.name)
            folder = path.parent
            if training.runtime.stop_requested():
                break
    # Another library draws them, even from a user's own dataset, and the run is finished and valid.
    except Exception as error:
        say(f"{training.folder}: the pictures were not drawn: {one_line(f'{type(error).__name__}: {error}')}")
    if folder is not None:
        say(listing({"pictures": folder}))


def directions(config: Config, result: Result) -> dict[str, str]:
    """Returns 'min' or 'max' for the metrics of a result; nothing where the run did not record its data.

    Args:
        config: of the run.
        result: of the run.
    """
    manifest = recorded_manifest(result.folder)
    if manifest is None:
        return {}
    task = build_dataset(config, manifest.dataset).task(manifest)
    return {name: task.better(name) for name in result.test}


def table(result: Result, better: Mapping[str, str] | None = None, config: Config | None = None) -> str:
    """Returns the metrics of validation and test side by side, and the paths of the results.

    Args:
        result: of the run.
        better: metric to 'min' or 'max', which is shown as an arrow; None where it is not known.
        config: of the run, which says whether the data is a demonstration and whether validation was trained on; None for
            neither.
    """
    arrows = {"min": " ↓", "max": " ↑"}
    rows = [
        [name + arrows.get((better or {}).get(name, ""), ""), result.valid[name], result.test[name]]
        for name in result.test
    ]
    places = {
        "configuration": CONFIG,
        "metrics by epoch": METRICS,
        "best checkpoint": BEST,
        "ensemble": ENSEMBLE,
        "test predictions": PREDICTIONS,
        "model card": CARD,
    }
    found = {what: result.folder / where for what, where in places.items() if (result.folder / where).exists()}
    refitted = config is not None and bool(config.train.refit)
    of = "ensemble" if result.best_epoch == NO_EPOCH else f"{'last' if refitted else 'best'} epoch {result.best_epoch}"
    of += ", trained on validation too" if refitted else ""
    shares = read_shares(result.folder / BEST)
    of += "" if shares is None else f", with a linear model (weights {shares[0]:.3g} and {shares[1]:.3g})"
    demonstration = config is not None and config.data.data_path is None
    of += " on demonstration data, which was generated" if demonstration else ""
    return "\n".join([of, text_table(rows, ["", "valid", "test"]), listing(found)])
