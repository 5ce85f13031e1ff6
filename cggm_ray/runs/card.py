"""The model card of a finished run: `README.md` in its folder, in the format of Hugging Face.

It says what the network predicts from what, how well, what each modality brings, how to use it, and what it is not good for.
All of it is read from the folder of the run, so that the card of an older run can be written again.
"""

from __future__ import annotations

import inspect
import json
import math
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from safetensors import safe_open

from cggm_ray.core.errors import CggmError, UsageError, one_line
from cggm_ray.core.tables import markdown_code, markdown_text, text_table
from cggm_ray.data.dataset import DATASETS
from cggm_ray.data.shards.shards import Manifest
from cggm_ray.engine.assembly import build_dataset, selected_modalities
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.linear_blend import read_shares
from cggm_ray.engine.state import BEST, WEIGHTS, saved_values
from cggm_ray.runs.contributions import BALANCE, Contributions
from cggm_ray.runs.ensembles import read_ensemble
from cggm_ray.runs.finished import read_run
from cggm_ray.runs.provenance import read_provenance, versions
from cggm_ray.runs.recorded import recorded_manifest, recorded_registrations, recorded_samples
from cggm_ray.runs.result import NO_EPOCH, Result
from cggm_ray.runs.verdict import verdict
from cggm_ray.storage.files import write_text
from cggm_ray.strategies.registry import STRATEGIES
from cggm_ray.tasks import Classification, MultiLabel, Regression, Task

CARD = "README.md"
MARK = "<!-- Written by cggm-ray. A card without this line is never replaced. -->"
MOST_CLASSES = 20
DEMONSTRATION = (
    "**This run was trained on demonstration data**, which the package generated to try a recipe out. Its metrics say nothing "
    "about real data, and the network is of no use for them."
)


def write_card(folder: Path) -> Path | None:
    """Writes the card of a finished run, or of an ensemble, unless a person has written one.

    Args:
        folder: of the run.

    Returns:
        The file; None where a card without the mark is there already.

    Raises:
        UsageError: the folder holds no finished run.
        OSError: the file cannot be written.
    """
    path = folder / CARD
    if path.exists() and MARK not in path.read_text(errors="replace"):
        return None
    write_text(path, card(folder))
    return path


def try_card(folder: Path) -> str | None:
    """Writes the card; returns the line that says why it was not written, where that failed. The run is valid without it."""
    try:
        write_card(folder)
    except (CggmError, OSError) as error:
        return f"{folder / CARD} was not written: {one_line(str(error))}"
    return None


def card(folder: Path) -> str:
    """Returns the text of the card.

    Raises:
        UsageError: the folder holds no finished run, or nothing was recorded of its data.
    """
    config, result = read_run(folder)
    manifest = recorded_manifest(folder)
    if manifest is None:
        raise UsageError(f"{folder}: nothing was recorded of the data of this run; expected a run of this version")
    dataset = build_dataset(config, manifest.dataset)
    task = dataset.task(manifest)
    modalities = selected_modalities(config, manifest)
    names = dataset.class_names(manifest) or dataset.label_names(manifest) or ()
    parts = [
        f"---\n{_metadata(folder, config, result, task, modalities)}\n---",
        MARK,
        f"# {markdown_text(folder.name)}",
        f"A network that predicts {_predicted(task, names)} from {_listed(modalities)}. It was trained by "
        f"cggm-ray {versions()['cggm-ray']} with the strategy {markdown_code(config.modulation.modulation)}.",
        *([DEMONSTRATION] if config.data.data_path is None else []),
        "## Data",
        _data(folder, config, manifest, modalities),
        "## Results",
        _results(folder, result),
        "## What each modality brings",
        _contributions(folder, result),
        "## Training",
        _training(folder, config),
        "## How to use it",
        _use(folder, config),
        "## Limits",
        _limits(folder, config, task, modalities),
    ]
    return "\n\n".join(parts) + "\n"


def kind_of(task: Task) -> str:
    """Returns the name of a task in metadata."""
    if task.dense:
        return "image-segmentation"
    if isinstance(task, Regression):
        return "multimodal-regression"
    return "multimodal-multilabel-classification" if isinstance(task, MultiLabel) else "multimodal-classification"


def _metadata(folder: Path, config: Config, result: Result, task: Task, modalities: Sequence[str]) -> str:
    # Imported here, because a command that writes no card does without it.
    from huggingface_hub import EvalResult, ModelCardData

    demonstration = config.data.data_path is None
    about = f"{config.data.dataset}, demonstration data" if demonstration else config.data.dataset
    results = [
        EvalResult(
            task_type=kind_of(task),
            dataset_type=config.data.dataset,
            dataset_name=about,
            dataset_split="test",
            metric_type=name,
            metric_value=float(value),
        )
        for name, value in result.test.items()
        if value is not None and math.isfinite(value)
    ]
    data = ModelCardData(
        library_name="cggm-ray",
        tags=[
            "multimodal",
            kind_of(task),
            f"strategy:{config.modulation.modulation}",
            *(f"modality:{name}" for name in modalities),
            *(["demonstration-data"] if demonstration else []),
        ],
        model_name=folder.name,
        eval_results=results,
    )
    return str(data.to_yaml())


def _predicted(task: Task, names: Sequence[str]) -> str:
    shown = ", ".join(markdown_text(str(name)) for name in names[:MOST_CLASSES]) + (
        ", ..." if len(names) > MOST_CLASSES else ""
    )
    if task.dense:
        return "a segmentation"
    if isinstance(task, Classification):
        return f"one of {len(names)} classes ({shown})"
    if isinstance(task, MultiLabel):
        return f"which of {len(names)} labels hold ({shown})"
    return "a value" if task.outputs == 1 else f"{task.outputs} values"


def _listed(names: Sequence[str]) -> str:
    shown = [markdown_text(name) for name in names]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _data(folder: Path, config: Config, manifest: Manifest, modalities: Sequence[str]) -> str:
    source = "generated demonstration data"
    if config.data.data_path is not None:
        source = markdown_code(Path(str(config.data.data_path)).name)
    lines = [f"Dataset `{manifest.dataset}`, {source}."]
    samples = recorded_samples(folder)
    if samples:
        lines[0] += f" Samples: {', '.join(f'{name} {count}' for name, count in samples.items())}."
    started = [entry for entry in read_provenance(folder) if isinstance(entry, dict) and entry.get("data")]
    rows = [[markdown_text(name), _shape(manifest.modalities[name].shape)] for name in modalities]
    lines += ["", text_table(rows, ["modality", "shape of a sample"], markdown=True)]
    if started:
        data = started[-1]["data"]
        lines += ["", "Raw files and their SHA-256:" if data["sources"] else "", ""]
        lines += [f"- {markdown_code(Path(path).name)} `{digest}`" for path, digest in data["sources"].items()]
        more = data["source_files"] - len(data["sources"])
        lines += [f"- and {more} more"] if more > 0 else []
    return "\n".join(lines)


def _shape(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]" if shape else "a number"


def _results(folder: Path, result: Result) -> str:
    rows = [[name, result.valid.get(name), value] for name, value in result.test.items()]
    if result.best_epoch == NO_EPOCH:
        ensemble = read_ensemble(folder)
        members = {} if ensemble is None else ensemble.members
        how = f"The mean of the predictions of {len(members)} runs, which are in folders below this one."
    else:
        how = f"The weights of epoch {result.best_epoch}, which {_selected(folder)}."
        if _refitted(folder):
            how = (
                f"The weights of the last epoch, {result.best_epoch}. The network was trained on the validation samples too, "
                "so validation metrics do not say how good it is."
            )
        shares = read_shares(folder / BEST)
        if shares is not None:
            how += (
                f" Predictions are those of the network times {shares[0]:.3g} and those of a linear model on the same inputs "
                f"times {shares[1]:.3g}."
            )
    table = text_table(rows, ["metric", "validation", "test"], markdown=True)
    return f"{how} The test split was evaluated once, after training.\n\n{table}"


def _refitted(folder: Path) -> bool:
    try:
        return bool(saved_values(folder / BEST)["best"].get("last"))
    except (CggmError, KeyError, TypeError, AttributeError):
        return False


def _selected(folder: Path) -> str:
    try:
        best = saved_values(folder / BEST)["best"]
        return f"has the {'lowest' if best['mode'] == 'min' else 'highest'} validation {best['metric']}"
    except (CggmError, KeyError, TypeError):
        return "was the best on the validation split"


def _contributions(folder: Path, result: Result) -> str:
    found = Contributions.load(folder / BALANCE) if (folder / BALANCE).exists() else None
    if found is None or found.epoch != result.best_epoch:
        return f"It was not measured. {markdown_code(f'cggm report {shlex.quote(folder.name)}')} measures it."
    rows: list[list[object]] = [
        [markdown_text(" + ".join(found.names(subset)) or "none"), score] for subset, score in found.scores.items()
    ]
    table = text_table(rows, ["modalities that the network sees", f"validation {found.metric}"], markdown=True)
    if found.missing:
        return f"{table}\n\n{len(found.missing)} subsets were not scored."
    values = ", ".join(f"{markdown_text(name)} {value:.4f}" for name, value in found.shapley.items())
    degree = f"Imbalance degree: {found.imbalance:.2f} of 1."
    shapley = f"Shapley values, positive where a modality helps: {values}. {degree}"
    return "\n\n".join(
        text for text in (markdown_text(verdict(found, fitted=_refitted(folder))), table, shapley) if text
    )


def _training(folder: Path, config: Config) -> str:
    name = config.modulation.modulation
    network = config.model.network or DATASETS.get(config.data.dataset).network
    lines = [
        f"- Strategy {markdown_code(name)}: {_source(name)}",
        f"- Network: {markdown_code(network)}{_size(folder)}",
    ]
    lines.append(f"- Optimizer {config.optim.optim}, learning rate {config.optim.lr:g}, seed {config.train.seed}")
    started = [entry for entry in read_provenance(folder) if isinstance(entry, dict)]
    if started:
        last = started[-1]
        versions = {key: value for key, value in (last.get("versions") or {}).items() if value}
        lines.append(f"- Workers: {last.get('workers') or 'several runs at once'}, device {last.get('device')}")
        lines.append(f"- Versions: {', '.join(f'{key} {value}' for key, value in versions.items())}")
    lines.append("- All settings are in `config.yaml`, every start of the run is in `provenance.jsonl`.")
    return "\n".join(lines)


def _source(strategy: str) -> str:
    """The first line of the file of a strategy, which names the paper."""
    build = STRATEGIES.get(strategy).build
    module = inspect.getmodule(build.func if isinstance(build, partial) else build)
    text = inspect.getdoc(module) if module is not None else None
    return (text or "of a file of its own").splitlines()[0]


def _size(folder: Path) -> str:
    path = folder / BEST / WEIGHTS
    try:
        with safe_open(path, "pt") as weights:
            count = sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118
    # The weights of an ensemble are those of its members; a damaged file is not the matter of a card.
    except Exception:
        return ""
    return f", {count:,} numbers in its weights"


def _use(folder: Path, config: Config) -> str:
    # Commands are copied: a name must not end its quotes there.
    name = shlex.quote(folder.name)
    return f"""In the folder above this one:

```python
import cggm_ray

run = cggm_ray.load({json.dumps(folder.name, ensure_ascii=False)})
predictions = run.predict("new_data")  # a path, arrays by name, or a table; labels are not needed
```

The same on the command line, a program that needs no cggm-ray, and a service:

```
cggm predict {name} --data_path new_data
cggm export {name}
cggm serve {name}
```

New data has the form of the training data of the dataset `{config.data.dataset}`."""


def _limits(folder: Path, config: Config, task: Task, modalities: Sequence[str]) -> str:
    samples = recorded_samples(folder)
    lines = []
    if config.data.data_path is None:
        lines.append("The data was generated. No conclusion about real data follows from this run.")
    if samples.get("test"):
        lines.append(
            f"The test metrics are those of {samples['test']} samples of the same source as the training data."
        )
    lines += [
        "How the network does on data of another source, time or group of persons was not measured.",
        *([] if isinstance(task, Regression) else ["Probabilities are those of the network and were not calibrated."]),
        f"It was trained with {_listed(modalities)}. It predicts samples that lack some of them, but well only if samples of "
        "the training data lacked them too.",
    ]
    if recorded_registrations(folder):
        lines.append("It needs Python files of the person who trained it, which `data.json` names and loading imports.")
    return "\n".join(f"- {line}" for line in lines)
