"""The search that a preset stands for: the settings that matter on most features, around those of the preset `quick`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from cggm_ray.engine.configuration import Config
from cggm_ray.engine.presets import QUICK_NETWORK
from cggm_ray.models.composed.network import DROPOUT as DEFAULT_DROPOUT
from cggm_ray.models.composed.network import REGRESSION_DROPOUT
from cggm_ray.models.composed.registry import ENCODERS, FUSIONS, default_encoder, encoders_for
from cggm_ray.models.standardise import AUTO, MODALITY, OFF, ON
from cggm_ray.studies.parameters import plain_value

WIDTHS, DEPTHS = (64, 128, 256, 512), (1, 2, 3)
DROPOUT = (0.0, 0.6)
RATE = (2e-4, 1e-2)
DECAYS = (0.0, 0.005, 0.05, 0.2, 0.5)
SMOOTHINGS = (0.0, 0.1)
TRIALS_PER_MINUTE, FEWEST, MOST = 60, 60, 2000
"""Trials that are drawn for a minute of time, within these bounds: more than one machine gets through."""
GRACE, REDUCTION = 1 / 6, 3
"""ASHA compares trials for the first time after this share of their epochs, and lets one in so many go on."""
Content = dict[str, Any]
"""Content of the file of a search, as `cggm_ray.studies.space` reads it."""


def search_around(
    base: Config, kinds: Mapping[str, str], epochs: int, minutes: float, *, classes: bool, fixed: Collection[str] = ()
) -> Content:
    """Returns the search around a configuration.

    Its first trial is that configuration. The next ones change one thing each: linear encoders, a linear encoder for each
    modality with a mean of their predictions, one scale for each modality, and every other fusion. The linear models are
    the first, because where there is time for a few trials only they are the likeliest to be better.

    Args:
        base: where the search starts.
        kinds: of the modalities, by name.
        epochs: of a trial that is not stopped.
        minutes: of the search.
        classes: whether classes are predicted.
        fixed: fields that keep their value.

    Returns:
        The search as its file would describe it; its space is empty if all fields are fixed.
    """
    space: Content = {}
    points: list[Content] = [{}]
    whole: list[Content] = []
    if base.inputs.standardises:
        space["standardise"] = {"choice": [ON, MODALITY]}
        whole = [{"standardise": MODALITY}]
    if base.model.network == QUICK_NETWORK:
        families = encoder_families(kinds)
        fusions = FUSIONS.names() if len(kinds) > 1 else ["concat"]
        options = base.network_options(QUICK_NETWORK)
        space["encoders"] = {"choice": list(families.values())}
        space["fusion"] = {"choice": list(fusions)}
        space["width"] = {"choice": [width for width in WIDTHS if width % vars(options)["heads"] == 0]}
        space["depth"] = {"choice": list(DEPTHS)}
        space["dropout"] = {"uniform": list(DROPOUT)}
        space["linear_path"] = {"choice": [ON, OFF]}
        if "linear" in families:
            linear = {"encoders": families["linear"]}
            points += [linear, *({**linear, "fusion": fusion} for fusion in fusions if fusion == "late")]
        points += [*whole, *({"fusion": fusion} for fusion in fusions)]
        if vars(options)["dropout"] is None:
            # A point names a value for every parameter, so it names the one that the network would take.
            own = DEFAULT_DROPOUT if classes else REGRESSION_DROPOUT
            points = [{**point, "dropout": own} for point in points]
        if vars(options)["linear_path"] == AUTO and "linear_path" not in fixed:
            points = [{**point, "linear_path": OFF if classes else ON} for point in points]
    else:
        points += whole
    space["lr"] = {"loguniform": list(RATE)}
    space["weight_decay"] = {"choice": list(DECAYS)}
    if classes:
        space["label_smoothing"] = {"choice": list(SMOOTHINGS)}
    space = {key: _with_own(base, key, values) for key, values in space.items() if key not in fixed}
    # A parameter with one value is none.
    space = {key: values for key, values in space.items() if len(next(iter(values.values()))) > 1}
    kept = [point for point in points if point.keys() <= space.keys()]
    return {
        "trials": round(min(max(TRIALS_PER_MINUTE * minutes, FEWEST), MOST)),
        "scheduler": {
            "name": "asha",
            "grace_period": max(1, round(GRACE * epochs)),
            "reduction_factor": REDUCTION,
        },
        "space": space,
        "points_to_evaluate": kept,
    }


def encoder_families(kinds: Mapping[str, str]) -> dict[str, str]:
    """Returns the values of `encoders` that a search tries, by name.

    There is one for the defaults, '', and one for every encoder that accepts one of the kinds; modalities of other kinds keep
    their default there.

    Args:
        kinds: of the modalities, by name.
    """
    default = {name: default_encoder(kind) for name, kind in kinds.items()}
    families, known = {"": ""}, [default]
    for encoder in ENCODERS.names():
        chosen = {m: encoder if encoder in encoders_for(kind) else default[m] for m, kind in kinds.items()}
        if chosen not in known:
            known.append(chosen)
            families[encoder] = ",".join(f"{name}:{encoder}" for name, encoder in chosen.items())
    return families


def _with_own(base: Config, key: str, described: Content) -> Content:
    """Returns the values of a parameter with the configuration's own one among them."""
    ((kind, values),) = described.items()
    sections = base.sections()
    own = next(
        plain_value(getattr(sections[section], spec.name)) for section, spec in base.fields() if spec.name == key
    )
    if own is None or own == AUTO:
        return described
    if kind == "choice":
        return {kind: values if own in values else [own, *values]}
    return {kind: [min(values[0], own), max(values[1], own)]}
