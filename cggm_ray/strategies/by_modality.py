"""Flags that hold a number for every modality: `text=1e-3,audio=5e-4`, or one number a modality in their order."""

from __future__ import annotations

from collections.abc import Sequence

from cggm_ray.core.errors import UsageError
from cggm_ray.core.registry import nearest


def numbers_by_modality(
    flag: str, entries: Sequence[str], modalities: Sequence[str], *, zero: bool = False
) -> dict[str, float]:
    """The numbers of a flag by modality, in the order of the modalities.

    Args:
        flag: its name, for messages.
        entries: what stands between its commas.
        modalities: of the run.
        zero: whether 0 is a number that it may hold.

    Raises:
        UsageError: one is missing, not a positive number, or of a modality that the run does not have.
    """
    pairs = [entry.partition("=") for entry in entries]
    if not any(sign for _, sign, _ in pairs) and len(pairs) == len(modalities):
        texts = dict(zip(modalities, entries, strict=True))
    else:
        texts = {name.strip(): text for name, _, text in pairs}
    for name in texts:
        if name not in modalities:
            raise UsageError(
                f"{flag}: no modality {name!r}{nearest(name, modalities)}; available: {', '.join(modalities)}"
            )
    missing = [name for name in modalities if name not in texts]
    if missing:
        raise UsageError(f"{flag}: found none for {', '.join(missing)}; expected one for every modality")
    return {name: _number(flag, name, texts[name], zero) for name in modalities}


def _number(flag: str, name: str, text: str, zero: bool) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (0 < value < float("inf") or (zero and value == 0)):
        raise UsageError(
            f"{flag}: found {text!r} for {name}; expected {'zero or a positive number' if zero else 'a positive number'}"
        )
    return value
